"""Which prefixes are kept for later requests: a child's prefix in the search begins with its parent's."""

from __future__ import annotations

import collections


class Library:
    """The index of a store of prefixes that outlives a call; an entry is one prefix, found by its leading blocks.

    Args:
      entries: that the store has room for; the one used longest ago makes room.
      block: tokens of a block; only whole blocks are found.
    """

    def __init__(self, entries: int, block: int):
        self._block = block
        self._entries: collections.OrderedDict[int, tuple[int, ...]] = collections.OrderedDict()
        self._free = list(range(entries))[::-1]
        self._found: dict[tuple[int, ...], int] = {}  # leading blocks -> an entry that begins with them

    def find(self, prefix: tuple[int, ...]) -> tuple[int, int]:
        """The entry that shares most leading blocks with the prefix, and how many; 0: none does."""
        for blocks in range(len(prefix) // self._block, 0, -1):
            if (entry := self._found.get(prefix[: blocks * self._block])) is not None:
                self._entries.move_to_end(entry)
                return entry, blocks
        return 0, 0

    def add(self, prefix: tuple[int, ...]) -> int | None:
        """An entry for the prefix's whole blocks, to be filled by the caller; none if they are there already."""
        whole = prefix[: len(prefix) // self._block * self._block]
        if not whole or whole in self._found:
            return None
        if not self._free:
            self._forget()
        entry = self._free.pop()
        self._entries[entry] = whole
        for blocks in self._leading(whole):
            self._found[blocks] = entry
        return entry

    def _forget(self) -> None:
        entry, whole = self._entries.popitem(last=False)
        for blocks in self._leading(whole):
            if self._found[blocks] == entry:
                del self._found[blocks]
        self._free.append(entry)

    def _leading(self, whole: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [whole[:n] for n in range(self._block, len(whole) + 1, self._block)]
