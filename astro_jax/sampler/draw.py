"""From logits to a token: which tokens may be drawn, with what probability, and the draw itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

# Parts of a vocabulary, each summed up before one is looked into; a power of two, so that tp divides it.
PARTS = 256


@struct.dataclass
class Filters:
    """The filters of SamplingParams as arrays."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any


class Draw(NamedTuple):
    """One token a row."""

    token: jax.Array  # int32 [B]
    logprob: jax.Array  # float32 [B]: under the model's own distribution, at temperature 1 and with all tokens
    drawn_logprob: jax.Array  # float32 [B]: under the distribution that it was drawn from


def draw(logits: jax.Array, keys: jax.Array, position: jax.Array, how: Filters, filtered: bool) -> Draw:
    """One token a row by inverting the distribution function at one uniform number a row.

    The number is named by (sample, position), not drawn in order, so a sample does not depend on its batch. It has 24
    bits: tokens less likely than 6e-8 are not drawn in proportion.

    Args:
      logits: float32 [B, V]; a row with a NaN or an infinite maximum gets token -1.
      keys: uint32 [B, 2], the name of each row's sample. position: int32 [B], of the token before.
      filtered: whether top_k, top_p and min_p are looked at.
    """
    top = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - top
    total = jnp.sum(jnp.exp(shifted), axis=-1)

    def greedy(shifted: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.argmax(shifted, axis=-1).astype(jnp.int32), jnp.zeros(len(shifted))

    def sampled(shifted: jax.Array) -> tuple[jax.Array, jax.Array]:
        scaled = shifted / how.temperature
        weight = jnp.exp(scaled)
        if filtered:
            weight = jnp.where(scaled >= _threshold(scaled, weight, how)[:, None], weight, 0.0)
        uniform = jax.vmap(lambda key, p: jax.random.uniform(jax.random.fold_in(key, p)))(keys, position)
        token, mass = _invert(weight, uniform)
        return token, _at(scaled, token) - jnp.log(mass)

    token, drawn = jax.lax.cond(how.temperature > 0, sampled, greedy, shifted)
    logprob = _at(shifted, token) - jnp.log(total)
    broken = ~jnp.isfinite(top[:, 0])
    return Draw(jnp.where(broken, -1, token), logprob, drawn)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[:, None], axis=-1)[:, 0]


def _invert(weight: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first token of each row up to which `uniform` of its weight [B, V] lies, and the sum of the row's weights.

    It is looked for among the sums of PARTS first, then in one of them: no running sum of a whole vocabulary.
    """
    rows, size = weight.shape
    parts = PARTS if size > 4 * PARTS else 1
    weight = jnp.pad(weight, ((0, 0), (0, -size % parts))).reshape(rows, parts, -1)
    sums = weight.sum(axis=-1)
    part, before = _first_beyond(sums, uniform * sums.sum(axis=-1))
    inside = jnp.take_along_axis(weight, part[:, None, None], axis=1)[:, 0]
    token, _ = _first_beyond(inside, uniform * sums.sum(axis=-1) - before)
    return part * weight.shape[-1] + token, sums.sum(axis=-1)


def _first_beyond(weight: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index of each row whose running sum exceeds the target and whose weight is not 0, and the sum before.

    Where rounding puts the target at or past the end, the last index that has weight.
    """
    running = jnp.cumsum(weight, axis=-1)
    possible = weight > 0
    found = possible & (running > target[:, None])
    last = weight.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    index = jnp.where(found.any(axis=-1), jnp.argmax(found, axis=-1), last).astype(jnp.int32)
    return index, _at(running, index) - _at(weight, index)


def _threshold(scaled: jax.Array, weight: jax.Array, how: Filters) -> jax.Array:
    """The least scaled logit [B] that may be drawn; equal ones are kept or dropped together.

    Found by bisection over the bits of a float, exact after 32 halvings: no sort of the vocabulary.
    """
    v = scaled.shape[-1]
    k = jnp.where(how.top_k > 0, jnp.minimum(how.top_k, v), v)
    kth = _bisect(scaled, lambda kept: kept.sum(axis=-1) >= k)
    mass = jnp.where(scaled >= kth[:, None], weight, 0.0)
    enough = how.top_p * mass.sum(axis=-1)
    nucleus = _bisect(scaled, lambda kept: jnp.where(kept, mass, 0.0).sum(axis=-1) >= enough)
    nucleus = jnp.where(how.top_p < 1, nucleus, -jnp.inf)
    return jnp.maximum(jnp.maximum(kth, nucleus), jnp.where(how.min_p > 0, jnp.log(how.min_p), -jnp.inf))


def _bisect(x: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest value t [B] of each row of x <= 0 for which enough(x >= t): floats <= 0 fall as their bits rise."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, -0.0, x), jnp.uint32) & 0x7FFFFFFF

    def halve(i: jax.Array, bounds: tuple) -> tuple:
        low, high = bounds  # enough(bits <= high), not enough(bits < low)
        middle = low + (high - low) // 2
        ok = enough(bits <= middle[:, None])
        return jnp.where(ok, low, middle + 1), jnp.where(ok, middle, high)

    start = jnp.zeros(len(x), jnp.uint32), jnp.full(len(x), 0x7F800000, jnp.uint32)
    _, high = jax.lax.fori_loop(0, 32, halve, start)
    return -jax.lax.bitcast_convert_type(high, jnp.float32)
