"""The worker processes that the tests of verify/ share."""

import pytest

from astro_jax.verify.pool import WorkerPool


@pytest.fixture(scope="session")
def workers():
    """A pool of two workers with a deadline of 1 s and 1 GiB of memory."""
    pool = WorkerPool(2, seconds=1.0, memory=2**30)
    yield pool
    pool.close()
