"""int8 arrays: their rounding against NumPy, products with them, and a whole model on one device and on a mesh."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import assert_trees_close, one_device, tiny_config, tiny_params

from astro_jax.llama import mixed_precision as mp
from astro_jax.llama import model, quantized
from astro_jax.llama.params import param_specs
from astro_jax.llama.quantized import QuantizedArray
from astro_jax.mesh import decode_sharding, make_mesh

CONFIG = tiny_config(d_ff=32, n_heads=8, n_kv_heads=4)


def dequantized_params(params, config):
    """The weights that a quantized model stands for, as plain arrays."""

    def leaf(spec, x):
        axes = quantized.summed_axes(spec)
        return quantized.dequantize(x, *axes) if axes else x

    return jax.tree.map(leaf, param_specs(config), params)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_numbers_are_rounded_to_the_nearest_multiple_of_their_scale(dtype):
    x = np.random.default_rng(0).standard_normal((6, 5, 40)).astype(dtype)
    x[2, 3] = 0
    q = quantized.quantize(jnp.asarray(x), -1)
    assert q.values.dtype == np.int8 and q.dtype == dtype and q.scale.shape == (6, 5)
    exact, scale = x.astype(np.float64), np.asarray(q.scale, np.float64)[..., None]
    largest = np.abs(exact).max(-1, keepdims=True)
    rounding = 2.0**-8 if dtype != np.float32 else 2.0**-23  # of the scale, as it is stored
    np.testing.assert_allclose(scale, np.where(largest == 0, scale, largest / 127), rtol=rounding)
    values = np.asarray(q.values, np.float64)
    assert np.abs(values * scale - exact).max(-1).max() <= (0.5 + 127 * rounding) * scale.max()
    nearest = np.clip(np.round(exact / scale), -127, 127)
    assert (values == nearest).mean() > 0.999 and np.abs(values - nearest).max() <= 1  # ties round either way
    assert (values[2, 3] == 0).all() and np.abs(values).max() == 127


def test_a_number_that_is_not_finite_stays_visible():
    for bad in (np.nan, np.inf):
        x = jnp.ones((2, 4)).at[1, 2].set(bad)
        back = quantized.dequantize(quantized.quantize(x, -1), -1)
        assert np.isfinite(back[0]).all() and not np.isfinite(back[1]).any()


@pytest.mark.parametrize("name", ["embed", "lm_head", "wq", "wk", "wo", "w_gate", "w_down", "attn_norm"])
def test_scales_belong_to_the_output_channels_of_a_weight(name):
    params, specs = quantized.make_quantize(CONFIG, one_device())(tiny_params(CONFIG)), param_specs(CONFIG)
    weight, spec = (getattr(x if hasattr(x, name) else x.layers, name) for x in (params, specs))
    sizes = {"embed": (20,), "lm_head": (20,), "wq": (2, 8, 4), "wk": (2, 4, 4), "wo": (2, 16), "w_gate": (2, 32),
             "w_down": (2, 16)}  # fmt: skip
    if name == "attn_norm":
        assert not isinstance(weight, QuantizedArray)
    else:
        assert weight.values.shape == spec.shape and weight.scale.shape == sizes[name]


@pytest.mark.parametrize("tied", [False, True])
def test_a_quantized_model_computes_what_its_rounded_weights_compute(tied):
    config = tiny_config(d_ff=32, n_heads=8, n_kv_heads=4, tie_embeddings=tied)
    params = quantized.make_quantize(config, one_device())(tiny_params(config))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (4, 12)), jnp.int32)
    expected = model.forward(dequantized_params(params, config), tokens, config)
    np.testing.assert_allclose(model.forward(params, tokens, config), expected, atol=2e-5)
    sharding = decode_sharding(make_mesh(2, 1, 4))
    placed = jax.device_put(params, quantized.shardings(config, sharding))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), placed)
    abstract = quantized.abstract(config, sharding, jnp.float32)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract)

    @jax.jit
    def logits(params, tokens):
        return model.lm_head(params, model.hidden_states(params, tokens, config, sharding=sharding))

    np.testing.assert_allclose(logits(placed, tokens), expected, atol=2e-5)


def test_a_product_in_bfloat16_keeps_its_type_and_logits_are_float32():
    bfloat16 = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tiny_params(CONFIG))
    params = quantized.make_quantize(CONFIG, one_device())(bfloat16)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 16)), jnp.bfloat16)
    weight = jax.tree.map(lambda w: w[0], params.layers.w_gate)
    y = mp.einsum("bsd,df->bsf", x, weight)
    assert y.dtype == jnp.bfloat16 and model.lm_head(params, x).dtype == jnp.float32
    exact = np.asarray(x, np.float64) @ np.asarray(quantized.dequantize(weight, 0), np.float64)
    assert_trees_close(np.asarray(y, np.float64), exact, atol=0.02 * np.abs(exact).max())
