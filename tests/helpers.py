"""Tiny models and helpers that several tests share."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig, RopeScaling
from astro_jax.llama.tokenizer import countdown_tokenizer as _countdown_tokenizer
from astro_jax.mesh import decode_sharding, make_mesh, train_sharding

LLAMA3 = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
countdown_tokenizer = functools.cache(_countdown_tokenizer)


def tiny_config(**changes):
    """A Llama of about two thousand parameters."""
    shape = dict(vocab_size=20, d_model=16, d_ff=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, max_positions=128)
    return LlamaConfig(**{**shape, **changes})


def tiny_params(config, seed=0, scale=0.3):
    """Random parameters, norms too, large enough that predictions are far from uniform."""
    rng = np.random.default_rng(seed)

    def leaf(spec):
        noise = scale * rng.standard_normal(spec.shape)
        return jnp.asarray(noise + (spec.std == 0), jnp.float32)

    return jax.tree.map(leaf, llama_params.declare(config))


def one_device():
    return decode_sharding(make_mesh())


def one_device_train():
    return train_sharding(make_mesh())


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


def assert_trees_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@contextlib.contextmanager
def count_compilations():
    """A list that gets one entry for each program that XLA compiles inside the block."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
