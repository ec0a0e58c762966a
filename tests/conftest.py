"""Settings that must be in place before the first use of JAX."""

import os

# The tests are made for a CPU, also where there is an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# Eight devices, so that sharded code is tested as sharded code.
jax.config.update("jax_num_cpu_devices", 8)

# Silent broadcasting between ranks hides shape errors.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """A process may map only so much memory: thousands of compiled programs, of all modules, end in an abort of XLA."""
    yield
    jax.clear_caches()
