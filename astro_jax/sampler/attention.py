"""Attention to the key-value cache, block by block, merged by an online softmax.

`attend` is the attention of decoding: one new token a row. `attend_chunk` is that of prefill: a chunk of a prompt.

Decoding loops over the blocks that hold columns of a live row. On a GPU the host decides before each turn of such a
loop whether it goes on, and the card waits: two thirds of the time of a small model (docs/gpu.md). There `attend`
reads all blocks of the cache at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from astro_jax.llama import attention
from astro_jax.llama.attention import NEG_INF
from astro_jax.llama.quantized import QuantizedArray
from astro_jax.mesh import Sharding
from astro_jax.sampler.kv_cache import KV, Array, KVCache

# The platforms where decoding reads all blocks at once.
LOOPLESS_PLATFORMS = {"gpu"}


class _Softmax(NamedTuple):
    """An online softmax over the columns so far: largest score, sum of exponentials, sum of weighted values."""

    max: jax.Array  # float32 [..., n, 1]
    total: jax.Array  # float32 [..., n, 1]
    out: jax.Array  # float32 [..., n, h]

    def update(self, q: jax.Array, kv: KV, visible: jax.Array) -> _Softmax:
        """Add the columns of one block: q [..., n, h], keys [..., h, C], values [..., C, h], visible [..., n, C]."""
        scores = _scores(q, kv.k)
        top = jnp.maximum(self.max, jnp.max(jnp.where(visible, scores, NEG_INF), axis=-1, keepdims=True))
        weight = jnp.where(visible, jnp.exp(scores - top), 0.0)
        keep = jnp.exp(self.max - top)
        out = _weighted_sum(weight, kv.v)
        return _Softmax(top, self.total * keep + weight.sum(-1, keepdims=True), self.out * keep + out)

    def update_all(self, q: jax.Array, kv: KV, visible: jax.Array) -> _Softmax:
        """Add the columns of J blocks: keys [J, ..., h, C], values [J, ..., C, h], visible [J, ..., n, C]."""
        empty = _Softmax(jnp.full_like(self.max, NEG_INF), jnp.zeros_like(self.total), jnp.zeros_like(self.out))
        blocks = jax.vmap(lambda kv, visible: empty.update(q, kv, visible))(kv, visible)
        top = jnp.maximum(self.max, blocks.max.max(0))
        keep, weight = jnp.exp(self.max - top), jnp.exp(blocks.max - top[None])
        return _Softmax(
            top, self.total * keep + (blocks.total * weight).sum(0), self.out * keep + (blocks.out * weight).sum(0)
        )

    def map(self, f: Callable[[jax.Array], jax.Array]) -> _Softmax:
        return _Softmax(f(self.max), f(self.total), f(self.out))


def _scores(q: jax.Array, k: Array | QuantizedArray) -> jax.Array:
    """The products of queries [..., n, h] and keys [..., h, C], float32 [..., n, C]."""
    if isinstance(k, QuantizedArray):
        return _scores(q, k.values.astype(q.dtype)) * k.scale[..., None, :]
    return jnp.matmul(q, k, preferred_element_type=jnp.float32)


def _weighted_sum(weight: jax.Array, v: Array | QuantizedArray) -> jax.Array:
    """The sum of values [..., C, h] with weights float32 [..., n, C], float32 [..., n, h]."""
    if isinstance(v, QuantizedArray):
        return _weighted_sum(weight * v.scale[..., None, :], v.values.astype(v.dtype))
    return jnp.matmul(weight.astype(v.dtype), v, preferred_element_type=jnp.float32)


@struct.dataclass
class CacheView:
    """The cache as the rows of one decode step see it, in one layer.

    Attributes:
      cache: the keys and values of all layers.
      visible: int32 [prefixes_per_group, B], columns of each prefix of its group that a row attends to.
      age: int32 [B], the newest columns of the completion part that are the row's own.
      step: int32 [], counted from the start of the call.
      prefix_blocks: int32 [prefixes_per_group], blocks that the longest prefix fills.
      oldest: int32 [row_groups], the step at which the oldest row of each row group started.
      layer: int32 [].
      loops: whether to loop over the blocks that are needed. False: read all blocks at once.
    """

    cache: KVCache
    visible: Array
    age: Array
    step: Array
    prefix_blocks: Array
    oldest: Array
    layer: Array
    loops: bool = struct.field(pytree_node=False, default=True)


def attend(cache: CacheView, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attend from one new token a row to its prompt, to its earlier new tokens, and to itself.

    Args:
      cache: the cache in one layer. It does not hold the new token yet.
      q: [B, 1, H, h], queries of the new tokens.
      k: [B, 1, K, h], keys of the new tokens.
      v: [B, 1, K, h], values of the new tokens.

    Returns:
      [B, 1, H, h].
    """
    b, _, n, h = q.shape
    kv = k.shape[2]
    chex.assert_shape([k, v], (b, 1, kv, h))
    chex.assert_shape(cache.age, (b,))
    q = q.reshape(b, kv, n // kv, h) * h**-0.5
    own = jnp.einsum("bkgh,bkh->bkg", q, k[:, 0], preferred_element_type=jnp.float32)[..., None]
    value = jnp.broadcast_to(v[:, 0, :, None, :].astype(jnp.float32), q.shape)
    softmax = _Softmax(own, jnp.ones_like(own), value)
    softmax = _attend_prefixes(cache, q, softmax)
    softmax = _attend_completions(cache, q, softmax)
    return (softmax.out / softmax.total).astype(q.dtype).reshape(b, 1, n, h)


def _attend_prefixes(view: CacheView, q: jax.Array, softmax: _Softmax) -> _Softmax:
    """Attend to the prefixes: the rows of a group share one matmul a prefix. q is [B, K, H / K, h]."""
    b, kv, heads, _ = q.shape
    prefix, prefixes = view.cache.prefix, len(view.visible)
    groups, columns = prefix.keys.shape[2] // prefixes, prefix.keys.shape[-1]
    rows = b // groups

    def to_groups(x: jax.Array) -> jax.Array:
        x = x.reshape(groups, rows, kv, heads, -1).swapaxes(1, 2)
        return x.reshape(groups, kv, rows * heads, -1)

    def to_rows(x: jax.Array) -> jax.Array:
        x = x.reshape(groups, kv, rows, heads, -1).swapaxes(1, 2)
        return x.reshape(b, kv, heads, -1)

    q, softmax = to_groups(q), softmax.map(to_groups)
    for i in range(prefixes):
        limit = jnp.repeat(view.visible[i].reshape(groups, rows), heads, axis=1)[:, None, :, None]
        if not view.loops:
            grouped = jax.tree.map(lambda x: x[view.layer].reshape(-1, groups, prefixes, *x.shape[3:]), prefix)
            blocks = jax.tree.map(operator.itemgetter((slice(None), slice(None), i)), grouped)
            column = jnp.arange(len(blocks.keys) * columns).reshape(-1, 1, 1, 1, columns)
            softmax = softmax.update_all(q, blocks, column < limit[None])
            continue

        def add_block(j: jax.Array, softmax: _Softmax, i: int = i, limit: jax.Array = limit) -> _Softmax:
            # Reshape the block, not the cache: XLA on a CPU would copy the whole cache, each layer.
            block = jax.tree.map(lambda x: x[view.layer, j].reshape(groups, prefixes, *x.shape[3:])[:, i], prefix)
            column = (j * columns + jnp.arange(columns))[None, None, None, :]
            return softmax.update(q, block, column < limit)

        softmax = jax.lax.fori_loop(0, view.prefix_blocks[i], add_block, softmax)
    return softmax.map(to_rows)


def _attend_completions(view: CacheView, q: jax.Array, softmax: _Softmax) -> _Softmax:
    """Attend to each row's own tokens in the ring buffer and in the write buffer. q is [B, K, H / K, h].

    Blocks that all row groups need are read for all rows at once, older blocks only for the row groups that need them.
    So one long sequence among short ones costs its own row group, and sequences of equal length cost no extra loop.
    """
    completion, buffer = view.cache.completion, view.cache.write_buffer
    _, blocks, groups, rows, _, _, columns = completion.keys.shape
    ring = blocks * columns

    def to_groups(x: jax.Array) -> jax.Array:
        return x.reshape(rows, groups, *x.shape[1:]).swapaxes(0, 1)

    def to_rows(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(rows * groups, *x.shape[2:])

    q, softmax, age = to_groups(q), softmax.map(to_groups), to_groups(view.age)  # [row_groups, B / row_groups, ...]

    end_step = view.step  # the ring buffer holds the columns of the steps before
    if buffer is not None:
        buffered = buffer.keys.shape[-1]
        end_step = view.step // buffered * buffered
        back = (view.step - 1 - end_step - jnp.arange(buffered)) % ring  # steps before the last
        softmax = softmax.update(q, jax.tree.map(lambda x: x[view.layer, 0], buffer), _is_own(back, age))
        age = jnp.minimum(age - (view.step - end_step), ring - buffered)

    def add_block(
        j: jax.Array, first: jax.Array | int, n: int, q: jax.Array, softmax: _Softmax, age: jax.Array
    ) -> _Softmax:
        """Add block j of n row groups from the first on."""

        def read(x: jax.Array) -> jax.Array:
            start = (view.layer, j % blocks, first, *[0] * (x.ndim - 3))
            return jax.lax.dynamic_slice(x, start, (1, 1, n, *x.shape[3:]))[0, 0]

        is_own = _is_own((end_step - 1 - j * columns - jnp.arange(columns)) % ring, age)
        return softmax.update(q, jax.tree.map(read, completion), is_own)

    if not view.loops:
        back = (end_step - 1 - jnp.arange(ring)) % ring
        is_own = jax.vmap(lambda back: _is_own(back, age))(back.reshape(blocks, columns))
        return softmax.update_all(q, jax.tree.map(lambda x: x[view.layer], completion), is_own).map(to_rows)

    # The oldest and the newest column of a full ring may lie in the same block, which is read once.
    end = (end_step + columns - 1) // columns
    first = jnp.where(view.oldest < end_step, jnp.maximum(view.oldest // columns, end - blocks), end)
    common = jnp.max(first)  # the first block that all row groups need
    softmax = jax.lax.fori_loop(common, end, lambda j, s: add_block(j, 0, groups, q, s, age), softmax)

    def add_older(inputs: tuple) -> _Softmax:
        group, first, q, softmax, age = inputs
        q, softmax, age = q[None], softmax.map(lambda x: x[None]), age[None]
        softmax = jax.lax.fori_loop(first, common, lambda j, s: add_block(j, group, 1, q, s, age), softmax)
        return softmax.map(lambda x: x[0])

    inputs = (jnp.arange(groups), first, q, softmax, age)
    return jax.lax.cond(jnp.any(first < common), lambda: jax.lax.map(add_older, inputs), lambda: softmax).map(to_rows)


def _is_own(back: jax.Array, age: jax.Array) -> jax.Array:
    """Whether a column is the row's own: bool [row_groups, B / row_groups, 1, 1, columns].

    Args:
      back: int32 [columns], steps from each column to the last step.
      age: int32 [row_groups, B / row_groups].
    """
    return (back[None, None, :] < age[:, :, None])[:, :, None, None, :]


def attend_chunk(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    causal: jax.Array,
    block: jax.Array,
    load_block: Callable[[jax.Array], KV],
    sharding: Sharding,
) -> jax.Array:
    """Attend from a chunk of N prompts, S tokens each, to the earlier blocks of the prompts and to the chunk itself.

    Args:
      q: [N, S, H, h].
      k: [N, S, K, h].
      v: [N, S, K, h].
      causal: bool [1, 1, S, S], the tokens of the chunk that each token of the chunk attends to.
      block: int32 [N], the number of blocks before the chunk.
      load_block: from j, int32 [], to block j of each prompt: keys [N, K, h, C], values [N, K, C, h].
      sharding: of decoding.

    Returns:
      [N, S, H, h].
    """
    n, columns = q.shape[:2]
    kv, h = k.shape[2:]
    chex.assert_shape([k, v], (n, columns, kv, h))
    chex.assert_shape(causal, (1, 1, columns, columns))
    chex.assert_shape(block, (n,))
    heads = q.shape[2] // kv

    def heads_first(x: jax.Array) -> jax.Array:
        x = x.reshape(n, columns, kv, heads, -1).transpose(0, 2, 3, 1, 4)
        return x.reshape(n, kv, heads * columns, -1)

    queries = heads_first(q) * h**-0.5
    if attention.choose_kernel(sharding, columns, h) == "splash":
        ones = jnp.ones((n, columns), jnp.int32)
        out, sums = map(heads_first, attention.splash_with_logsumexp(q, k, v, ones, sharding))
        softmax = _Softmax(sums, jnp.ones_like(sums), out.astype(jnp.float32))
    else:
        zero = jnp.zeros((*queries.shape[:3], 1), jnp.float32)
        empty = _Softmax(zero + NEG_INF, zero, jnp.zeros(queries.shape, jnp.float32))
        chunk = KV(k=k.transpose(0, 2, 3, 1), v=v.swapaxes(1, 2))
        softmax = empty.update(queries, chunk, jnp.tile(causal, (1, 1, heads, 1)))

    def add_block(j: jax.Array, softmax: _Softmax) -> _Softmax:
        visible = (j < block)[:, None, None, None]
        return softmax.update(queries, load_block(j), visible)

    softmax = jax.lax.fori_loop(0, jnp.max(block), add_block, softmax)
    out = (softmax.out / softmax.total).astype(q.dtype).reshape(n, kv, heads, columns, h)
    return out.transpose(0, 3, 1, 2, 4).reshape(n, columns, kv * heads, h)
