"""Keys and values of the tokens so far, in blocks of columns, and the attention of new tokens to them.

A lane is W rows that decode side by side and share up to S prefixes, each kept once. What a row has written itself lies
in a ring, where all rows write the same column of the same step: a row that ends is followed by another without moving
anything. Both are attended to block by block, as far as they are filled, with one matmul a lane for the prefixes, and
merged by log-sum-exp (Hydragen, arXiv 2402.05099; bifurcated attention, arXiv 2403.08845).

On a TPU the columns that a program writes are out of the ring, on a stage, while it decodes: for a loop that writes to
the ring XLA lays it out by its columns there, and copies all of it, each step, for the matmuls that read it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from astro_jax.errors import AstroError
from astro_jax.llama.attention import NEG_INF
from astro_jax.llama.config import LlamaConfig
from astro_jax.mesh import Sharding

# Groups of rows whose own tokens are attended to no further than the oldest of them needs.
TILES = 4
STAGE = {"tpu": 32}  # columns of a stage; elsewhere none is needed, and taking it costs a tenth


@struct.dataclass
class KV:
    """Keys [..., h, C] and values [..., C, h], each as its product with a query reads it in order: on a CPU the other
    order of either is ten times slower, once the store has outgrown the processor's own cache."""

    k: Any
    v: Any


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of both stores: prefixes [L, P, B / W x S, K, h, C] and suffixes [L, R, tiles, B / tiles, K, h, C].

    A stage is [L, 1, tiles, B / tiles, K, h, n]: n neighbouring columns of the ring that lie in one block.

    Attributes:
      rows: B, those that decode at once.
      lane: W, rows that share prefixes; it divides the rows of a device.
      prefix_blocks, suffix_blocks: P and R, blocks of columns.
      block: C, columns of a block.
      devices: over which rows are split.
    """

    rows: int
    lane: int
    prefix_blocks: int
    suffix_blocks: int
    block: int
    devices: int = 1

    @property
    def lanes(self) -> int:
        return self.rows // self.lane

    @property
    def prefixes(self) -> int:
        """S, of each lane."""
        return prefixes_of(self.lane)

    @property
    def slots(self) -> int:
        """Prefixes of all lanes; those of lane i are slots i S to i S + S - 1."""
        return self.lanes * self.prefixes

    def shrinks_to(self, rows: int) -> bool:
        """Whether a batch of so many rows, one a lane, is smaller in every store."""
        return rows < self.rows and rows <= self.slots

    @property
    def tiles(self) -> int:
        """A tile takes every tiles-th row, so that each lies on all devices."""
        tiles = TILES
        while self.rows // self.devices % tiles:
            tiles //= 2
        return tiles


def prefixes_of(lane: int) -> int:
    """S: a second one lets the next group begin in rows that are free, before the last sample of the first ends."""
    return 1 if lane == 1 else 2


def row_bytes(config: LlamaConfig, prefix: int, new: int, lane: int, itemsize: int) -> int:
    """Bytes of the caches that one row takes, over all devices: 2 L K h (new + S prefix / W) itemsize.

    Args:
      prefix, new: columns of a prefix and of a row's own tokens. lane: W, and S is 2, or 1 where W is 1.
      itemsize: bytes of a number of the cache, which has the type of the weights.
    """
    column = 2 * config.n_layers * config.n_kv_heads * config.head_dim * itemsize
    return column * new + column * prefix * prefixes_of(lane) // lane


def rows_that_fit(
    budget: int, config: LlamaConfig, prefix: int, new: int, lane: int, itemsize: int, sharding: Sharding
) -> int:
    """The most rows whose caches fit `budget` bytes a device: budget x devices / row_bytes, in whole lanes a device.

    Raises:
      AstroError: when not even one lane a device fits.
    """
    unit = lane * sharding.batch_size
    each = unit * row_bytes(config, prefix, new, lane, itemsize)
    lanes = budget * sharding.mesh.size // each
    if not lanes:
        raise AstroError(
            f"sampler: a memory budget of {budget / 2**20:.1f} MiB a device does not hold one lane of {lane} rows "
            f"with {prefix} + {new} tokens, {each / sharding.mesh.size / 2**20:.1f} MiB; raise it, or lower the tokens"
        )
    return lanes * unit


def prefix_sharding(sharding: Sharding) -> KV:
    """Where prefixes lie: slots over the batch axes, key-value heads over tp."""
    where = sharding.named(None, None, "batch", "kv_heads", None, None)
    return KV(k=where, v=where)


def suffix_sharding(sharding: Sharding) -> KV:
    """Where suffixes lie: the rows of a tile over the batch axes, key-value heads over tp."""
    where = sharding.named(None, None, None, "batch", "kv_heads", None, None)
    return KV(k=where, v=where)


def shapes(config: LlamaConfig, s: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of prefixes and suffixes before [K, h, C] or [K, C, h]."""
    return (
        (config.n_layers, s.prefix_blocks, s.slots),
        (config.n_layers, s.suffix_blocks, s.tiles, s.rows // s.tiles),
    )


# ---- Attention


class Softmax(NamedTuple):
    """A softmax over the columns seen so far: the largest score, the sum of exponentials, the weighted values."""

    top: jax.Array  # float32 [..., n, 1]
    total: jax.Array  # float32 [..., n, 1]
    out: jax.Array  # float32 [..., n, h]

    def see(self, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> Softmax:
        """After the columns of one more block: q [..., n, h], k [..., h, C], v [..., C, h], visible [..., n, C]."""
        scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
        top = jnp.maximum(self.top, jnp.max(jnp.where(visible, scores, NEG_INF), axis=-1, keepdims=True))
        weight = jnp.where(visible, jnp.exp(scores - top), 0.0)
        keep = jnp.exp(self.top - top)
        out = jnp.matmul(weight.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return Softmax(top, self.total * keep + weight.sum(-1, keepdims=True), self.out * keep + out)

    def map(self, f: Callable[[jax.Array], jax.Array]) -> Softmax:
        return Softmax(f(self.top), f(self.total), f(self.out))


@struct.dataclass
class Past:
    """What the rows of one decode step may attend to."""

    prefix: KV
    suffix: KV
    stage: KV | None
    visible: Any  # int32 [S, B]: columns of each prefix of its lane that a row sees
    age: Any  # int32 [B]: the newest columns of ring and stage that are the row's own
    now: Any  # int32 []: the step, counted from the first; it writes column now mod ring
    prefix_blocks: Any  # int32 [S]: blocks that the longest prefix fills
    oldest: Any  # int32 [tiles]: the first step of the oldest row of each tile


def attend(past: Past, layer: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of one new token a row to its prefix, to the row's own tokens and to itself.

    q [B, 1, H, h]; k, v [B, 1, K, h]. Returns [B, 1, H, h].
    """
    b, _, n, h = q.shape
    kv = k.shape[2]
    q = q.reshape(b, kv, n // kv, h) * h**-0.5
    own = jnp.einsum("bkgh,bkh->bkg", q, k[:, 0], preferred_element_type=jnp.float32)[..., None]
    value = jnp.broadcast_to(v[:, 0, :, None, :].astype(jnp.float32), q.shape)
    seen = Softmax(own, jnp.ones_like(own), value)
    seen = _attend_prefixes(past, layer, q, seen)
    seen = _attend_suffixes(past, layer, q, seen)
    return (seen.out / seen.total).astype(q.dtype).reshape(b, 1, n, h)


def _attend_prefixes(past: Past, layer: jax.Array, q: jax.Array, seen: Softmax) -> Softmax:
    """q [B, K, H / K, h]: the rows of a lane are one matmul, against each of its prefixes."""
    b, kv, group, _ = q.shape
    slots = len(past.visible)
    lanes, columns = past.prefix.k.shape[2] // slots, past.prefix.k.shape[-1]
    rows = b // lanes

    def to_lanes(x: jax.Array) -> jax.Array:
        x = x.reshape(lanes, rows, kv, group, -1).swapaxes(1, 2)
        return x.reshape(lanes, kv, rows * group, -1)

    def to_rows(x: jax.Array) -> jax.Array:
        x = x.reshape(lanes, kv, rows, group, -1).swapaxes(1, 2)
        return x.reshape(b, kv, group, -1)

    q, seen = to_lanes(q), seen.map(to_lanes)
    for slot in range(slots):
        limit = jnp.repeat(past.visible[slot].reshape(lanes, rows), group, axis=1)[:, None, :, None]

        def see(j: jax.Array, seen: Softmax, slot: int = slot, limit: jax.Array = limit) -> Softmax:
            # The store itself keeps its axes: XLA on a CPU would copy it whole, each layer, to split them where S is 1.
            k, v = (x[layer, j].reshape(lanes, slots, *x.shape[3:])[:, slot] for x in (past.prefix.k, past.prefix.v))
            column = (j * columns + jnp.arange(columns))[None, None, None, :]
            return seen.see(q, k, v, column < limit)

        seen = jax.lax.fori_loop(0, past.prefix_blocks[slot], see, seen)
    return seen.map(to_rows)


def _attend_suffixes(past: Past, layer: jax.Array, q: jax.Array, seen: Softmax) -> Softmax:
    """q [B, K, H / K, h]: the blocks that every tile needs for all rows at once, older ones only for the tiles that do.

    So one long sample among short ones costs its own tile, and equal ones cost no loop over tiles.
    """
    _, blocks, tiles, rows, _, _, columns = past.suffix.k.shape
    ring = blocks * columns

    def to_tiles(x: jax.Array) -> jax.Array:
        return x.reshape(rows, tiles, *x.shape[1:]).swapaxes(0, 1)

    def to_rows(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(rows * tiles, *x.shape[2:])

    q, seen, age = to_tiles(q), seen.map(to_tiles), to_tiles(past.age)  # [tiles, B / tiles, ...]

    begun = past.now  # the step up to which columns are in the ring
    if past.stage is not None:
        staged = past.stage.k.shape[-1]
        begun = past.now // staged * staged
        back = (past.now - 1 - begun - jnp.arange(staged)) % ring  # steps before the last
        seen = seen.see(q, past.stage.k[layer, 0], past.stage.v[layer, 0], _own(back, age))
        age = jnp.minimum(age - (past.now - begun), ring - staged)

    def see(j: jax.Array, first: jax.Array | int, n: int, q: jax.Array, seen: Softmax, age: jax.Array) -> Softmax:
        """Block j of n tiles from the first on."""
        k, v = (
            jax.lax.dynamic_slice(x, (layer, j % blocks, first, 0, 0, 0, 0), (1, 1, n, *x.shape[3:]))[0, 0]
            for x in (past.suffix.k, past.suffix.v)
        )
        return seen.see(q, k, v, _own((begun - 1 - j * columns - jnp.arange(columns)) % ring, age))

    # A ring that is full may begin and end in the same block, which is seen once.
    end = (begun + columns - 1) // columns
    first = jnp.where(past.oldest < begun, jnp.maximum(past.oldest // columns, end - blocks), end)
    begin = jnp.max(first)
    seen = jax.lax.fori_loop(begin, end, lambda j, seen: see(j, 0, tiles, q, seen, age), seen)

    def older(tile: tuple) -> Softmax:
        at, first, q, seen, age = tile
        q, seen, age = q[None], seen.map(lambda x: x[None]), age[None]
        seen = jax.lax.fori_loop(first, begin, lambda j, seen: see(j, at, 1, q, seen, age), seen)
        return seen.map(lambda x: x[0])

    tiled = (jnp.arange(tiles), first, q, seen, age)
    return jax.lax.cond(jnp.any(first < begin), lambda: jax.lax.map(older, tiled), lambda: seen).map(to_rows)


def _own(back: jax.Array, age: jax.Array) -> jax.Array:
    """Which columns, written so many steps before the last, are a row's own: bool [tiles, B / tiles, 1, 1, columns]."""
    return (back[None, None, :] < age[:, :, None])[:, :, None, None, :]


def finite(x: jax.Array) -> jax.Array:
    """With 0 for what is not a number: a column that is masked out would still spread it to the rows that share it."""
    return jnp.where(jnp.isfinite(x), x, 0)


def take_stage(suffix: KV, now: jax.Array, sharding: Sharding) -> KV | None:
    """The columns of the ring around that of step `now`, where a stage is needed."""
    platform = sharding.platform
    if platform not in STAGE:
        return None
    staged = math.gcd(STAGE[platform], suffix.k.shape[-1])

    def local(suffix: KV, now: jax.Array) -> KV:
        layers, _, tiles, rows, kv, h, _ = suffix.k.shape

        def take(layer: jax.Array) -> KV:
            at = _at(suffix, now, layer, staged)
            k = jax.lax.dynamic_slice(suffix.k, at.k, (1, 1, tiles, rows, kv, h, staged))[0]
            v = jax.lax.dynamic_slice(suffix.v, at.v, (1, 1, tiles, rows, kv, staged, h))[0]
            # Else the ring would be given the order that suits the stage.
            return jax.tree.map(lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), KV(k=k, v=v))

        return jax.lax.map(take, jnp.arange(layers))  # as one slice, XLA would pad it to whole vectors

    spec = suffix_sharding(sharding).k.spec
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)(suffix, now)


def put_stage(suffix: KV, stage: KV, now: jax.Array) -> KV:
    """The ring with those columns back in it."""

    def put(layer: jax.Array, suffix: KV) -> KV:
        at = _at(suffix, now, layer, stage.k.shape[-1])
        k, v = (jax.lax.dynamic_index_in_dim(x, layer) for x in (stage.k, stage.v))
        return KV(k=jax.lax.dynamic_update_slice(suffix.k, k, at.k), v=jax.lax.dynamic_update_slice(suffix.v, v, at.v))

    return jax.lax.fori_loop(0, len(suffix.k), put, suffix)


def _at(suffix: KV, now: jax.Array, layer: jax.Array | int = 0, n: int = 1) -> KV:
    """Where the n columns around that of step `now` lie in a ring or stage, from a layer on."""
    blocks, columns = suffix.k.shape[1], suffix.k.shape[-1]
    block, column = now // columns % blocks, now % columns // n * n
    return KV(k=(layer, block, 0, 0, 0, 0, column), v=(layer, block, 0, 0, 0, column, 0))


def write(written: KV, k: jax.Array, v: jax.Array, now: jax.Array) -> KV:
    """The ring, or the stage, with the column of this step: k, v [L, B, 1, K, h]."""
    layers, _, tiles, rows, kv, h, _ = written.k.shape
    at = _at(written, now)
    k, v = (finite(x).reshape(layers, 1, rows, tiles, kv, h).swapaxes(2, 3) for x in (k, v))
    return KV(
        k=jax.lax.dynamic_update_slice(written.k, k[..., :, None], at.k),
        v=jax.lax.dynamic_update_slice(written.v, v[..., None, :], at.v),
    )
