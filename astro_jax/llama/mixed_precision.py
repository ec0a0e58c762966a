"""Weights that compute in bfloat16 and collect their gradients in float32.

A weight that is merely cast to bfloat16 has a gradient in bfloat16: sums over tokens, over chunks of tokens and over
devices are then rounded to 8 bits after each addition. A `MixedWeight` computes the same values, but all sums that make
its gradient are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from astro_jax.llama import lora
from astro_jax.llama.quantized import QuantizedArray

# A weight of a model: an array, a MixedWeight, a lora.AdaptedWeight, or in sampling a QuantizedArray.
Weight = Any


@struct.dataclass
class MixedWeight:
    """A weight in the type of the computation, whose gradient belongs to the weight in float32.

    Attributes:
      value: the weight in the type of the computation. It has no gradient.
      master: the weight in float32. It takes no part in the forward pass.
    """

    value: jax.Array
    master: jax.Array


def mixed(weight: jax.Array, dtype: DTypeLike) -> Weight:
    """Make a weight that computes in `dtype`; the weight itself where it has this type."""
    if weight.dtype == jnp.dtype(dtype):
        return weight
    return MixedWeight(jax.lax.stop_gradient(weight.astype(dtype)), weight)


def einsum(spec: str, x: jax.Array, weight: Weight, preferred_element_type: DTypeLike | None = None) -> jax.Array:
    """Multiply x and a weight, as `jnp.einsum`. Each axis of an input must be an axis of the other or of the output."""
    if isinstance(weight, lora.AdaptedWeight):
        of_a, of_b = lora.split_spec(spec)
        low_rank = einsum(of_b, einsum(of_a, x, weight.a), weight.b, preferred_element_type)
        return jnp.einsum(spec, x, weight.base, preferred_element_type=preferred_element_type) + weight.scale * low_rank
    if isinstance(weight, QuantizedArray):
        y = jnp.einsum(spec, x, weight.values.astype(x.dtype), preferred_element_type=preferred_element_type)
        return y * jnp.broadcast_to(weight.scale, y.shape).astype(y.dtype)  # the last axes of y are the weight's own
    if not isinstance(weight, MixedWeight):
        return jnp.einsum(spec, x, weight, preferred_element_type=preferred_element_type)
    return _einsum(spec, preferred_element_type, x, weight.value, weight.master)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(spec: str, dtype: DTypeLike | None, x: jax.Array, value: jax.Array, master: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, value, preferred_element_type=dtype)


def _einsum_forward(
    spec: str, dtype: DTypeLike | None, x: jax.Array, value: jax.Array, master: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _einsum(spec, dtype, x, value, master), (x, value)


def _einsum_backward(
    spec: str, dtype: DTypeLike | None, inputs: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, value = inputs
    letters, out = spec.split("->")
    of_x, of_weight = letters.split(",")
    dx = jnp.einsum(f"{out},{of_weight}->{of_x}", g, value).astype(x.dtype)
    gradient = jnp.einsum(f"{of_x},{out}->{of_weight}", x, g, preferred_element_type=jnp.float32)
    return dx, jnp.zeros_like(value), gradient


_einsum.defvjp(_einsum_forward, _einsum_backward)


def scale(x: jax.Array, weight: Weight) -> jax.Array:
    """Multiply x [..., D] by a weight [D]."""
    if not isinstance(weight, MixedWeight):
        return x * jnp.broadcast_to(weight, x.shape)
    return _scale(x, weight.value, weight.master)


@jax.custom_vjp
def _scale(x: jax.Array, value: jax.Array, master: jax.Array) -> jax.Array:
    return x * jnp.broadcast_to(value, x.shape)


def _scale_backward(inputs: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, value = inputs
    gradient = jnp.sum(x.astype(jnp.float32) * g.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))
    return g * jnp.broadcast_to(value, x.shape), jnp.zeros_like(value), gradient


_scale.defvjp(lambda x, value, master: (_scale(x, value, master), (x, value)), _scale_backward)


def map_arrays(function: Callable[[jax.Array], jax.Array], weight: Weight) -> Weight:
    """Apply a function to the arrays of a weight, such as a new sharding. The value still has no gradient."""
    if not isinstance(weight, MixedWeight):
        return function(weight)
    return MixedWeight(jax.lax.stop_gradient(function(weight.value)), function(weight.master))


def look_up(take: Callable[[jax.Array, jax.Array], jax.Array], table: Weight, tokens: jax.Array) -> jax.Array:
    """Look up rows: `take(table, tokens)`, a function that is linear in the table."""
    if isinstance(table, QuantizedArray):
        return take(table.values, tokens).astype(table.scale.dtype) * take(table.scale[:, None], tokens)
    if not isinstance(table, MixedWeight):
        return take(table, tokens)
    return _look_up(take, table.value, table.master, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(
    take: Callable[[jax.Array, jax.Array], jax.Array], value: jax.Array, master: jax.Array, tokens: jax.Array
) -> jax.Array:
    return take(value, tokens)


def _look_up_backward(
    take: Callable[[jax.Array, jax.Array], jax.Array], inputs: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    value, master, tokens = inputs
    (gradient,) = jax.vjp(lambda table: take(table, tokens), master)[1](g.astype(master.dtype))
    return jnp.zeros_like(value), gradient, None


_look_up.defvjp(lambda take, value, master, tokens: (take(value, tokens), (value, master, tokens)), _look_up_backward)
