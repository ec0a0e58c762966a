"""Which sample decodes in which row: the bookkeeping of continuous batching, on the host."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from astro_jax.sampler.cache import Shape

NONE = -1


@dataclasses.dataclass(frozen=True)
class Load:
    """A prefix is to be put into a slot.

    Attributes:
      slot: of those of all lanes.
      source: a slot that holds the same prefix, from which it can be copied.
    """

    slot: int
    request: int
    source: int | None


class Schedule:
    """Rows, the prefixes of their lanes, and the samples that wait.

    A row that is free goes to the next sample of a group whose prefix its lane holds; where none waits, the lane loads
    the next group in line; and at the end of the line, another copy of the group with most samples waiting.

    Args:
      counts: samples of each request, in the order in which they begin.
      shape: of the stores.

    Attributes:
      request, sample, slot: int [B], of each row: the request and its sample, NONE where the row is free, and the slot
        of its lane that holds the prefix.
    """

    def __init__(self, counts: Sequence[int], shape: Shape):
        self.shape = shape
        self.request, self.sample, self.slot = (np.full(shape.rows, NONE) for _ in range(3))
        self._queue = collections.deque(i for i, n in enumerate(counts) if n)
        self._counts, self._begun = list(counts), [0] * len(counts)
        self._held = [[NONE] * shape.prefixes for _ in range(shape.lanes)]  # the request of each slot
        self._where: dict[int, int] = {}  # a slot that holds each request with samples waiting

    @property
    def waiting(self) -> bool:
        """Whether samples have not begun."""
        return bool(self._queue or self._where)

    @property
    def live(self) -> np.ndarray:
        """The rows that decode."""
        return np.flatnonzero(self.request != NONE)

    def fill(self) -> tuple[list[Load], list[int]]:
        """Give free rows to waiting samples; returns the prefixes to load and the rows that begin."""
        loads: list[Load] = []
        begun: list[int] = []
        free = np.flatnonzero(self.request == NONE)
        # Lanes take turns, so that few groups spread over many lanes instead of queueing in the first.
        for row in free[np.argsort(free % self.shape.lane, kind="stable")] if self.waiting else ():
            slot = self._slot(int(row) // self.shape.lane, loads)
            if slot is not None:
                self._begin(int(row), slot)
                begun.append(int(row))
        return loads, begun

    def end(self, row: int) -> None:
        """The row is free."""
        self.request[row] = self.sample[row] = self.slot[row] = NONE

    def drop(self, request: int) -> list[int]:
        """Nothing more of a request; returns the rows that it had."""
        rows = np.flatnonzero(self.request == request).tolist()
        for row in rows:
            self.end(row)
        self._where.pop(request, None)
        self._begun[request] = self._counts[request]
        if request in self._queue:
            self._queue.remove(request)
        return rows

    def _begin(self, row: int, slot: int) -> None:
        request = self._held[row // self.shape.lane][slot]
        self.request[row], self.slot[row], self.sample[row] = request, slot, self._begun[request]
        self._begun[request] += 1
        if self._begun[request] == self._counts[request]:
            self._where.pop(request, None)

    def _slot(self, lane: int, loads: list[Load]) -> int | None:
        """A slot, counted in its lane, whose request has a sample waiting, if need be after a load; or none."""
        held = self._held[lane]
        for slot, request in enumerate(held):
            if request in self._where:
                return slot
        used = {self.slot[r] for r in self._rows(lane) if self.request[r] != NONE}
        empty = [slot for slot in range(len(held)) if slot not in used]
        if not empty or not self.waiting:
            return None
        slot, source = lane * self.shape.prefixes + empty[0], None
        if self._queue:
            request = self._queue.popleft()
            self._where[request] = slot
        else:
            request = max(self._where, key=lambda i: self._counts[i] - self._begun[i])
            source = self._where[request]
        held[empty[0]] = request
        loads.append(Load(slot, request, source))
        return empty[0]

    def _rows(self, lane: int) -> range:
        return range(lane * self.shape.lane, (lane + 1) * self.shape.lane)
