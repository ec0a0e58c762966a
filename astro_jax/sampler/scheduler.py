"""Continuous batching on the host: which sequence decodes in which row, and which prompt each prefix slot holds."""

from __future__ import annotations

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from astro_jax.sampler.kv_cache import CacheLayout
from astro_jax.sampler.request import Completion

NONE = -1


@dataclasses.dataclass(eq=False)
class Sequence:
    """One completion on its way: it waits, decodes in a row, and ends.

    Attributes:
      request: the index of its request in the call.
      prompt_token_ids: the prompt.
      key: uint32 [2], names its random draws.
      max_tokens: the most tokens that it may emit.
      index: its place among the completions of its request.
      row: the row that it decodes in; NONE before it starts and after it ends.
      prefix_slot: the prefix of its prefix group that holds its prompt, from 0.
      outputs: for each call of the decode program its tokens int32, logprobs and sampling_logprobs float32.
      stop_length: tokens up to the end of a stop string, if one came.
    """

    request: int
    prompt_token_ids: tuple[int, ...]
    key: np.ndarray
    max_tokens: int
    index: int = 0
    row: int = NONE
    prefix_slot: int = NONE
    outputs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    stop_length: int | None = None

    @property
    def token_ids(self) -> list[int]:
        """The tokens so far."""
        return np.concatenate([tokens for tokens, _, _ in self.outputs]).tolist()

    def completion(self, stop_token_ids: tuple[int, ...]) -> Completion:
        """The finished completion."""
        tokens, logprobs, sampling_logprobs = (
            np.concatenate(arrays)[: self.stop_length] for arrays in zip(*self.outputs, strict=True)
        )
        stopped = self.stop_length is not None or tokens[-1] in stop_token_ids
        return Completion(tokens, logprobs, sampling_logprobs, "stop" if stopped else "length")


class ScheduledPrefix(NamedTuple):
    """A prompt for a prefix slot.

    Attributes:
      prefix_slot: the slot among those of all prefix groups.
      request: the index of the request.
      prompt_token_ids: its prompt.
      copy_from: a slot that holds the same prompt; None: the prompt must be computed.
    """

    prefix_slot: int
    request: int
    prompt_token_ids: tuple[int, ...]
    copy_from: int | None

    @property
    def num_tokens(self) -> int:
        """Tokens to put into the slot: all but the last, which is the first token that decodes."""
        return len(self.prompt_token_ids) - 1


class Scheduler:
    """Gives rows to waiting sequences.

    Rows are divided into prefix groups, which hold prompts. A free row takes the next waiting sequence whose prompt the
    row's group holds. If there is none, the group gets the prompt of the next request in the queue. If the queue is
    empty, the group gets a copy of the prompt with most sequences waiting.

    Args:
      groups: the sequences of each request, in the order in which they start.
      layout: of the cache.

    Attributes:
      layout: of the cache.
      running: the sequence in each of the B rows, None for a free row.
    """

    def __init__(self, groups: list[list[Sequence]], layout: CacheLayout):
        self.layout = layout
        self.running: list[Sequence | None] = [None] * layout.num_seqs
        self._waiting = [collections.deque(group) for group in groups]
        self._queue = collections.deque(i for i, group in enumerate(groups) if group)  # requests without a slot yet
        self._held = [[NONE] * layout.prefixes_per_group for _ in range(layout.num_groups)]  # the request of each slot
        self._slot_of: dict[int, int] = {}  # a slot that holds the prompt of each request with sequences waiting

    @property
    def waiting(self) -> bool:
        """Whether some sequence has not started."""
        return bool(self._queue or self._slot_of)

    @property
    def live(self) -> np.ndarray:
        """The rows that decode, int [n]."""
        return np.flatnonzero([sequence is not None for sequence in self.running])

    def schedule(self) -> tuple[list[ScheduledPrefix], list[Sequence]]:
        """Give free rows to waiting sequences.

        Returns:
          The prompts that prefix slots must get first, and the sequences that start.
        """
        prefixes: list[ScheduledPrefix] = []
        started: list[Sequence] = []
        if not self.waiting:
            return prefixes, started
        free = [row for row, sequence in enumerate(self.running) if sequence is None]
        # Prefix groups take turns, so that a few prompts spread over many groups.
        for row in sorted(free, key=lambda row: row % self.layout.group_size):
            slot = self._find_slot(row // self.layout.group_size, prefixes)
            if slot is not None:
                started.append(self._start(row, slot))
        return prefixes, started

    def finish(self, sequence: Sequence) -> None:
        """Free the row of a sequence that has ended."""
        self.running[sequence.row] = None
        sequence.row = sequence.prefix_slot = NONE

    def abort(self, request: int) -> list[int]:
        """End all sequences of a request and start no more of them; return the rows that they had."""
        sequences = [s for s in self.running if s is not None and s.request == request]
        rows = [s.row for s in sequences]
        for sequence in sequences:
            self.finish(sequence)
        self._slot_of.pop(request, None)
        self._waiting[request].clear()
        if request in self._queue:
            self._queue.remove(request)
        return rows

    def shrink(self, layout: CacheLayout) -> None:
        """Move the running sequences to the first rows of a smaller batch. No sequence waits any more."""
        sequences = [s for s in self.running if s is not None]
        self.layout, self.running = layout, [*sequences, *[None] * (layout.num_seqs - len(sequences))]
        for row, sequence in enumerate(sequences):
            sequence.row, sequence.prefix_slot = row, 0

    def _start(self, row: int, slot: int) -> Sequence:
        request = self._held[row // self.layout.group_size][slot]
        sequence = self._waiting[request].popleft()
        if not self._waiting[request]:
            self._slot_of.pop(request, None)
        sequence.row, sequence.prefix_slot = row, slot
        self.running[row] = sequence
        return sequence

    def _find_slot(self, group: int, prefixes: list[ScheduledPrefix]) -> int | None:
        """Return a slot of a prefix group whose request has a sequence waiting; schedule a prompt for it if need be."""
        held = self._held[group]
        for slot, request in enumerate(held):
            if request in self._slot_of:
                return slot
        size = self.layout.group_size
        used = {s.prefix_slot for s in self.running[group * size : (group + 1) * size] if s is not None}
        unused = [slot for slot in range(len(held)) if slot not in used]
        if not unused or not self.waiting:
            return None
        slot = unused[0]
        prefix_slot, copy_from = group * self.layout.prefixes_per_group + slot, None
        if self._queue:
            request = self._queue.popleft()
            self._slot_of[request] = prefix_slot
        else:
            request = max(self._slot_of, key=lambda i: len(self._waiting[i]))
            copy_from = self._slot_of[request]
        held[slot] = request
        prompt = self._waiting[request][0].prompt_token_ids
        prefixes.append(ScheduledPrefix(prefix_slot, request, prompt, copy_from))
        return slot
