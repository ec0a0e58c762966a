"""The key-value cache: its layout, its arrays, their shardings and their size.

The cache has two parts. Prompts are kept once for all completions that share them (the prefixes). The keys and values
of new tokens are each completion's own. Both parts are blocks of C = block_size columns; a column holds one token.

    prefix.k      [L, prefix_blocks,     num_prefixes,               K, h, C]
    prefix.v      [L, prefix_blocks,     num_prefixes,               K, C, h]
    completion.k  [L, completion_blocks, row_groups, B / row_groups, K, h, C]
    completion.v  [L, completion_blocks, row_groups, B / row_groups, K, C, h]

The M rows of a prefix group are neighbours: group g holds rows g M to g M + M - 1, and shares `prefixes_per_group`
prefixes. The completion part is a ring buffer: at step t all rows write column t mod (completion_blocks C). So a row
that ends is given to the next sequence, and no key or value moves. A row group takes every `row_groups`-th row, so that
each row group lies on all devices.

A quantized cache holds int8 numbers, and a scale for each head and token: k and v are QuantizedArrays, whose scales are
[..., K, C] (`llama.quantized`).

Shared prefixes follow Hydragen (arXiv 2402.05099) and bifurcated attention (arXiv 2403.08845).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from astro_jax.errors import AstroError
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.quantized import QuantizedArray, dequantize, quantize
from astro_jax.mesh import Sharding

Array = Any  # jax.Array or jax.ShapeDtypeStruct
DType = np.dtype

MAX_ROW_GROUPS = 4


@struct.dataclass
class KV:
    """Keys [..., h, C] and values [..., C, h]: arrays, or QuantizedArrays.

    Each is stored in the order in which its product with a query reads it. The other order is ten times slower on a
    CPU, once the cache is larger than the cache of the processor.
    """

    k: Array | QuantizedArray
    v: Array | QuantizedArray

    @property
    def quantized(self) -> bool:
        """Whether the numbers are int8."""
        return isinstance(self.k, QuantizedArray)

    @property
    def keys(self) -> Array:
        """The array of the keys, without scales."""
        return self.k.values if isinstance(self.k, QuantizedArray) else self.k


class KVCache(struct.PyTreeNode):
    """The keys and values of all sequences that decode.

    Attributes:
      prefix: the prompts, shared by the rows of a prefix group.
      completion: the new tokens of each row, a ring buffer.
      write_buffer: on a TPU while it decodes, the columns around the current step (write_buffer.py), else None.
    """

    prefix: KV
    completion: KV
    write_buffer: KV | None = None


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """The sizes of a KVCache; the module's docstring has the shapes.

    For example, `CacheLayout(num_seqs=4, group_size=2, prefix_blocks=1, completion_blocks=2, block_size=4)`: two prefix
    groups of two rows; each group holds two prompts of up to 4 tokens, each row up to 8 new tokens.

    Attributes:
      num_seqs: B, the rows: sequences that decode at once.
      group_size: M, the rows of a prefix group. M divides the rows of a device.
      prefix_blocks: blocks of a prefix.
      completion_blocks: blocks of a row's new tokens.
      block_size: C, the columns of a block.
      devices: number of devices that the rows are split over.
      quantized: whether keys and values are int8 numbers with scales.
    """

    num_seqs: int
    group_size: int
    prefix_blocks: int
    completion_blocks: int
    block_size: int
    devices: int = 1
    quantized: bool = False

    @property
    def num_groups(self) -> int:
        """G, the prefix groups."""
        return self.num_seqs // self.group_size

    @property
    def prefixes_per_group(self) -> int:
        """Prefixes that a prefix group holds at the same time."""
        return prefixes_per_group(self.group_size)

    @property
    def num_prefixes(self) -> int:
        """Prefixes of all groups. Prefix slots g n to g n + n - 1 belong to group g, for n prefixes a group."""
        return self.num_groups * self.prefixes_per_group

    @property
    def row_groups(self) -> int:
        """Row groups: the largest power of two, up to 4, that divides the rows of a device."""
        groups = MAX_ROW_GROUPS
        while self.num_seqs // self.devices % groups:
            groups //= 2
        return groups

    def shrinks_to(self, num_seqs: int) -> bool:
        """Whether a batch of `num_seqs` rows, each its own prefix group, is smaller in both parts of the cache."""
        return num_seqs < self.num_seqs and num_seqs <= self.num_prefixes

    def ungrouped(self, num_seqs: int) -> CacheLayout:
        """The layout of `num_seqs` rows that are each their own prefix group."""
        return dataclasses.replace(self, num_seqs=num_seqs, group_size=1)


def prefixes_per_group(group_size: int) -> int:
    """Prefixes of a prefix group: 2, or 1 for a group of a single row.

    With the second prefix, the next prompt starts in free rows before the last completion of the first prompt ends.
    """
    return 1 if group_size == 1 else 2


def bytes_per_column(config: LlamaConfig, itemsize: int, quantized: bool = False) -> int:
    """Bytes of one token in the cache: 2 L K h itemsize; of int8 numbers and their scales 2 L K (h + itemsize).

    Args:
      config: the model.
      itemsize: bytes of a number in the type of the computation.
      quantized: whether the cache is quantized.
    """
    head = config.head_dim + itemsize if quantized else config.head_dim * itemsize
    return 2 * config.n_layers * config.n_kv_heads * head


def bytes_per_sequence(column: int, prompt: int, new: int, group_size: int) -> int:
    """Bytes of the cache that one row takes, over all devices: column (new + prompt * prefixes / M).

    Args:
      column: bytes of one token (`bytes_per_column`).
      prompt: columns of a prefix.
      new: columns of a row's new tokens.
      group_size: M, the rows that share prefixes.
    """
    return column * new + column * prompt * prefixes_per_group(group_size) // group_size


def sequences_that_fit(budget: int, column: int, prompt: int, new: int, group_size: int, sharding: Sharding) -> int:
    """The largest number of rows whose cache fits `budget` bytes a device, a multiple of `group_size` on each device.

    Raises:
      AstroError: if not even one prefix group a device fits.
    """
    unit = group_size * sharding.batch_size
    group_bytes = unit * bytes_per_sequence(column, prompt, new, group_size)
    groups = budget * sharding.mesh.size // group_bytes
    if not groups:
        raise AstroError(
            f"sampler: kv_cache_gib={budget / 2**30:.3g} a device does not hold one prefix group of {group_size} rows "
            f"with {prompt} + {new} tokens, which takes {group_bytes / sharding.mesh.size / 2**30:.3g} GiB; raise "
            "kv_cache_gib, or lower the tokens"
        )
    return groups * unit


def prefix_sharding(sharding: Sharding) -> NamedSharding:
    """Of all arrays of the prefixes: prefixes over the batch axes of the mesh, key-value heads over tp."""
    return sharding.named(None, None, "batch", "kv_heads")


def completion_sharding(sharding: Sharding) -> NamedSharding:
    """Of all arrays of the completions: rows of a row group over the batch axes of the mesh, heads over tp."""
    return sharding.named(None, None, None, "batch", "kv_heads")


def prefix_axes(config: LlamaConfig, layout: CacheLayout) -> tuple[int, ...]:
    """The axes of the prefixes before [K, h, C] or [K, C, h]."""
    return (config.n_layers, layout.prefix_blocks, layout.num_prefixes)


def completion_axes(config: LlamaConfig, layout: CacheLayout) -> tuple[int, ...]:
    """The axes of the completions before [K, h, C] or [K, C, h]."""
    groups = layout.row_groups
    return (config.n_layers, layout.completion_blocks, groups, layout.num_seqs // groups)


@functools.lru_cache(maxsize=32)
def make_allocate(
    config: LlamaConfig, sharding: Sharding, dtype: DType
) -> tuple[Callable[[CacheLayout], KV], Callable[[CacheLayout], KV]]:
    """Build two jitted functions from a layout to arrays of zeros: the prefixes, and the completions."""

    def zeros(axes: tuple[int, ...], layout: CacheLayout) -> KV:
        kv, h, columns = config.n_kv_heads, config.head_dim, layout.block_size

        def array(*shape: int) -> Array:
            if not layout.quantized:
                return jnp.zeros((*axes, kv, *shape), dtype)
            return QuantizedArray(jnp.zeros((*axes, kv, *shape), jnp.int8), jnp.zeros((*axes, kv, columns), dtype))

        return KV(k=array(h, columns), v=array(columns, h))

    def build(
        axes: Callable[[LlamaConfig, CacheLayout], tuple[int, ...]], named: NamedSharding
    ) -> Callable[[CacheLayout], KV]:
        return jax.jit(lambda layout: zeros(axes(config, layout), layout), static_argnums=0, out_shardings=named)

    return build(prefix_axes, prefix_sharding(sharding)), build(completion_axes, completion_sharding(sharding))


def allocate(config: LlamaConfig, sharding: Sharding, dtype: DType, layout: CacheLayout) -> KVCache:
    """Allocate an empty cache."""
    prefix, completion = make_allocate(config, sharding, dtype)
    return KVCache(prefix=prefix(layout), completion=completion(layout))


def abstract(config: LlamaConfig, sharding: Sharding, dtype: DType, layout: CacheLayout) -> KVCache:
    """The shapes, types and shardings of a cache, without its memory."""
    shapes = (jax.eval_shape(make, layout) for make in make_allocate(config, sharding, dtype))
    shardings = (prefix_sharding(sharding), completion_sharding(sharding))
    prefix, completion = (
        jax.tree.map(lambda x, s=named: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), kv)
        for kv, named in zip(shapes, shardings, strict=True)
    )
    return KVCache(prefix=prefix, completion=completion)


def stored(k: jax.Array, v: jax.Array, quantized: bool) -> KV:
    """New keys [..., h, C] and values [..., C, h] as the cache holds them.

    Numbers that are not finite become 0: a masked column would still spread a NaN to the rows that share it.
    """
    k, v = (jnp.where(jnp.isfinite(x), x, 0) for x in (k, v))
    return KV(quantize(k, -2), quantize(v, -1)) if quantized else KV(k, v)


def rounded(x: jax.Array, quantized: bool) -> jax.Array:
    """New keys or values [..., h] as later tokens read them from the cache.

    Also the new tokens themselves attend to the rounded numbers. So no completion depends on which tokens of a prompt
    are computed in one call.
    """
    return dequantize(quantize(x, -1), -1) if quantized else x
