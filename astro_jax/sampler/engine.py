"""From requests to samples: what is asked, what comes back, and the one engine between them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from astro_jax import config as cfg
from astro_jax import distributed
from astro_jax.errors import AstroError
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.sampler import cache, decode
from astro_jax.sampler.cache import KV, Shape
from astro_jax.sampler.library import Library
from astro_jax.sampler.run import CHUNKS, EngineStats, Output, Programs, Run, Task, fitting
from astro_jax.sampler.sampling_params import SamplingParams

LANES = (1, 2, 4, 8, 16)  # rows that share one copy of a prefix
PREFILL = (256, 2048)  # tokens that are prefilled at once: a few prompts, or many


@dataclasses.dataclass(frozen=True)
class Request:
    """A prefix and how many samples to draw of its continuation.

    Attributes:
      prompt_token_ids: at least one.
      n: number of completions.
      request_id: names the random draws, e.g. ("search", problem id, path). The same id gives the same noise.
      max_tokens: the most tokens of each completion, where they differ; none: that of the SamplingParams.
    """

    prompt_token_ids: tuple[int, ...]
    n: int
    request_id: tuple[str | int, ...]
    max_tokens: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """One continuation.

    Attributes:
      token_ids: int32 [T], the stop token included, and those of a stop string.
      logprobs: float32 [T] under the policy at temperature 1, whatever it was sampled at.
      sampling_logprobs: float32 [T] under the distribution that was drawn from: after temperature, top-k, top-p and min-p.
      finish_reason: "stop" if a stop token or a stop string ended it, "length" if max_tokens did.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]

    @property
    def stopped(self) -> bool:
        return self.finish_reason == "stop"


class RequestError(AstroError):
    """Some requests could not be served.

    Attributes:
      completions: what `generate` would have returned, with nothing in the place of those.
    """

    def __init__(self, errors: dict[int, str], samples: list[list[Completion]]):
        first, *more = errors.values()
        super().__init__(f"sampler: {first}" + (f"; and {len(more)} more of {len(samples)} requests" if more else ""))
        self.completions = samples


