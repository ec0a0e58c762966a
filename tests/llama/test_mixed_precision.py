"""Weights in bfloat16 whose gradients are summed in float32: against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from astro_jax.llama import mixed_precision as mp

BF16 = jnp.bfloat16


def random(*shape, seed=0):
    """Numbers that bfloat16 holds exactly."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(jnp.asarray(x, BF16).astype(jnp.float32))


def gradients(function, x, weight, cotangent):
    """(the output, the gradients of x and of the float32 weight) of function(x in bfloat16, mixed weight)."""

    @jax.jit
    def run(x, weight):
        out, vjp = jax.vjp(lambda x, w: function(x, mp.mixed(w, BF16)), jnp.asarray(x, BF16), weight)
        return out, *vjp(jnp.asarray(cotangent, out.dtype))

    return run(x, weight)


def test_weight_of_the_same_type_is_left_alone():
    weight = jnp.ones((2, 3))
    assert mp.mixed(weight, "float32") is weight


@pytest.mark.parametrize("dtype", [None, jnp.float32])
@pytest.mark.parametrize(
    "spec, shape_x, shape_w, shape_out",
    [
        ("bsd,dnh->bsnh", (2, 300, 8), (8, 3, 4), (2, 300, 3, 4)),
        ("bsnh,nhd->bsd", (2, 300, 3, 4), (3, 4, 8), (2, 300, 8)),
        ("abd,vd->abv", (2, 300, 8), (7, 8), (2, 300, 7)),
    ],
)
def test_gradient_of_a_product_is_summed_in_float32(spec, shape_x, shape_w, shape_out, dtype):
    x, weight, g = random(*shape_x), random(*shape_w, seed=1), random(*shape_out, seed=2)
    einsum = functools.partial(mp.einsum, spec, preferred_element_type=dtype)
    out, dx, gradient = gradients(einsum, x, weight, g)
    assert out.dtype == (dtype or BF16) and dx.dtype == BF16 and gradient.dtype == jnp.float32
    letters, of_out = spec.split("->")
    of_x, of_weight = letters.split(",")
    expected = np.einsum(f"{of_x},{of_out}->{of_weight}", x.astype(float), g.astype(float))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-4)
    expected = np.einsum(f"{of_out},{of_weight}->{of_x}", g.astype(float), weight.astype(float))
    np.testing.assert_allclose(np.asarray(dx, float), expected, rtol=0.01, atol=0.02)


def test_gradient_of_a_scale_is_summed_in_float32():
    x, weight, g = random(4, 1000, 3), random(3, seed=1), random(4, 1000, 3, seed=2)
    out, dx, gradient = gradients(mp.scale, x, weight, g)
    np.testing.assert_allclose(gradient, (x.astype(float) * g).sum((0, 1)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.asarray(dx, float), g * weight, rtol=0.01)
    assert out.dtype == BF16 and gradient.dtype == jnp.float32


def test_gradient_of_a_frequent_token_does_not_stall():
    """1 added 4096 times to a sum in bfloat16 stops at 256: the next number is 258."""
    tokens, table = jnp.zeros((2, 2048), jnp.int32), jnp.ones((3, 2))
    take = functools.partial(jnp.take, axis=0)
    gradient = jax.jit(jax.grad(lambda t: mp.look_up(take, mp.mixed(t, BF16), tokens).astype(jnp.float32).sum()))(table)
    np.testing.assert_array_equal(gradient, [[4096, 4096], [0, 0], [0, 0]])


def test_mapped_weight_keeps_its_gradient_in_float32():
    @jax.grad
    def gradient(weight):
        doubled = mp.map_arrays(lambda x: 2 * x, mp.mixed(weight, BF16))
        return mp.einsum("abd,vd->abv", jnp.ones((1, 2, 3), BF16), doubled).astype(jnp.float32).sum()

    np.testing.assert_array_equal(gradient(jnp.ones((4, 3))), np.full((4, 3), 4.0))
