"""`python -m astro_jax` is `astro`."""

import sys

from astro_jax.cli import main

sys.exit(main())
