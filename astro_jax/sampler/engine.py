"""From requests to samples: what is asked, what comes back, and the one engine between them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from astro_jax import config as cfg
from astro_jax import processes
from astro_jax.errors import AstroError
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.sampler import cache, decode
from astro_jax.sampler.cache import KV, Shape
from astro_jax.sampler.draw import Sampling
from astro_jax.sampler.library import Library
from astro_jax.sampler.run import CHUNKS, Output, Programs, Run, Stats, Task, fitting

LANES = (1, 2, 4, 8, 16)  # rows that share one copy of a prefix
PREFILL = (256, 2048)  # tokens that are prefilled at once: a few prompts, or many


@dataclasses.dataclass(frozen=True)
class Request:
    """A prefix and how many samples to draw of its continuation.

    Attributes:
      prefix: token ids, at least one.
      n: number of samples.
      name: names the random draws, e.g. ("search", problem id, path). The same name gives the same noise.
      caps: the most tokens of each sample, where they differ; none: what `generate` is asked for.
    """

    prefix: tuple[int, ...]
    n: int
    name: tuple[str | int, ...]
    caps: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One continuation.

    Attributes:
      tokens: int32 [T], the stop token included, and those of a stop string.
      logprobs: float32 [T] under the policy at temperature 1, whatever it was sampled at.
      drawn_logprobs: float32 [T] under the distribution that was drawn from: after temperature, top-k, top-p and min-p.
      stopped: whether a stop token or a stop string ended it, not the limit.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    drawn_logprobs: np.ndarray
    stopped: bool


class RequestError(AstroError):
    """Some requests could not be served.

    Attributes:
      samples: what `generate` would have returned, with nothing in the place of those.
    """

    def __init__(self, errors: dict[int, str], samples: list[list[Sample]]):
        first, *more = errors.values()
        super().__init__(f"sampler: {first}" + (f"; and {len(more)} more of {len(samples)} requests" if more else ""))
        self.samples = samples


class Sampler:
    """Generates on one mesh.

    Args:
      config: the Llama.
      sharding: of decoding (mesh.decode_sharding); parameters passed to `generate` lie accordingly.
      seed: all randomness is folded from it and the requests' names.
      slots: the most rows that decode at once. When few are left they go on in batches of a half, a quarter and an
        eighth.
      memory: GiB a device for their caches; of the slots as many as fit it (cache.rows_that_fit).
      chunk: the most decode steps between two looks at which rows have ended.
      block: columns of the caches that are attended to and prefilled at once.
      reuse: GiB a device for prefixes kept from one call to the next inside `keeping`.
      refill: give rows that have ended to samples that wait; without, whole batches begin and end together.
    """

    def __init__(
        self,
        config: LlamaConfig,
        sharding: Sharding,
        seed: int,
        slots: int = 512,
        memory: float | None = None,
        chunk: int = 16,
        block: int = 32,
        reuse: float = 0.0,
        refill: bool = True,
    ):
        if min(slots, chunk, block) < 1:
            raise AstroError("sampler: slots, chunk and block are at least 1")
        smallest = sharding.batch_size
        self.slots, self.memory = slots, memory
        self.batches = {c: sorted({max(1, n // (c * block * smallest)) * smallest for n in PREFILL}) for c in CHUNKS}
        self.config, self.sharding, self.seed, self.chunk, self.block = config, sharding, seed, chunk, block
        self.reuse, self.refill = reuse, refill
        self.stats = Stats()
        self._reserved = (1, 1)  # blocks of the stores: they grow to the longest that was asked for
        self._kept: tuple[Library, KV] | None = None
        self._keeping = False

    @classmethod
    def of(cls, c: cfg.Sampler, config: LlamaConfig, sharding: Sharding, seed: int) -> Sampler:
        """As a run's config says."""
        return cls(config, sharding, seed, c.slots, c.memory, c.chunk, c.block, c.reuse)

    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        stop: Sequence[int],
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        cut: Callable[[list[int]], int | None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]:
        """Draw all samples of all requests.

        Args:
          max_tokens: of one sample, the stop token included.
          stop: ids that end a sample.
          temperature, top_k, top_p, min_p: see Sampling.
          cut: tells of a sample's tokens how many there are up to the end of a stop string, if one came.
          progress: called with the number of samples that have ended since.

        Returns:
          for each request its samples, in order.

        Raises:
          RequestError: for an empty prefix, one that leaves no room in the model's context, or logits that are not
            numbers; the other requests are served before.
          AstroError: for settings that no request can be served with.
        """
        if max_tokens < 1:
            raise AstroError(f"sampler: max_tokens is {max_tokens}; it is at least 1")
        how = Sampling(temperature, top_k, top_p, min_p)
        errors = {i: error for i, r in enumerate(requests) if (error := self._error(r, max_tokens))}
        served = [i for i, r in enumerate(requests) if i not in errors and r.n]
        served.sort(key=lambda i: len(requests[i].prefix))  # neighbours of alike lengths pad little
        samples: list[list[Sample]] = [[] for _ in requests]
        if processes.count() > 1:
            asked = repr((max_tokens, how, [(r.name, r.prefix, r.n, r.caps) for r in requests]))
            processes.agree("sampling", hashlib.blake2b(asked.encode(), digest_size=8).hexdigest())
        if served:
            run = self._run(params, [requests[i] for i in served], max_tokens, stop, how, cut)
            run.go(progress)
            self._keep(run)
            for at, (i, outputs) in enumerate(zip(served, run.outputs, strict=True)):
                if at in run.broken:
                    errors[i] = f"the model's logits are not numbers ({requests[i].name}); its weights are damaged"
                else:
                    samples[i] = [_sample(o, stop) for o in outputs]
        if errors:
            raise RequestError(errors, samples)
        return samples

    def _run(
        self,
        params: Params,
        requests: Sequence[Request],
        max_tokens: int,
        stop: Sequence[int],
        how: Sampling,
        cut: Callable[[list[int]], int | None] | None,
    ) -> Run:
        tasks = [
            Task(
                r.prefix,
                np.stack([sample_key(self.seed, r.name, j) for j in range(r.n)]),
                np.asarray([min((max_tokens, *r.caps[j : j + 1])) for j in range(r.n)]),
            )
            for r in requests
        ]
        self.reserve(max(len(r.prefix) for r in requests), max_tokens)
        ends = np.zeros(self.config.vocab_size, bool)
        ends[np.asarray(stop, np.int32)] = True
        dtype, total = params.embed.dtype, sum(r.n for r in requests)
        shape, sizes = self.shape(total, len(requests), max(len(r.prefix) for r in requests), max_tokens, dtype)
        return Run(
            params, tasks, shape, self._programs(dtype, how.filtered), how=how, ends=ends,
            chunk=self.chunk, sizes=sizes, batches=self.batches, kept=self._library(dtype), cut=cut,
            refill=self.refill, stats=self.stats,
        )  # fmt: skip

    def _error(self, r: Request, max_tokens: int) -> str | None:
        room = self.config.max_positions - max_tokens
        if 0 < len(r.prefix) <= room:
            return None
        return (
            f"a prefix of {len(r.prefix)} tokens ({r.name}) and {max_tokens} new ones do not fit the "
            f"model's {self.config.max_positions} positions; lower max_tokens"
        )

    def without_refilling(self) -> Sampler:
        """The same, but whole batches begin together and end with their last sample: what refilling is measured by."""
        plain = copy.copy(self)
        plain.refill, plain.stats = False, Stats()
        return plain

    # ---- Shapes and programs

    def reserve(self, prefix: int, new: int) -> None:
        """Make the caches of later calls long enough for prefixes and samples of so many tokens.

        They grow by doubling with what is asked for and are compiled for again each time; reserved before, never.
        """
        asked = (power_of_two(-(-(prefix - 1) // self.block)), power_of_two(-(-new // self.block)))
        grown = (max(self._reserved[0], asked[0]), max(self._reserved[1], asked[1]))
        if grown != self._reserved:
            self._reserved, self._kept = grown, None

    def shapes(self, dtype: Any) -> list[Shape]:
        """Every shape that a call within what is reserved can decode with, for weights of this type."""
        found: dict[Shape, None] = {}
        for lane in LANES:
            sizes = self._sizes(lane, dtype)
            found |= {
                self._sized(n, w): None for n in sizes for w in (lane, 1) if n // self.sharding.batch_size % w == 0
            }
        return list(found)

    def warm_up(self, params: Params, prefix: int, new: int, filtered: bool = False) -> None:
        """Compile all programs of all shapes for prefixes and samples of so many tokens; nothing compiles after."""
        self.reserve(prefix, new)
        programs = self._programs(params.embed.dtype, filtered)
        ends = np.zeros(self.config.vocab_size, bool)
        for shape in self.shapes(params.embed.dtype):
            run = Run(
                params, [], shape, programs, how=Sampling(), ends=ends, chunk=self.chunk,
                sizes=self._sizes(shape.lane, params.embed.dtype), batches=self.batches,
                kept=self._library(params.embed.dtype),
            )  # fmt: skip
            run.compile()
            self._keep(run)

    def _sized(self, rows: int, lane: int) -> Shape:
        return Shape(rows, lane, *self._reserved, self.block, self.sharding.batch_size)

    def _sizes(self, lane: int, dtype: Any) -> list[int]:
        """Rows of a whole batch, and of the smaller ones; none where the memory does not hold one such lane.

        Raises:
          AstroError: when it does not hold a single row either.
        """
        slots, unit = self.slots, self.sharding.batch_size
        if self.memory is not None:
            prefix, new = (blocks * self.block for blocks in self._reserved)
            how = (prefix, new, lane, np.dtype(dtype).itemsize, self.sharding)
            try:
                slots = min(slots, cache.rows_that_fit(int(self.memory * 2**30), self.config, *how))
            except AstroError:
                if lane == 1:
                    raise
                return []
        return batch_sizes(slots, unit)

    def shape(self, total: int, groups: int, longest: int, max_tokens: int, dtype: Any) -> tuple[Shape, list[int]]:
        """The smallest batch that holds `total` samples of some groups, with the sizes that it can shrink to.

        Its lanes are so wide that prefixes take at most a quarter of the columns of what is new, or as wide as the
        groups are large: narrow lanes are refilled with less waiting.

        Args:
          longest: tokens of the longest prefix.
        """
        wanted = power_of_two(min(-(-8 * longest // max_tokens), -(-total // groups)))
        for lane in reversed([lane for lane in LANES if lane <= wanted]):
            sizes = self._sizes(lane, dtype)
            if sizes and (rows := fitting(sizes, total)) // self.sharding.batch_size % lane == 0:
                break
        return self._sized(rows, lane), sizes

    def _programs(self, dtype: Any, filtered: bool) -> Programs:
        config, sharding = self.config, self.sharding
        return Programs(
            allocate=decode.make_allocate(config, sharding, dtype),
            prefill=decode.make_prefill(config, sharding),
            decode=decode.make_decode(config, sharding, self.chunk, filtered),
            copy=decode.make_copy(sharding),
            pack=decode.make_pack(config, sharding),
        )

    # ---- Prefixes kept between calls

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, prefixes are kept from one call to the next, for the same parameters, as far as `reuse` goes."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping, self._kept = False, None

    def _keep(self, run: Run) -> None:
        """The library's store as the run leaves it: what it was made of has been donated."""
        if run.library is not None and run.shelf is not None:
            self._kept = (run.library, run.shelf)

    def _library(self, dtype: Any) -> tuple[Library, KV] | None:
        if not self._keeping:
            return None
        if self._kept is None:
            blocks, c = self._reserved[0], self.config
            entry = cache.row_bytes(c, blocks * self.block, 0, 1, np.dtype(dtype).itemsize)
            devices = self.sharding.batch_size
            entries = int(self.reuse * 2**30) * self.sharding.mesh.size // entry // devices * devices
            if entries:
                shape = Shape(entries, 1, blocks, 1, self.block, devices)
                shelf = decode.make_allocate(c, self.sharding, dtype)[0](shape)
                self._kept = (Library(entries, self.block), shelf)
        return self._kept


def batch_sizes(slots: int, unit: int) -> list[int]:
    """Rows of a batch of so many slots, and of the smaller ones that it can shrink to: multiples of `unit`, rising."""
    return sorted({max(unit, -(-slots // (f * unit)) * unit) for f in (1, 2, 4, 8)})


def power_of_two(n: int) -> int:
    """n rounded up to a power of two, at least 1: lengths come in few shapes."""
    return 1 << max(n - 1, 0).bit_length()


def sample_key(seed: int, name: tuple[str | int, ...], sample: int) -> np.ndarray:
    """The random key uint32 [2] of one sample: a hash of all that names it, so order and batches do not matter."""
    digest = hashlib.blake2b(repr((seed, name, sample)).encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint32)


def _sample(output: Output, stop: Sequence[int]) -> Sample:
    tokens, logprobs, drawn = (
        np.concatenate(x)[: output.kept] for x in (output.tokens, output.logprobs, output.drawn_logprobs)
    )
    return Sample(tokens, logprobs, drawn, output.kept is not None or bool(tokens[-1] in stop))
