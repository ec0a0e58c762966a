"""The declaration of the parameters, and random initialization by the declaration."""

import jax
import numpy as np
import pytest
from helpers import tiny_config

from astro_jax.llama import params as llama_params


def test_init_follows_the_specs():
    config = tiny_config(d_model=64, d_ff=128, vocab_size=64, init_std=0.05)
    params = jax.tree.map(np.asarray, jax.jit(llama_params.init, static_argnums=1)(jax.random.key(0), config))
    specs = llama_params.param_specs(config)

    def check(spec, value):
        assert value.shape == spec.shape
        if spec.std == 0:
            assert (value == 1).all()
        else:
            assert abs(float(value.std()) - spec.std) < 0.15 * spec.std

    jax.tree.map(check, specs, params)
    assert specs.layers.wo.std == specs.layers.w_down.std == pytest.approx(0.05 / 2)  # / sqrt(2 L), L = 2
    assert specs.layers.wq.std == specs.embed.std == 0.05
    assert llama_params.count(config) == sum(x.size for x in jax.tree.leaves(params))
    assert len({float(x.ravel()[0]) for x in jax.tree.leaves(params) if x.ravel()[0] != 1}) == 9  # all differ
