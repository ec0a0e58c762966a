"""One call of the sampler: prefixes are loaded, rows decode in chunks, rows that end go to samples that wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from astro_jax.llama.params import Params
from astro_jax.sampler import decode
from astro_jax.sampler.cache import KV, Shape
from astro_jax.sampler.decode import Rows, Span
from astro_jax.sampler.draw import Filters
from astro_jax.sampler.library import Library
from astro_jax.sampler.sampling_params import SamplingParams
from astro_jax.sampler.schedule import NONE, Load, Schedule

CHUNKS = (4, 1)  # blocks of a prefix that are prefilled at once


@dataclasses.dataclass
class EngineStats:
    """What the calls so far have cost.

    Attributes:
      prompt_tokens: of all samples, as if each prefilled its own.
      prefilled: tokens of prefixes that were computed. copied: that were taken from another slot or from the library.
      tokens: that samples emitted. row_steps: rows times decode steps, those of free rows included.
    """

    prompt_tokens: int = 0
    prefilled: int = 0
    copied: int = 0
    tokens: int = 0
    row_steps: int = 0

    @property
    def occupancy(self) -> float:
        """Share of the rows' steps that emitted a token."""
        return self.tokens / max(self.row_steps, 1)

    @property
    def prefix_reuse(self) -> float:
        """Share of the samples' prompt tokens that were not computed for them."""
        return 1 - self.prefilled / max(self.prompt_tokens, 1)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The sampler's programs, made once."""

    allocate: tuple[Callable[[Shape], KV], ...]
    prefill: Callable[..., tuple[KV, jax.Array]]
    decode: Callable[..., tuple]
    copy: tuple[Callable[..., KV], ...]
    pack: Callable[..., tuple[KV, KV]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked of a request, checked and numbered by the caller.

    Attributes:
      prefix: token ids. keys: uint32 [n, 2], names of its samples. caps: int [n], the most tokens of each.
    """

    prefix: tuple[int, ...]
    keys: np.ndarray
    caps: np.ndarray


@dataclasses.dataclass
class Output:
    """A sample as it grows: parts int32 and float32, one a chunk."""

    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    sampling_logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    kept: int | None = None  # tokens up to a stop string, where one came


class Run:
    """The state of one call.

    Args:
      sizes: rows of smaller batches to go on with when few rows are left.
      batches: for each of CHUNKS the prefixes that can be prefilled at once.
      kept: the library and its store, or none.
      stop_fn: tells of a sample's tokens how many there are up to a stop string, if one came.
      refill: whether rows that end are given to waiting samples before all have ended.
    """

    def __init__(
        self,
        params: Params,
        tasks: Sequence[Task],
        shape: Shape,
        programs: Programs,
        *,
        how: SamplingParams,
        ends: np.ndarray,
        chunk: int,
        sizes: Sequence[int],
        batches: Mapping[int, Sequence[int]],
        kept: tuple[Library, KV] | None = None,
        stop_fn: Callable[[list[int]], int | None] | None = None,
        refill: bool = True,
        stats: EngineStats | None = None,
    ):
        self.params, self.tasks, self.shape, self.programs = params, tasks, shape, programs
        self.chunk, self.sizes, self.batches, self.stop_fn, self.refill = chunk, sizes, batches, stop_fn, refill
        self.library: Library | None
        self.shelf: KV | None
        self.library, self.shelf = kept or (None, None)
        self.stats = stats or EngineStats()
        self.how = Filters(
            *(np.float32(how.temperature), np.int32(how.top_k), np.float32(how.top_p), np.float32(how.min_p))
        )
        self.ends = ends
        self.outputs = [[Output() for _ in task.keys] for task in tasks]
        self.broken: set[int] = set()
        self._checks: list[tuple[jax.Array, list[int]]] = []  # whether chunks of prefixes are numbers, whose they are
        self.schedule = Schedule([len(task.keys) for task in tasks], shape)
        self.prefix, self.suffix = (make(shape) for make in programs.allocate)
        self.rows = _no_rows(shape.rows)
        self.first = np.zeros(shape.rows, np.int32)  # the step at which each row began
        self.now = 0

    def go(self, progress: Callable[[int], None] | None = None) -> None:
        """Decode until all samples have ended."""
        while True:
            if self.refill or not len(self.schedule.live):
                self._fill()
            live = self.schedule.live
            if not len(live):
                if self.schedule.waiting:
                    continue
                return
            ended = self._decode(live)
            if progress is not None and ended:
                progress(ended)
            if not self.schedule.waiting:
                self._pack()

    def compile(self) -> None:
        """Call every program of this shape, without a sample."""
        spare = Load(self.shape.slots // self.shape.devices, NONE, None)
        for blocks, sizes in self.batches.items():
            for n in sizes:
                each = n // self.shape.devices
                self._prefill_chunk([[(spare, 0)] * each] * self.shape.devices, blocks)
        for n in self.batches[1]:
            nothing = [(self.shape.slots, 0, 0)] * n
            self._copy(None, nothing)
            if self.shelf is not None:
                self._copy(self.shelf, nothing)
                self.shelf = self._move(self.shelf, self.prefix, [(self.shelf.k.shape[2], 0, 0)] * n)
        self._decode(self.schedule.live)
        for n in filter(self.shape.shrinks_to, self.sizes):
            self.programs.pack(self.prefix, self.suffix, *self._packing(np.zeros(n, np.int32)))

    # ---- Prefixes

    def _fill(self) -> None:
        loads, begun = self.schedule.fill()
        self._load(loads)
        for row in begun:
            if self.schedule.request[row] == NONE:  # its prefix was broken
                continue
            request, sample = int(self.schedule.request[row]), int(self.schedule.sample[row])
            task = self.tasks[request]
            # The last token of a prefix is not prefilled: it is the first that decodes.
            self.rows.token[row] = task.prefix[-1]
            self.rows.position[row] = self.rows.length[row] = len(task.prefix) - 1
            self.rows.slot[row] = self.schedule.slot[row]
            self.rows.key[row], self.rows.left[row] = task.keys[sample], task.caps[sample]
            self.first[row] = self.now
            self.stats.prompt_tokens += len(task.prefix) - 1

    def _load(self, loads: Sequence[Load]) -> None:
        """Prefill what no slot holds, as far as the library has not, and copy the rest."""
        fresh = [load for load in loads if load.source is None]
        done = self._from_library(fresh)
        self._prefill(fresh, done)
        self._to_library(fresh)
        self._copy(None, [(x.slot, x.source, self._tokens(x.request)) for x in loads if x.source is not None])

    def _tokens(self, request: int) -> int:
        return len(self.tasks[request].prefix) - 1

    def _prefill(self, loads: Sequence[Load], done: Sequence[int]) -> None:
        """From the blocks that are done on, in chunks of a few fixed sizes, many prefixes at once."""
        block = self.shape.block
        self.stats.prefilled += sum(self._tokens(x.request) - d * block for x, d in zip(loads, done, strict=True))
        todo = [(load, d) for load, d in zip(loads, done, strict=True) if d * block < self._tokens(load.request)]
        while todo:
            again: list[tuple[Load, int]] = []
            for blocks in CHUNKS:
                # A chunk of several blocks is taken where most of it is filled.
                of_size = [(x, d) for x, d in todo if self._chunk(x, d) == blocks]
                for part in self._by_device(of_size, blocks):
                    self._prefill_chunk(part, blocks)
                again += [(x, d + blocks) for x, d in of_size if (d + blocks) * block < self._tokens(x.request)]
            todo = again

    def _chunk(self, load: Load, done: int) -> int:
        left = -(-self._tokens(load.request) // self.shape.block) - done
        return next(blocks for blocks in CHUNKS if 4 * left >= 3 * blocks or blocks == 1)

    def _by_device(self, work: Sequence[tuple[Load, int]], blocks: int) -> Iterator[list[list[tuple[Load, int]]]]:
        """Batches of work, each as one list a device: a row of a batch lies where its lane does."""
        slots = self.shape.slots // self.shape.devices
        queues = [[(x, d) for x, d in work if x.slot // slots == i] for i in range(self.shape.devices)]
        while longest := max(map(len, queues)):
            each = fitting(self.batches[blocks], longest * len(queues)) // len(queues)
            # Rows without work make the batch up to its size.
            yield [queue[:each] + [(Load(slots, NONE, None), 0)] * (each - len(queue)) for queue in queues]
            queues = [queue[each:] for queue in queues]

    def _prefill_chunk(self, work: Sequence[Sequence[tuple[Load, int]]], blocks: int) -> None:
        rows = [row for device in work for row in device]
        columns = blocks * self.shape.block
        tokens = np.zeros((len(rows), columns), np.int32)
        for row, (load, done) in zip(tokens, rows, strict=True):
            if load.request != NONE:
                part = self.tasks[load.request].prefix[done * self.shape.block : -1][:columns]
                row[: len(part)] = part
        slots = self.shape.slots // self.shape.devices
        where = [done for _, done in rows], [x.slot if x.request == NONE else x.slot % slots for x, _ in rows]
        self.prefix, sound = self.programs.prefill(
            self.params, self.prefix, tokens, *(np.asarray(x, np.int32) for x in where)
        )
        self._checks.append((sound, [load.request for load, _ in rows]))

    def _check(self) -> None:
        """Give up requests whose prefixes are not numbers."""
        for sound, requests in self._checks:
            for i in np.flatnonzero(~np.asarray(sound)):
                if requests[i] != NONE:
                    self._break(requests[i])
        self._checks = []

    def _copy(self, source: KV | None, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copy to slots of the lanes, of the library or of other slots: each (to, from, tokens)."""
        self.stats.copied += sum(tokens for _, _, tokens in copies)
        self.prefix = self._move(self.prefix, source, copies)

    def _move(self, to: KV, source: KV | None, copies: Sequence[tuple[int, int, int]]) -> KV:
        at = 0
        while at < len(copies):
            size = fitting(self.batches[1], len(copies) - at)
            part = copies[at : at + size]
            into, out = np.full(size, to.k.shape[2], np.int32), np.zeros(size, np.int32)
            into[: len(part)], out[: len(part)] = [c[0] for c in part], [c[1] for c in part]
            blocks = np.int32(max(-(-c[2] // self.shape.block) for c in part))
            within, between = self.programs.copy
            to = within(to, into, out, blocks) if source is None else between(to, source, into, out, blocks)
            at += size
        return to

    def _from_library(self, loads: Sequence[Load]) -> list[int]:
        """Copy the leading blocks that are kept; returns how many of each load."""
        if self.library is None or self.shelf is None:
            return [0] * len(loads)
        found = [self.library.find(self.tasks[x.request].prefix[:-1]) for x in loads]
        columns = self.shape.block
        hits = [(x.slot, entry, n * columns) for x, (entry, n) in zip(loads, found, strict=True) if n]
        self._copy(self.shelf, hits)
        return [n for _, n in found]

    def _to_library(self, loads: Sequence[Load]) -> None:
        if self.library is None or self.shelf is None:
            return
        self._check()
        loads = [x for x in loads if x.request not in self.broken]
        entries = [(x, self.library.add(self.tasks[x.request].prefix[:-1])) for x in loads]
        new = [(e, x.slot, self._tokens(x.request)) for x, e in entries if e is not None]
        self.shelf = self._move(self.shelf, self.prefix, new)

    # ---- Decoding

    def _decode(self, live: np.ndarray) -> int:
        """One chunk; returns how many samples ended."""
        out = self.programs.decode(
            self.params, self.prefix, self.suffix, self.rows, self._span(live), self.how, self.ends
        )
        self.suffix = out[0]
        steps, tokens, logprobs, drawn = jax.device_get(out[1:])
        self._check()
        self.stats.row_steps += int(steps) * len(self.rows.token)
        ended = 0
        for row in map(int, live):
            request = int(self.schedule.request[row])
            if request < 0:  # dropped with a broken request, a few rows ago
                continue
            n = int((tokens[:steps, row] != decode.ENDED).sum())
            if n and tokens[n - 1, row] == decode.BROKEN:
                self._break(request)
                continue
            output = self.outputs[request][self.schedule.sample[row]]
            output.tokens.append(tokens[:n, row])
            output.logprobs.append(logprobs[:n, row])
            output.sampling_logprobs.append(drawn[:n, row])
            self.stats.tokens += n
            self.rows.left[row] -= n
            self.rows.token[row] = tokens[n - 1, row]
            if self.stop_fn is not None:
                output.kept = self.stop_fn(np.concatenate(output.tokens).tolist())
            if self.ends[tokens[n - 1, row]] or not self.rows.left[row] or output.kept is not None:
                self.rows.left[row] = 0
                self.schedule.end(row)
                ended += 1
        np.add(self.rows.position, steps, out=self.rows.position)
        self.now += int(steps)
        return ended

    def _break(self, request: int) -> None:
        """Its logits are not numbers: nothing more of it, and the others go on."""
        self.broken.add(request)
        for row in self.schedule.drop(request):
            self.rows.left[row] = 0

    def _span(self, live: np.ndarray) -> Span:
        shape = self.shape
        longest = np.zeros(shape.prefixes, np.int64)
        np.maximum.at(longest, self.rows.slot[live], self.rows.length[live])
        oldest = np.full(shape.tiles, self.now, np.int32)
        np.minimum.at(oldest, live % shape.tiles, self.first[live])
        # A tile without rows needs no block, and keeps the others from none.
        filled = np.isin(np.arange(shape.tiles), live % shape.tiles)
        oldest[~filled] = oldest[filled].max(initial=0)
        return Span(
            now=np.int32(self.now), prefix_blocks=(-(-longest // shape.block)).astype(np.int32), oldest=oldest,
            enough=np.int32(self._enough(len(live))),
        )  # fmt: skip

    def _enough(self, live: int) -> int:
        """At how many rows a chunk ends early: when an eighth can be refilled, or the rest fits a smaller batch."""
        if not self.refill:
            return 0
        if self.schedule.waiting:
            return max(0, live - max(1, len(self.rows.token) // 8))
        return max((size for size in self.sizes if size < live and self.shape.shrinks_to(size)), default=0)

    def _pack(self) -> None:
        """Go on with a smaller batch, where the rows that are left fit one. No sample waits: nothing more is filled."""
        live = self.schedule.live
        size = fitting(self.sizes, len(live))
        if not self.refill or not len(live) or not self.shape.shrinks_to(size):
            return
        index, slots, shape = self._packing(
            np.pad(live, (0, size - len(live)), constant_values=live[0]).astype(np.int32)
        )
        self.prefix, self.suffix = self.programs.pack(self.prefix, self.suffix, index, slots, shape)
        self.rows = jax.tree.map(lambda x: x[index], self.rows)
        self.rows.left[len(live) :] = self.rows.slot[:] = 0
        self.first = self.first[index]
        packed = Schedule([], shape)
        packed.request[: len(live)], packed.sample[: len(live)] = (
            x[live] for x in (self.schedule.request, self.schedule.sample)
        )
        self.schedule, self.shape = packed, shape

    def _packing(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, Shape]:
        """The rows int32 [B'], the slot of the prefix of each, and the shape of a batch of them."""
        slots = (rows // self.shape.lane * self.shape.prefixes + self.rows.slot[rows]).astype(np.int32)
        return rows, slots, dataclasses.replace(self.shape, rows=len(rows), lane=1)


def fitting(sizes: Sequence[int], n: int) -> int:
    """The smallest of some rising sizes that holds n, or the largest where none does."""
    return next((size for size in sizes if size >= n), sizes[-1])


def _no_rows(n: int) -> Rows:
    ints = {name: np.zeros(n, np.int32) for name in ("token", "position", "length", "slot", "left")}
    return Rows(key=np.zeros((n, 2), np.uint32), **ints)
