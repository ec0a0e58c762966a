"""Arrays of int8 numbers with scales, for sampling: half the bytes of bfloat16.

An array is rounded symmetrically: array = values * scale, with scale = max |array| / 127 over the axes that a product
sums (LLM.int8(), arXiv 2208.07339, section 2.1, "vector-wise"). Such a scale stands outside of the sum, so a product
reads the int8 numbers and multiplies its result: x W = (x values) scale.

    weight              values                  scale
    wq                  int8 [L, D, H, h]       [L, H, h], one for each output channel and layer
    embed               int8 [V, D]             [V], one for each token
    keys, values        int8 [..., K, h, C]     [..., K, C], one for each head and token (`sampler.kv_cache`)

Norms are not rounded. The scales have the type in which the model computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Array, Params, ParamSpec, param_specs
from astro_jax.mesh import Sharding

LARGEST = 127  # of the int8 numbers; -128 is not used, so that rounding is symmetric


@struct.dataclass
class QuantizedArray:
    """An array as int8 numbers with scales (see the module).

    Attributes:
      values: int8, in the shape of the array.
      scale: the shape of the array without the axes that a product sums.
    """

    values: Array
    scale: Array

    @property
    def dtype(self) -> DTypeLike:
        """The type in which the array computes."""
        return self.scale.dtype


def quantize(x: jax.Array, *axes: int) -> QuantizedArray:
    """Round an array to int8, with a scale for all numbers that differ only in `axes`.

    The largest error of a number is half its scale. A number that is not finite gives a scale that is not finite.
    """
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True).astype(jnp.float32)
    # The values are rounded with the scale as it is stored: its own rounding then adds no error.
    scale = jnp.maximum(largest / LARGEST, float(jnp.finfo(x.dtype).tiny)).astype(x.dtype)
    ratio = x.astype(jnp.float32) / jnp.broadcast_to(scale, x.shape).astype(jnp.float32)
    values = jnp.clip(jnp.round(ratio), -LARGEST, LARGEST).astype(jnp.int8)
    return QuantizedArray(values, jnp.squeeze(scale, axes))


def dequantize(x: QuantizedArray, *axes: int) -> jax.Array:
    """The array values * scale, in the type of the scale. `axes` are those of `quantize`."""
    scale = jnp.expand_dims(x.scale, axes)
    return x.values.astype(scale.dtype) * jnp.broadcast_to(scale, x.values.shape)


# ---- The weights of a model


def summed_axes(spec: ParamSpec) -> tuple[int, ...]:
    """The axes of a weight that a product sums; () for a norm, which is not rounded.

    Those of the embedding table are the axes of the LM head that it may also be.
    """
    first = int(spec.stacked)
    return (1,) if spec.axes == ("vocab", "embed") else tuple(range(first, first + spec.n_in))


def quantize_params(params: Params, config: LlamaConfig) -> Params:
    """Round the matrices of a model to int8; a `Params` pytree with a QuantizedArray for each."""

    def leaf(spec: ParamSpec, x: jax.Array) -> jax.Array | QuantizedArray:
        axes = summed_axes(spec)
        return quantize(x, *axes) if axes else x

    return jax.tree.map(leaf, param_specs(config), params)


def shardings(config: LlamaConfig, sharding: Sharding) -> Params:
    """The NamedSharding of each array of `quantize_params`: scales lie with the output channels of their weight."""

    def leaf(spec: ParamSpec) -> Array:
        axes, whole = summed_axes(spec), sharding.named(*spec.axes)
        kept = [name for i, name in enumerate(spec.axes) if i not in axes]
        return QuantizedArray(whole, sharding.named(*kept)) if axes else whole

    return jax.tree.map(leaf, param_specs(config))


def abstract(config: LlamaConfig, sharding: Sharding, dtype: DTypeLike) -> Params:
    """The arrays of `quantize_params` as jax.ShapeDtypeStruct, for ahead-of-time compilation.

    Args:
      dtype: in which the model computes.
    """
    whole = llama_params.abstract(config, dtype=dtype)
    shapes = jax.eval_shape(lambda params: quantize_params(params, config), whole)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings(config, sharding)
    )


@functools.lru_cache(maxsize=8)
def make_quantize(config: LlamaConfig, sharding: Sharding) -> Callable[[Params], Params]:
    """Build the jitted `quantize_params`. The weights and the result lie on the same devices."""
    return jax.jit(lambda params: quantize_params(params, config), out_shardings=shardings(config, sharding))
