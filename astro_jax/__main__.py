"""`python -m astro_jax` is `astro`."""

import sys


def main() -> int:
    """Run the command line. Ctrl-C while it is imported ends the process without a word."""
    try:
        from astro_jax import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
