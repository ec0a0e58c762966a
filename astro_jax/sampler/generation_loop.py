"""One call of `Engine.generate`: schedule, prefill, decode, and schedule again until all sequences have ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from astro_jax import termination
from astro_jax.sampler.kv_cache import CacheLayout, KVCache
from astro_jax.sampler.model_runner import FiniteCheck, ModelRunner, PrefixCopy, smallest_fit
from astro_jax.sampler.prefix_cache import PrefixCache
from astro_jax.sampler.programs import BROKEN, ENDED, DecodeInputs, DecodeOutputs
from astro_jax.sampler.sample import SamplingInputs
from astro_jax.sampler.scheduler import ScheduledPrefix, Scheduler, Sequence
from astro_jax.sampler.stats import EngineStats

StopFn = Callable[[list[int]], int | None]


@dataclasses.dataclass
class LoopState:
    """Everything that changes while a call runs, beside the sequences themselves.

    Attributes:
      layout: of the cache. It changes when the batch shrinks.
      cache: the keys and values.
      scheduler: which sequence is in which row.
      inputs: of the decode program, on the host. A row that ends keeps its old values, with `left` 0.
      first_step: int32 [B], the step at which each row's sequence started.
      step: decode steps so far.
      broken: requests whose logits or prompts gave numbers that are not finite.
      unchecked: prefills whose results have not been looked at yet.
    """

    layout: CacheLayout
    cache: KVCache
    scheduler: Scheduler
    inputs: DecodeInputs
    first_step: np.ndarray
    step: int = 0
    broken: set[int] = dataclasses.field(default_factory=set)
    unchecked: list[FiniteCheck] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class GenerationLoop:
    """Samples all sequences of one call.

    Attributes:
      runner: calls the programs.
      state: what changes.
      sampling: temperature and filters.
      stop_tokens: bool [V], tokens that end a sequence.
      sizes: rising numbers of rows that the batch can shrink to.
      stats: counts, added to.
      prefix_cache: prefixes of earlier calls, or None.
      stop_fn: from the tokens of a sequence to the number of tokens up to the end of a stop string, or None.
      on_end: called with each sequence when it ends.
      continuous_batching: give a free row to a waiting sequence at once. False: static batching, where a batch starts
        together and ends with its last sequence.
    """

    runner: ModelRunner
    state: LoopState
    sampling: SamplingInputs
    stop_tokens: np.ndarray
    sizes: list[int]
    stats: EngineStats
    prefix_cache: PrefixCache | None = None
    stop_fn: StopFn | None = None
    on_end: Callable[[Sequence], None] | None = None
    continuous_batching: bool = True

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Decode until all sequences have ended; call `progress` with the number of sequences that ended since.

        Raises:
          Terminated: after SIGTERM.
        """
        scheduler = self.state.scheduler
        while True:
            termination.check()
            if self.continuous_batching or not len(scheduler.live):
                self._start_sequences()
            live = scheduler.live
            if not len(live):
                if scheduler.waiting:
                    continue
                return
            ended = self._decode(live)
            if progress is not None and ended:
                progress(ended)
            if not scheduler.waiting:
                self._shrink()

    # ---- Prefill

    def _start_sequences(self) -> None:
        prefixes, started = self.state.scheduler.schedule()
        self._fill_prefix_slots(prefixes)
        inputs = self.state.inputs
        for sequence in started:
            if sequence.request in self.state.broken:
                continue
            row, prompt = sequence.row, sequence.prompt_token_ids
            # Prefill leaves out the last token of a prompt: it is the first token that decodes.
            inputs.token[row] = prompt[-1]
            inputs.position[row] = inputs.length[row] = len(prompt) - 1
            inputs.prefix_slot[row] = sequence.prefix_slot
            inputs.key[row], inputs.left[row] = sequence.key, sequence.max_tokens
            self.state.first_step[row] = self.state.step
            self.stats.prompt_tokens += len(prompt) - 1

    def _fill_prefix_slots(self, prefixes: list[ScheduledPrefix]) -> None:
        """Copy the prompts that a slot or the prefix cache holds, and compute the rest."""
        state = self.state
        new = [p for p in prefixes if p.copy_from is None]
        blocks_done = self._copy_from_prefix_cache(new)
        done = sum(blocks_done) * state.layout.block_size
        self.stats.prefilled += sum(p.num_tokens for p in new) - done
        state.cache, checks = self.runner.prefill(state.cache, state.layout, new, blocks_done)
        state.unchecked += checks
        self._copy_to_prefix_cache(new)
        copies = [PrefixCopy(p.prefix_slot, p.copy_from, p.num_tokens) for p in prefixes if p.copy_from is not None]
        self.stats.copied += sum(c.tokens for c in copies)
        state.cache = state.cache.replace(prefix=self.runner.copy(state.cache.prefix, None, copies))

    def _copy_from_prefix_cache(self, prefixes: list[ScheduledPrefix]) -> list[int]:
        """Copy the leading blocks that the prefix cache holds; return the number of blocks of each prompt."""
        cache, state = self.prefix_cache, self.state
        if cache is None or cache.index is None or cache.buffer is None:
            return [0] * len(prefixes)
        hits = [cache.index.find(p.prompt_token_ids[:-1]) for p in prefixes]
        copies = [
            PrefixCopy(p.prefix_slot, entry, blocks * state.layout.block_size)
            for p, (entry, blocks) in zip(prefixes, hits, strict=True)
            if blocks
        ]
        self.stats.copied += sum(c.tokens for c in copies)
        state.cache = state.cache.replace(prefix=self.runner.copy(state.cache.prefix, cache.buffer, copies))
        return [blocks for _, blocks in hits]

    def _copy_to_prefix_cache(self, prefixes: list[ScheduledPrefix]) -> None:
        cache = self.prefix_cache
        if cache is None or cache.index is None or cache.buffer is None:
            return
        self._check_prefills()
        prefixes = [p for p in prefixes if p.request not in self.state.broken]
        entries = [(p, cache.index.add(p.prompt_token_ids[:-1])) for p in prefixes]
        # A small cache may take an entry twice: the index knows the last prompt, and a copy writes an entry once.
        copies = {entry: PrefixCopy(entry, p.prefix_slot, p.num_tokens) for p, entry in entries if entry is not None}
        cache.buffer = self.runner.copy(cache.buffer, self.state.cache.prefix, [*copies.values()])

    def _check_prefills(self) -> None:
        """Abort the requests whose prompts gave numbers that are not finite."""
        for finite, requests in self.state.unchecked:
            for i in np.flatnonzero(~np.asarray(finite)):
                if (request := requests[i]) is not None:
                    self._abort(request)
        self.state.unchecked = []

    def _abort(self, request: int) -> None:
        self.state.broken.add(request)
        for row in self.state.scheduler.abort(request):
            self.state.inputs.left[row] = 0

    # ---- Decode

    def _decode(self, live: np.ndarray) -> int:
        """Call the decode program once; return the number of sequences that ended."""
        state, inputs = self.state, self._decode_inputs(live)
        state.cache, out = self.runner.decode(state.cache, inputs, self.sampling, self.stop_tokens)
        self._check_prefills()
        self.stats.row_steps += int(out.steps) * state.layout.num_seqs
        ended = sum(self._append(row, out) for row in map(int, live))
        np.add(state.inputs.position, out.steps, out=state.inputs.position)
        state.step += int(out.steps)
        return ended

    def _append(self, row: int, out: DecodeOutputs) -> bool:
        """Append the new tokens of a row to its sequence; return whether the sequence has ended."""
        inputs, sequence = self.state.inputs, self.state.scheduler.running[row]
        if sequence is None:  # its request was aborted
            return False
        n = int((out.tokens[: out.steps, row] != ENDED).sum())
        if n and out.tokens[n - 1, row] == BROKEN:
            self._abort(sequence.request)
            return False
        sequence.outputs.append((out.tokens[:n, row], out.logprobs[:n, row], out.sampling_logprobs[:n, row]))
        self.stats.tokens += n
        last = out.tokens[n - 1, row]
        inputs.left[row] -= n
        inputs.token[row] = last
        if self.stop_fn is not None:
            sequence.stop_length = self.stop_fn(sequence.token_ids)
        ended = self.stop_tokens[last] or not inputs.left[row] or sequence.stop_length is not None
        if ended:
            inputs.left[row] = 0
            self.state.scheduler.finish(sequence)
            if self.on_end is not None:
                self.on_end(sequence)
        return bool(ended)

    def _decode_inputs(self, live: np.ndarray) -> DecodeInputs:
        """The inputs of the decode program, with the blocks that the rows attend to."""
        state, layout, inputs = self.state, self.state.layout, self.state.inputs
        longest = np.zeros(layout.prefixes_per_group, np.int64)
        np.maximum.at(longest, inputs.prefix_slot[live], inputs.length[live])
        oldest = np.full(layout.row_groups, state.step, np.int32)
        np.minimum.at(oldest, live % layout.row_groups, state.first_step[live])
        # Skip row groups that hold no sequence. They need no cache block and must not raise the block count of others.
        filled = np.isin(np.arange(layout.row_groups), live % layout.row_groups)
        oldest[~filled] = oldest[filled].max(initial=0)
        return inputs.replace(
            step=np.int32(state.step),
            prefix_blocks=(-(-longest // layout.block_size)).astype(np.int32),
            oldest=oldest,
            min_live=np.int32(self._min_live(len(live))),
        )

    def _min_live(self, live: int) -> int:
        """The number of rows at which decode returns early: an eighth is free, or the rest fits a smaller batch."""
        layout = self.state.layout
        if not self.continuous_batching:
            return 0
        if self.state.scheduler.waiting:
            return max(0, live - max(1, layout.num_seqs // 8))
        return max((size for size in self.sizes if size < live and layout.shrinks_to(size)), default=0)

    def _shrink(self) -> None:
        """Go on with a smaller batch if the running sequences fit one. No sequence waits any more."""
        state, live = self.state, self.state.scheduler.live
        size = smallest_fit(self.sizes, len(live))
        if not self.continuous_batching or not len(live) or not state.layout.shrinks_to(size):
            return
        rows = np.pad(live, (0, size - len(live)), constant_values=live[0]).astype(np.int32)
        group = rows // state.layout.group_size
        slots = (group * state.layout.prefixes_per_group + state.inputs.prefix_slot[rows]).astype(np.int32)
        state.layout = state.layout.ungrouped(size)
        state.cache = self.runner.pack(state.cache, rows, slots, state.layout)
        state.inputs = state.inputs.map_rows(lambda x: x[rows])
        state.inputs.left[len(live) :] = state.inputs.prefix_slot[:] = 0
        state.first_step = state.first_step[rows]
        state.scheduler.shrink(state.layout)


def initial_state(layout: CacheLayout, cache: KVCache, groups: list[list[Sequence]]) -> LoopState:
    """The state before the first step: all sequences wait, and all rows are free."""
    b = layout.num_seqs
    inputs = DecodeInputs(
        token=np.zeros(b, np.int32),
        position=np.zeros(b, np.int32),
        length=np.zeros(b, np.int32),
        prefix_slot=np.zeros(b, np.int32),
        key=np.zeros((b, 2), np.uint32),
        left=np.zeros(b, np.int32),
        step=np.int32(0),
        prefix_blocks=np.zeros(layout.prefixes_per_group, np.int32),
        oldest=np.zeros(layout.row_groups, np.int32),
        min_live=np.int32(0),
    )
    return LoopState(layout, cache, Scheduler(groups, layout), inputs, np.zeros(b, np.int32))
