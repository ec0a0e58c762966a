"""From logits to tokens: filter and scale the distribution, then sample one token a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from astro_jax.sampler.kv_cache import Array
from astro_jax.sampler.sampling_params import SamplingParams

# Slices of the vocabulary: sum each slice, then search in one slice. A power of two, so that tp divides it.
VOCAB_SLICES = 256


@struct.dataclass
class SamplingInputs:
    """The temperature and the filters of SamplingParams as scalars of the sampling program.

    Attributes:
      temperature: float32 [].
      top_k: int32 [].
      top_p: float32 [].
      min_p: float32 [].
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array

    @classmethod
    def of(cls, params: SamplingParams) -> SamplingInputs:
        """The scalars of some SamplingParams."""
        return cls(
            np.float32(params.temperature), np.int32(params.top_k), np.float32(params.top_p), np.float32(params.min_p)
        )


class SampledTokens(NamedTuple):
    """One token a row.

    Attributes:
      token: int32 [B]; -1 where the logits are not numbers.
      logprob: float32 [B], under the model at temperature 1 without any filter.
      sampling_logprob: float32 [B], under the distribution that the token was sampled from.
    """

    token: jax.Array
    logprob: jax.Array
    sampling_logprob: jax.Array


def sample(
    logits: jax.Array, keys: jax.Array, position: jax.Array, sampling: SamplingInputs, filtered: bool
) -> SampledTokens:
    """Sample one token a row: invert the distribution function at one uniform random number a row.

    The random number depends only on the completion's key and on the position. So a completion does not depend on the
    other rows of its batch. The number has 23 bits: tokens less likely than 1.2e-7 are not sampled in proportion.

    Args:
      logits: float32 [B, V]. A row with a NaN or an infinite maximum gets token -1.
      keys: uint32 [B, 2], the key of each row's completion.
      position: int32 [B], the position of the token before the sampled one.
      sampling: temperature and filters.
      filtered: whether to apply top_k, top_p and min_p.
    """
    chex.assert_rank(logits, 2)
    chex.assert_shape(keys, (len(logits), 2))
    chex.assert_shape(position, (len(logits),))
    top = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - top
    total = jnp.sum(jnp.exp(shifted), axis=-1)

    def greedy(shifted: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.argmax(shifted, axis=-1).astype(jnp.int32), jnp.zeros(len(shifted))

    def at_random(shifted: jax.Array) -> tuple[jax.Array, jax.Array]:
        scaled = shifted / sampling.temperature
        weight = jnp.exp(scaled)
        if filtered:
            weight = jnp.where(scaled >= _threshold(scaled, weight, sampling)[:, None], weight, 0.0)
        uniform = jax.vmap(lambda key, p: jax.random.uniform(jax.random.fold_in(key, p)))(keys, position)
        token, mass = _invert(weight, uniform)
        return token, _at(scaled, token) - jnp.log(mass)

    token, sampling_logprob = jax.lax.cond(sampling.temperature > 0, at_random, greedy, shifted)
    logprob = _at(shifted, token) - jnp.log(total)
    broken = ~jnp.isfinite(top[:, 0])
    return SampledTokens(jnp.where(broken, -1, token), logprob, sampling_logprob)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[:, None], axis=-1)[:, 0]


def _invert(weight: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the token of each row at which the running sum of its weights passes the share `uniform` of their sum.

    The search takes two steps, among the sums of the slices and inside one slice. It needs no running sum of the whole
    vocabulary.

    Args:
      weight: float32 [B, V].
      uniform: float32 [B], in [0, 1).

    Returns:
      The token int32 [B], and the sum of the row's weights float32 [B].
    """
    rows, size = weight.shape
    slices = VOCAB_SLICES if size > 4 * VOCAB_SLICES else 1
    weight = jnp.pad(weight, ((0, 0), (0, -size % slices))).reshape(rows, slices, -1)
    sums = weight.sum(axis=-1)
    index, before = _first_beyond(sums, uniform * sums.sum(axis=-1))
    inside = jnp.take_along_axis(weight, index[:, None, None], axis=1)[:, 0]
    token, _ = _first_beyond(inside, uniform * sums.sum(axis=-1) - before)
    return index * weight.shape[-1] + token, sums.sum(axis=-1)


def _first_beyond(weight: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the first index of each row whose running sum exceeds the target and whose weight is positive.

    The last index with a positive weight stands in where rounding puts the target at or past the end.

    Args:
      weight: float32 [B, n].
      target: float32 [B].

    Returns:
      The index int32 [B], and the running sum before it float32 [B].
    """
    running = jnp.cumsum(weight, axis=-1)
    possible = weight > 0
    beyond = possible & (running > target[:, None])
    last = weight.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    index = jnp.where(beyond.any(axis=-1), jnp.argmax(beyond, axis=-1), last).astype(jnp.int32)
    return index, _at(running, index) - _at(weight, index)


def _threshold(scaled: jax.Array, weight: jax.Array, sampling: SamplingInputs) -> jax.Array:
    """The smallest scaled logit [B] that the filters keep. Tokens with equal logits are kept or dropped together.

    A bisection over the bits of a float finds the threshold exactly in 32 halvings, without a sort of the vocabulary.
    """
    v = scaled.shape[-1]
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, v), v)
    kth = _bisect(scaled, lambda kept: kept.sum(axis=-1) >= k)
    mass = jnp.where(scaled >= kth[:, None], weight, 0.0)
    enough = sampling.top_p * mass.sum(axis=-1)
    nucleus = _bisect(scaled, lambda kept: jnp.where(kept, mass, 0.0).sum(axis=-1) >= enough)
    nucleus = jnp.where(sampling.top_p < 1, nucleus, -jnp.inf)
    return jnp.maximum(jnp.maximum(kth, nucleus), jnp.where(sampling.min_p > 0, jnp.log(sampling.min_p), -jnp.inf))


def _bisect(x: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest value t [B] of each row of x <= 0 for which enough(x >= t). Floats <= 0 fall as their bits rise."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, -0.0, x), jnp.uint32) & 0x7FFFFFFF

    def halve(i: jax.Array, bounds: tuple) -> tuple:
        low, high = bounds  # enough(bits <= high), not enough(bits < low)
        middle = low + (high - low) // 2
        ok = enough(bits <= middle[:, None])
        return jnp.where(ok, low, middle + 1), jnp.where(ok, middle, high)

    start = jnp.zeros(len(x), jnp.uint32), jnp.full(len(x), 0x7F800000, jnp.uint32)
    _, high = jax.lax.fori_loop(0, 32, halve, start)
    return -jax.lax.bitcast_convert_type(high, jnp.float32)
