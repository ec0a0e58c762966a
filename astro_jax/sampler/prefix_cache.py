"""The prefix cache: prompts whose keys and values are kept from one call of the engine to the next.

In the search, the prompt of a child node starts with the prompt of its parent. The child copies the blocks of its
parent and computes only the rest.
"""

from __future__ import annotations

import collections

import numpy as np

from astro_jax.llama.config import LlamaConfig
from astro_jax.mesh import Sharding
from astro_jax.sampler.kv_cache import KV, CacheLayout, DType, bytes_per_column, make_allocate


class PrefixIndex:
    """The host-side index: which entry holds which prefix, found by its leading blocks.

    Args:
      entries: number of entries. The entry that was used longest ago makes room for a new one.
      block_size: tokens of a block. Only whole blocks are found.
    """

    def __init__(self, entries: int, block_size: int):
        self._block_size = block_size
        self._entries: collections.OrderedDict[int, tuple[int, ...]] = collections.OrderedDict()
        self._free = list(range(entries))[::-1]
        self._entry_of: dict[tuple[int, ...], int] = {}  # leading blocks -> an entry that starts with them

    def find(self, prefix: tuple[int, ...]) -> tuple[int, int]:
        """Return the entry that shares most leading blocks with the prefix, and the number of these blocks, or 0."""
        for blocks in range(len(prefix) // self._block_size, 0, -1):
            if (entry := self._entry_of.get(prefix[: blocks * self._block_size])) is not None:
                self._entries.move_to_end(entry)
                return entry, blocks
        return 0, 0

    def add(self, prefix: tuple[int, ...]) -> int | None:
        """Return an entry for the prefix's whole blocks, to be filled by the caller; None if they have an entry."""
        whole = prefix[: len(prefix) // self._block_size * self._block_size]
        if not whole or whole in self._entry_of:
            return None
        if not self._free:
            self._evict()
        entry = self._free.pop()
        self._entries[entry] = whole
        for blocks in self._leading_blocks(whole):
            self._entry_of[blocks] = entry
        return entry

    def _evict(self) -> None:
        entry, whole = self._entries.popitem(last=False)
        for blocks in self._leading_blocks(whole):
            if self._entry_of[blocks] == entry:
                del self._entry_of[blocks]
        self._free.append(entry)

    def _leading_blocks(self, whole: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [whole[:n] for n in range(self._block_size, len(whole) + 1, self._block_size)]


class PrefixCache:
    """Prefixes for later calls with the same parameters. `Engine.new_prefix_cache` makes one.

    A new prefix cache is empty and holds no memory. The first call that uses it allocates the buffer. The buffer is
    allocated anew, and all prefixes are dropped, when the engine reserves longer caches. After the parameters change,
    make a new prefix cache.

    Args:
      gib: GiB a device for the buffer. 0 turns the prefix cache off.

    Attributes:
      index: which entry holds which prefix. None while the cache has no buffer.
      buffer: keys [L, prefix_blocks, entries, K, h, C] and values [L, prefix_blocks, entries, K, C, h].
    """

    def __init__(self, gib: float):
        self.gib = gib
        self.index: PrefixIndex | None = None
        self.buffer: KV | None = None
        self._layout: tuple[CacheLayout, np.dtype] | None = None

    def prepare(self, config: LlamaConfig, sharding: Sharding, dtype: DType, layout: CacheLayout) -> None:
        """Make sure that the buffer fits the prefixes of a layout; drop all prefixes if it does not.

        Args:
          config: the model.
          sharding: of decoding.
          dtype: of the cache.
          layout: of the engine's cache; the number and the grouping of its rows play no part.
        """
        layout = layout.ungrouped(layout.devices)
        if self._layout == (layout, np.dtype(dtype)):
            return
        self._layout, self.index, self.buffer = (layout, np.dtype(dtype)), None, None
        prompt = layout.prefix_blocks * layout.block_size
        entry_bytes = prompt * bytes_per_column(config, np.dtype(dtype).itemsize, layout.quantized)
        entries = int(self.gib * 2**30) * sharding.mesh.size // entry_bytes // layout.devices * layout.devices
        if entries:
            allocate_prefixes, _ = make_allocate(config, sharding, dtype)
            self.buffer = allocate_prefixes(layout.ungrouped(entries))
            self.index = PrefixIndex(entries, layout.block_size)
