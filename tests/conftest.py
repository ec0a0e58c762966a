"""Settings that must be in place before the first use of JAX."""

import os

# The tests are made for a CPU, also where there is an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

# Eight devices, so that sharded code is tested as sharded code.
jax.config.update("jax_num_cpu_devices", 8)

# Silent broadcasting between ranks hides shape errors.
jax.config.update("jax_numpy_rank_promotion", "raise")
