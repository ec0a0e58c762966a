"""The jitted programs of the sampler: prefill, spread, decode, shrink. All shapes come from the engine's short lists.

Rows are right-aligned: a prefix of n tokens ends at the same column for every row, and row b starts at column
start[b]. So each decode step writes one column of the cache, for all rows, with one slice update.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from astro_jax.llama import model
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.model import Cache
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding

CACHE_AXES = (None, "batch", "kv_heads", None, None)  # keys [L, B, K, h, T], values [L, B, K, T, h]


@struct.dataclass
class Rows:
    """The state of the rows that decode together."""

    cache: Any  # Cache of T columns
    token: Any  # int32 [B]: the last token of each row, not in the cache yet
    start: Any  # int32 [B]: the first column of each row
    key: Any  # uint32 [B, 2]: the name of the row's sample, for its random draws
    left: Any  # int32 [B]: tokens that it may still emit; 0: the row has ended


def cache_sharding(sharding: Sharding) -> Cache:
    """Where the cache lies: rows over the batch axes, key-value heads over tp."""
    where = sharding.named(*CACHE_AXES)
    return Cache(k=where, v=where)


def rows_sharding(sharding: Sharding) -> Rows:
    """Where the rows lie."""
    row = sharding.named("batch")
    return Rows(cache=cache_sharding(sharding), token=row, start=row, key=row, left=row)


@functools.lru_cache(maxsize=32)
def make_prefill(config: LlamaConfig, sharding: Sharding) -> Callable[[Params, ArrayLike, ArrayLike], Cache]:
    """(params, tokens int32 [G, P] right-aligned, start int32 [G]) -> Cache of P columns."""

    @functools.partial(jax.jit, out_shardings=cache_sharding(sharding))
    def prefill(params: Params, tokens: jax.Array, start: jax.Array) -> Cache:
        column = jnp.arange(tokens.shape[1])[None, :]
        segments = (column >= start[:, None]).astype(jnp.int32)
        positions = jnp.maximum(column - start[:, None], 0)
        _, cache = model.hidden(
            params, tokens, config, positions=positions, segments=segments, sharding=sharding, keep_kv=True
        )
        assert cache is not None
        return cache

    return prefill


@functools.lru_cache(maxsize=32)
def make_spread(sharding: Sharding) -> Callable[[Rows, ArrayLike, int], Rows]:
    """(rows, index int32 [B'], columns) -> the rows at those indices, in a cache with room for `columns`.

    One program serves to copy a prefix to its samples, to drop rows that have ended, and to lengthen the cache.
    """

    @functools.partial(jax.jit, static_argnums=2, out_shardings=rows_sharding(sharding))
    def spread(rows: Rows, index: jax.Array, columns: int) -> Rows:
        grow = (0, columns - rows.cache.length)

        def layer(cache: Cache) -> Cache:
            k, v = (jnp.take(x, index, axis=0) for x in (cache.k, cache.v))
            return Cache(k=jnp.pad(k, ((0, 0),) * 3 + (grow,)), v=jnp.pad(v, ((0, 0),) * 2 + (grow, (0, 0))))

        # A layer at a time: rows move between devices, where all are gathered before each keeps its own.
        cache = jax.lax.map(layer, rows.cache)
        rest = jax.tree.map(lambda x: jnp.take(x, index, axis=0), dataclasses.replace(rows, cache=None))
        return dataclasses.replace(rest, cache=cache)

    return spread


@functools.lru_cache(maxsize=32)
def make_decode(
    config: LlamaConfig, sharding: Sharding, chunk: int, stop: tuple[int, ...]
) -> Callable[[Params, Rows, ArrayLike, ArrayLike], tuple[Rows, jax.Array, jax.Array]]:
    """Up to `chunk` steps for all rows; it stops early when all have ended. The rows are donated.

    (params, rows, column int32 [], temperature float32 []) -> (rows, tokens int32 [chunk, B], logprobs float32
    [chunk, B]); -1 stands where a row had ended. Temperature 0 is greedy.

    The log-probabilities are the policy's own, under the unmodified distribution (temperature 1).
    """
    where = rows_sharding(sharding)

    @functools.partial(
        jax.jit, donate_argnums=1, out_shardings=(where, sharding.named(None, "batch"), sharding.named(None, "batch"))
    )
    def decode(
        params: Params, rows: Rows, column: jax.Array, temperature: jax.Array
    ) -> tuple[Rows, jax.Array, jax.Array]:
        b = rows.token.shape[0]
        tokens = jnp.full((chunk, b), -1, jnp.int32)
        logprobs = jnp.zeros((chunk, b), jnp.float32)

        def step(carry: tuple) -> tuple:
            i, rows, tokens, logprobs = carry
            at = column + i
            logits, cache = model.decode(params, rows.token, rows.cache, at, rows.start, config, sharding=sharding)
            token, logp = _draw(logits, rows.key, at - rows.start, temperature)
            alive = rows.left > 0
            ended = (token[:, None] == jnp.asarray(stop, jnp.int32)[None, :]).any(
                axis=1
            )  # a step may end in hundreds of ways
            left = jnp.where(alive & ~ended, rows.left - 1, 0)
            tokens = tokens.at[i].set(jnp.where(alive, token, -1))
            logprobs = logprobs.at[i].set(jnp.where(alive, logp, 0.0))
            return i + 1, dataclasses.replace(rows, cache=cache, token=token, left=left), tokens, logprobs

        def going(carry: tuple) -> jax.Array:
            return (carry[0] < chunk) & jnp.any(carry[1].left > 0)

        _, rows, tokens, logprobs = jax.lax.while_loop(going, step, (0, rows, tokens, logprobs))
        return rows, tokens, logprobs

    return decode


def _draw(
    logits: jax.Array, keys: jax.Array, position: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row by the Gumbel-max trick; the noise is named by (sample, position), not drawn in order.

    logits [B, V], keys uint32 [B, 2], position int32 [B]. Returns (tokens int32 [B], log-probabilities [B]).
    """
    logp = jax.nn.log_softmax(logits, axis=-1)
    noise = jax.vmap(lambda k, p: jax.random.gumbel(jax.random.fold_in(k, p), logits.shape[-1:]))(keys, position)
    token = jnp.argmax(logp + temperature * noise, axis=-1).astype(jnp.int32)
    return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
