"""The jitted programs of the sampler: allocate, prefill, copy, decode, pack. All shapes come from `Shape`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from astro_jax.llama import attention, model
from astro_jax.llama.attention import NEG_INF
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.sampler import cache
from astro_jax.sampler.cache import KV, Past, Shape, Softmax
from astro_jax.sampler.draw import Filters, draw

ENDED, BROKEN = -1, -2  # in place of a token: the row had ended before; its logits were not numbers


@struct.dataclass
class Rows:
    """The rows that decode together; the host makes it anew for each call. All are [B]."""

    token: Any  # int32: the last token of each row, not in the cache yet
    position: Any  # int32: its position
    length: Any  # int32: tokens of the row's prefix that are in the cache; what came later is in the ring
    slot: Any  # int32: which prefix of its lane, from 0
    key: Any  # uint32 [B, 2]: the name of the row's sample, for its random draws
    left: Any  # int32: tokens that it may still emit; 0: the row has ended


@struct.dataclass
class Span:
    """What one call of the decode program covers."""

    now: Any  # int32 []: the step to begin with
    prefix_blocks: Any  # int32 [S]: blocks that the longest prefix fills
    oldest: Any  # int32 [tiles]: the first step of the oldest row of each tile
    enough: Any  # int32 []: the program returns when so few rows go on


@functools.lru_cache(maxsize=32)
def make_allocate(config: LlamaConfig, sharding: Sharding, dtype: Any) -> tuple[Callable[[Shape], KV], ...]:
    """(shape) -> prefixes of zeros, and the same for suffixes."""

    def allocate(axes: tuple[int, ...], block: int) -> KV:
        kv, h = config.n_kv_heads, config.head_dim
        return KV(k=jnp.zeros((*axes, kv, h, block), dtype), v=jnp.zeros((*axes, kv, block, h), dtype))

    def of(which: int, where: KV) -> Callable[[Shape], KV]:
        return jax.jit(
            lambda shape: allocate(cache.shapes(config, shape)[which], shape.block),
            static_argnums=0, out_shardings=where,
        )  # fmt: skip

    return of(0, cache.prefix_sharding(sharding)), of(1, cache.suffix_sharding(sharding))


@functools.lru_cache(maxsize=32)
def make_prefill(config: LlamaConfig, sharding: Sharding) -> Callable[..., tuple[KV, jax.Array]]:
    """A chunk of each of N prefixes, c blocks of C tokens, into the store, which is donated.

    (params, prefix KV, tokens int32 [N, c C], block int32 [N], slot int32 [N]) -> (prefix KV, sound bool [N]: whether
    the model gave numbers). `block` is the first of the chunk; those before are there already. Slots are counted from
    the first of the device that row n lies on; one that is not there marks a row without work. A chunk that is not full
    is padded at its end: the store holds numbers there that no row looks at.
    """
    where = cache.prefix_sharding(sharding)
    batch = sharding.spec(["batch"])
    kept = where.k.spec

    def local(f: Callable, ins: tuple, outs: Any) -> Callable:
        """Each device works on its own lanes."""
        return jax.shard_map(f, mesh=sharding.mesh, in_specs=ins, out_specs=outs)

    def take(x: jax.Array, layer: jax.Array, block: jax.Array, slot: jax.Array) -> jax.Array:
        return x.at[layer, block, slot].get(mode="clip")

    def put(x: jax.Array, new: jax.Array, block: jax.Array, slot: jax.Array) -> jax.Array:
        blocks = block[:, None] + jnp.arange(new.shape[2])[None, :]
        return x.at[:, blocks, slot[:, None]].set(new, mode="drop")

    heads, scalar = kept[3:], PartitionSpec()
    gather = local(take, (kept, scalar, scalar, batch), PartitionSpec(*batch, *heads))
    scatter = local(put, (kept, PartitionSpec(None, *batch, None, *heads), batch, batch), kept)

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=(where, sharding.named()))
    def prefill(
        params: Params, prefix: KV, tokens: jax.Array, block: jax.Array, slot: jax.Array
    ) -> tuple[KV, jax.Array]:
        n, columns = tokens.shape
        size = prefix.k.shape[-1]
        column = jnp.arange(columns)
        token, block, slot = (sharding.constrain(x, "batch") for x in (tokens, block, slot))
        own = (column[:, None] >= column[None, :])[None, None]

        def attend(layer: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kv, h = k.shape[2:]
            group = q.shape[2] // kv

            def heads_first(x: jax.Array) -> jax.Array:
                x = x.reshape(n, columns, kv, group, -1).transpose(0, 2, 3, 1, 4)
                return x.reshape(n, kv, group * columns, -1)

            queries = heads_first(q) * h**-0.5
            if attention.choose_kernel(sharding, columns, h) == "splash":
                out, sums = map(heads_first, attention.splash_with_logsumexp(q, k, v, jnp.ones_like(token), sharding))
                seen = Softmax(sums, jnp.ones_like(sums), out.astype(jnp.float32))
            else:
                zero = jnp.zeros((*queries.shape[:3], 1), jnp.float32)
                nothing = Softmax(zero + NEG_INF, zero, jnp.zeros(queries.shape, jnp.float32))
                seen = nothing.see(queries, k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), jnp.tile(own, (1, 1, group, 1)))

            def see(j: jax.Array, seen: Softmax) -> Softmax:
                before = (j < block)[:, None, None, None]
                return seen.see(queries, gather(prefix.k, layer, j, slot), gather(prefix.v, layer, j, slot), before)

            seen = jax.lax.fori_loop(0, jnp.max(block), see, seen)
            out = (seen.out / seen.total).astype(q.dtype).reshape(n, kv, group, columns, h)
            return out.transpose(0, 3, 1, 2, 4).reshape(n, columns, kv * group, h)

        positions = block[:, None] * size + column[None, :]
        x, k, v = model.forward_with_cache(params, token, positions, attend, config, sharding)
        sound = jnp.all(jnp.isfinite(x), axis=(1, 2))
        k, v = (cache.finite(x).reshape(*x.shape[:2], -1, size, *x.shape[3:]) for x in (k, v))  # [L, N, c, C, K, h]
        k, v = jnp.moveaxis(k, 3, 5), v.swapaxes(3, 4)  # [L, N, c, K, h, C], [L, N, c, K, C, h]
        return KV(k=scatter(prefix.k, k, block, slot), v=scatter(prefix.v, v, block, slot)), sound

    return prefill


@functools.lru_cache(maxsize=32)
def make_decode(config: LlamaConfig, sharding: Sharding, chunk: int, filtered: bool) -> Callable[..., tuple]:
    """Up to `chunk` steps for all rows. The suffixes are donated; the prefixes are only read.

    (params, prefix KV, suffix KV, Rows, Span, Filters, ends bool [V]) -> (suffix KV, steps int32 [], tokens int32
    [chunk, B], logprobs float32 [chunk, B] of the model's own distribution, and of the one drawn from). In place of a
    token stand ENDED and BROKEN.
    """
    where = cache.suffix_sharding(sharding)

    # The host of every process reads what was sampled: it lies on all devices.
    @functools.partial(jax.jit, donate_argnums=2, out_shardings=(where, *[sharding.named()] * 4))
    def decode(params: Params, prefix: KV, suffix: KV, rows: Rows, span: Span, how: Filters, ends: jax.Array) -> tuple:
        rows = jax.tree.map(lambda x: sharding.constrain(x, "batch"), rows)
        slots = jnp.arange(len(span.prefix_blocks))
        visible = jnp.where(slots[:, None] == rows.slot[None, :], rows.length[None, :], 0)
        shape = (chunk, len(rows.token))
        out = (jnp.full(shape, ENDED, jnp.int32), jnp.zeros(shape), jnp.zeros(shape))
        stage = cache.take_stage(suffix, span.now, sharding)
        limit = chunk if stage is None else jnp.minimum(chunk, stage.k.shape[-1] - span.now % stage.k.shape[-1])

        def step(carry: tuple) -> tuple:
            i, written, token, left, out = carry
            position = rows.position + i
            now, age = span.now + i, position - rows.length
            ring, on_stage = (written, None) if stage is None else (suffix, written)
            past = Past(prefix, ring, on_stage, visible, age, now, span.prefix_blocks, span.oldest)
            attend = functools.partial(cache.attend, past)
            x, k, v = model.forward_with_cache(params, token[:, None], position[:, None], attend, config, sharding)
            drawn = draw(model.lm_head(params, x)[:, 0], rows.key, position, how, filtered)
            alive, broken = left > 0, drawn.token < 0
            token = jnp.maximum(drawn.token, 0)
            new = (jnp.where(broken, BROKEN, token), drawn.logprob, drawn.drawn_logprob)
            out = tuple(
                x.at[i].set(jnp.where(alive, y, none)) for x, y, none in zip(out, new, (ENDED, 0.0, 0.0), strict=True)
            )
            left = jnp.where(alive & ~broken & ~ends[token], left - 1, 0)
            return i + 1, cache.write(written, k, v, now), token, left, out

        def going(carry: tuple) -> jax.Array:
            i, _, _, left, _ = carry
            return (i < limit) & (jnp.sum(left > 0) > span.enough)

        begin = (jnp.int32(0), suffix if stage is None else stage, rows.token, rows.left, out)
        done, written, _, _, out = jax.lax.while_loop(going, step, begin)
        return written if stage is None else cache.put_stage(suffix, written, span.now), done, *out

    return decode


@functools.lru_cache(maxsize=32)
def make_copy(sharding: Sharding) -> tuple[Callable[..., KV], Callable[..., KV]]:
    """Blocks from slot to slot of a store of prefixes, and from one such store to another; what is written is donated.

    (KV, to int32 [N], from int32 [N], blocks int32 []) -> KV, and (KV, source KV, ...) -> KV. `to` and `from` are
    slots; one that is not there marks a row without work. All blocks before `blocks` are copied, between devices where
    need be.
    """
    where = cache.prefix_sharding(sharding)

    def copy(to: KV, source: KV | None, into: jax.Array, out: jax.Array, blocks: jax.Array) -> KV:
        def block(j: jax.Array, to: KV) -> KV:
            return jax.tree.map(lambda x, y: x.at[:, j, into].set(y[:, j, out], mode="drop"), to, source or to)

        return jax.lax.fori_loop(0, blocks, block, to)

    within = jax.jit(lambda to, *how: copy(to, None, *how), donate_argnums=0, out_shardings=where)
    return within, jax.jit(copy, donate_argnums=0, out_shardings=where)


@functools.lru_cache(maxsize=32)
def make_pack(config: LlamaConfig, sharding: Sharding) -> Callable[..., tuple[KV, KV]]:
    """(prefix KV, suffix KV, row int32 [B'], slot int32 [B'], shape) -> both stores of those rows, one a lane.

    A layer at a time: rows move between devices, where all of a layer's are gathered before each keeps its own.
    """
    where = (cache.prefix_sharding(sharding), cache.suffix_sharding(sharding))

    @functools.partial(jax.jit, static_argnums=4, out_shardings=where)
    def pack(prefix: KV, suffix: KV, row: jax.Array, slot: jax.Array, shape: Shape) -> tuple[KV, KV]:
        def of_suffix(x: jax.Array) -> jax.Array:  # a layer's [R, tiles, B / tiles, ...]
            blocks, tiles, _, *rest = x.shape
            x = x[:, row % tiles, row // tiles]
            return x.reshape(blocks, shape.rows // shape.tiles, shape.tiles, *rest).swapaxes(1, 2)

        def layer(stores: tuple[KV, KV]) -> tuple[KV, KV]:
            return jax.tree.map(lambda x: x[:, slot], stores[0]), jax.tree.map(of_suffix, stores[1])

        return jax.lax.map(layer, (prefix, suffix))

    return pack
