"""The compilation cache of a run's folder."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from astro_jax import compilation_cache


@pytest.fixture
def events():
    counts = {"hits": 0, "misses": 0}

    def listen(event, **_):
        for kind in counts:
            counts[kind] += event == f"/jax/compilation_cache/cache_{kind}"

    jax.monitoring.register_event_listener(listen)
    yield counts
    jax.monitoring.unregister_event_listener(listen)


@pytest.fixture
def no_cache(monkeypatch):
    """JAX without the cache that the tests share."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.compilation_cache.reset_cache()


def compute(run):
    """Compile as a new process does: JAX has forgotten its programs."""
    jax.clear_caches()
    with compilation_cache.use(epath.Path(run)):
        return np.asarray(jax.jit(lambda x: jnp.sin(x) @ x + 3)(np.eye(4, dtype=np.float32)))


def test_a_restart_compiles_nothing_and_each_run_has_its_own_folder(tmp_path, events, no_cache):
    first = compute(tmp_path / "a")
    assert events["misses"] > 0 and events["hits"] == 0
    compiled = events["misses"]
    np.testing.assert_array_equal(compute(tmp_path / "a"), first)
    assert events == {"misses": compiled, "hits": compiled}
    np.testing.assert_array_equal(compute(tmp_path / "b"), first)
    assert events["misses"] == 2 * compiled
    assert jax.config.jax_compilation_cache_dir is None
    assert os.listdir(tmp_path / "a") == ["compilation_cache"]


def test_a_folder_of_the_user_stays_in_use(tmp_path):
    assert jax.config.jax_compilation_cache_dir
    with compilation_cache.use(epath.Path(tmp_path)):
        pass
    assert not os.listdir(tmp_path)