class Engine:
    """Generates on one mesh.

    Args:
      config: the Llama.
      sharding: of decoding (mesh.decode_sharding); parameters passed to `generate` lie accordingly.
      seed: all randomness is folded from it and the requests' names.
      max_num_seqs: the most rows that decode at once. When few are left they go on in batches of a half, a quarter and an
        eighth.
      kv_cache_gib: GiB a device for their caches; of the rows as many as fit it (cache.rows_that_fit).
      num_scheduler_steps: the most decode steps between two looks at which rows have ended.
      block_size: columns of the caches that are attended to and prefilled at once.
      prefix_cache_gib: GiB a device for prefixes kept from one call to the next inside `keeping`.
      continuous_batching: give rows that have ended to samples that wait; without, whole batches begin and end together.
    """

    def __init__(
        self,
        config: LlamaConfig,
        sharding: Sharding,
        seed: int,
        max_num_seqs: int = 512,
        kv_cache_gib: float | None = None,
        num_scheduler_steps: int = 16,
        block_size: int = 32,
        prefix_cache_gib: float = 0.0,
        continuous_batching: bool = True,
    ):
        if min(max_num_seqs, num_scheduler_steps, block_size) < 1:
            raise AstroError("sampler: max_num_seqs, num_scheduler_steps and block_size are at least 1")
        smallest = sharding.batch_size
        self.max_num_seqs, self.kv_cache_gib = max_num_seqs, kv_cache_gib
        self.batches = {
            c: sorted({max(1, n // (c * block_size * smallest)) * smallest for n in PREFILL}) for c in CHUNKS
        }
        self.config, self.sharding, self.seed = config, sharding, seed
        self.chunk, self.block = num_scheduler_steps, block_size
        self.prefix_cache_gib, self.refill = prefix_cache_gib, continuous_batching
        self.stats = EngineStats()
        self._reserved = (1, 1)  # blocks of the stores: they grow to the longest that was asked for
        self._kept: tuple[Library, KV] | None = None
        self._keeping = False

    @classmethod
    def from_config(cls, c: cfg.Sampler, config: LlamaConfig, sharding: Sharding, seed: int) -> Engine:
        """As a run's config says."""
        return cls(
            config,
            sharding,
            seed,
            c.max_num_seqs,
            c.kv_cache_gib,
            c.num_scheduler_steps,
            c.block_size,
            c.prefix_cache_gib,
        )

    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        sampling: SamplingParams,
        *,
        stop_fn: Callable[[list[int]], int | None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw all samples of all requests.

        Args:
          stop_fn: tells of a sample's tokens how many there are up to the end of a stop string, if one came.
          progress: called with the number of samples that have ended since.

        Returns:
          for each request its samples, in order.

        Raises:
          RequestError: for an empty prefix, one that leaves no room in the model's context, or logits that are not
            numbers; the other requests are served before.
          AstroError: for settings that no request can be served with.
        """
        max_tokens = sampling.max_tokens
        errors = {i: error for i, r in enumerate(requests) if (error := self._error(r, max_tokens))}
        served = [i for i, r in enumerate(requests) if i not in errors and r.n]
        served.sort(key=lambda i: len(requests[i].prompt_token_ids))  # neighbours of alike lengths pad little
        samples: list[list[Completion]] = [[] for _ in requests]
        if distributed.process_count() > 1:
            asked = repr((sampling, [(r.request_id, r.prompt_token_ids, r.n, r.max_tokens) for r in requests]))
            distributed.assert_equal_across_processes(
                "sampling", hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()
            )
        if served:
            run = self._run(params, [requests[i] for i in served], sampling, stop_fn)
            run.go(progress)
            self._keep(run)
            for at, (i, outputs) in enumerate(zip(served, run.outputs, strict=True)):
                if at in run.broken:
                    errors[i] = (
                        f"the model's logits are not numbers ({requests[i].request_id}); its weights are damaged"
                    )
                else:
                    samples[i] = [_sample(o, sampling.stop_token_ids or ()) for o in outputs]
        if errors:
            raise RequestError(errors, samples)
        return samples

    def _run(
        self,
        params: Params,
        requests: Sequence[Request],
        sampling: SamplingParams,
        stop_fn: Callable[[list[int]], int | None] | None,
    ) -> Run:
        max_tokens = sampling.max_tokens
        tasks = [
            Task(
                r.prompt_token_ids,
                np.stack([sample_key(self.seed, r.request_id, j) for j in range(r.n)]),
                np.asarray([min((max_tokens, *r.max_tokens[j : j + 1])) for j in range(r.n)]),
            )
            for r in requests
        ]
        self.reserve(max(len(r.prompt_token_ids) for r in requests), max_tokens)
        ends = np.zeros(self.config.vocab_size, bool)
        ends[np.asarray(sampling.stop_token_ids or (), np.int32)] = True
        dtype, total = params.embed.dtype, sum(r.n for r in requests)
        shape, sizes = self.shape(
            total, len(requests), max(len(r.prompt_token_ids) for r in requests), max_tokens, dtype
        )
        return Run(
            params, tasks, shape, self._programs(dtype, sampling.filtered), how=sampling, ends=ends,
            chunk=self.chunk, sizes=sizes, batches=self.batches, kept=self._library(dtype), stop_fn=stop_fn,
            refill=self.refill, stats=self.stats,
        )  # fmt: skip

    def _error(self, r: Request, max_tokens: int) -> str | None:
        room = self.config.max_positions - max_tokens
        if 0 < len(r.prompt_token_ids) <= room:
            return None
        return (
            f"a prefix of {len(r.prompt_token_ids)} tokens ({r.request_id}) and {max_tokens} new ones do not fit the "
            f"model's {self.config.max_positions} positions; lower max_tokens"
        )

    def static_batching(self) -> Engine:
        """The same, but whole batches begin together and end with their last sample: what refilling is measured by."""
        plain = copy.copy(self)
        plain.refill, plain.stats = False, EngineStats()
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

    def precompile(self, params: Params, prefix: int, new: int, filtered: bool = False) -> None:
        """Compile all programs of all shapes for prefixes and samples of so many tokens; nothing compiles after."""
        self.reserve(prefix, new)
        programs = self._programs(params.embed.dtype, filtered)
        ends = np.zeros(self.config.vocab_size, bool)
        for shape in self.shapes(params.embed.dtype):
            run = Run(
                params, [], shape, programs, how=SamplingParams(max_tokens=1), ends=ends, chunk=self.chunk,
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
        slots, unit = self.max_num_seqs, self.sharding.batch_size
        if self.kv_cache_gib is not None:
            prefix, new = (blocks * self.block for blocks in self._reserved)
            how = (prefix, new, lane, np.dtype(dtype).itemsize, self.sharding)
            try:
                slots = min(slots, cache.rows_that_fit(int(self.kv_cache_gib * 2**30), self.config, *how))
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
        """Inside, prefixes are kept from one call to the next, for the same parameters, as far as `prefix_cache_gib` goes."""
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
            entries = int(self.prefix_cache_gib * 2**30) * self.sharding.mesh.size // entry // devices * devices
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


def _sample(output: Output, stop: Sequence[int]) -> Completion:
    tokens, logprobs, drawn = (
        np.concatenate(x)[: output.kept] for x in (output.tokens, output.logprobs, output.sampling_logprobs)
    )
    return Completion(tokens, logprobs, drawn, "stop" if output.kept is not None or tokens[-1] in stop else "length")
