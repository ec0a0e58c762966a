"""The engine: from requests to completions."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from astro_jax import config as cfg
from astro_jax import distributed
from astro_jax.errors import AstroError
from astro_jax.llama import quantized
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.sampler import kv_cache, scheduler
from astro_jax.sampler.generation_loop import GenerationLoop, StopFn, initial_state
from astro_jax.sampler.kv_cache import CacheLayout, DType
from astro_jax.sampler.model_runner import PREFILL_BLOCKS, ModelRunner, smallest_fit
from astro_jax.sampler.prefix_cache import PrefixCache
from astro_jax.sampler.programs import Programs, make_programs
from astro_jax.sampler.request import Completion, Request, RequestError
from astro_jax.sampler.sample import SamplingInputs
from astro_jax.sampler.sampling_params import SamplingParams
from astro_jax.sampler.stats import EngineStats

GROUP_SIZES = (1, 2, 4, 8, 16)  # rows of a prefix group
OnCompletion = Callable[[int, int, Completion], None]  # (index of the request, of the completion, the completion)
PREFILL_TOKENS = (256, 2048)  # tokens that one call of the prefill program computes: of a few prompts, or of many


class Reserved(NamedTuple):
    """Blocks of the caches of all later calls: powers of two."""

    prefix_blocks: int
    completion_blocks: int


class Engine:
    """Generates completions on one mesh.

    Args:
      config: the model.
      sharding: of decoding (`mesh.decode_sharding`). The parameters passed to `generate` lie accordingly.
      seed: all random draws come from the seed and the ids of the requests.
      max_num_seqs: the most sequences that decode at once. When few are left, they go on in batches of a half, a
        quarter and an eighth.
      kv_cache_gib: GiB a device for the key-value cache. It limits the number of sequences. None: no limit.
      num_scheduler_steps: the most decode steps between two looks of the scheduler.
      block_size: columns of a cache block, the unit of attention and prefill.
      prefix_cache_gib: GiB a device for each prefix cache. 0: none.
      quantization: "int8": the weights are int8 numbers (`llama.quantized`); call `quantize` before `generate`.
      kv_cache_dtype: "int8": keys and values are int8 numbers. None: they have the type of the computation.
      continuous_batching: give a free row to a waiting sequence at once. False: static batching, where a batch starts
        together and ends with its last sequence.

    Attributes:
      reserved: the length of the caches. Calls raise it when they need more; `reserve` raises it ahead of time.
      stats: counts over all calls. Assign a new EngineStats to start again from 0.

    Raises:
      AstroError: for a size below 1.
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
        quantization: cfg.Quantization = None,
        kv_cache_dtype: cfg.Quantization = None,
        continuous_batching: bool = True,
    ):
        if min(max_num_seqs, num_scheduler_steps, block_size) < 1:
            raise AstroError("sampler: max_num_seqs, num_scheduler_steps and block_size must be at least 1")
        self.config, self.sharding, self.seed = config, sharding, seed
        self.max_num_seqs, self.kv_cache_gib = max_num_seqs, kv_cache_gib
        self.num_scheduler_steps, self.block_size = num_scheduler_steps, block_size
        self.prefix_cache_gib, self.continuous_batching = prefix_cache_gib, continuous_batching
        self.quantization, self.kv_cache_dtype = quantization, kv_cache_dtype
        self.prefill_batches = {
            blocks: sorted(
                {max(1, n // (blocks * block_size * sharding.batch_size)) * sharding.batch_size for n in PREFILL_TOKENS}
            )
            for blocks in PREFILL_BLOCKS
        }
        self.stats = EngineStats()
        self.reserved = Reserved(1, 1)

    @classmethod
    def from_config(cls, c: cfg.Sampler, config: LlamaConfig, sharding: Sharding, seed: int) -> Engine:
        """Make the engine that a config describes."""
        return cls(
            config,
            sharding,
            seed,
            c.max_num_seqs,
            c.kv_cache_gib,
            c.num_scheduler_steps,
            c.block_size,
            c.prefix_cache_gib,
            c.quantization,
            c.kv_cache_dtype,
        )

    @property
    def quantized_cache(self) -> bool:
        """Whether keys and values are int8 numbers."""
        return self.kv_cache_dtype is not None

    def quantize(self, params: Params) -> Params:
        """The parameters as `generate` takes them: rounded to int8 where the engine has `quantization`.

        Args:
          params: in the type of the computation, on the engine's devices.
        """
        return params if self.quantization is None else quantized.make_quantize(self.config, self.sharding)(params)

    def new_prefix_cache(self) -> PrefixCache:
        """Make an empty prefix cache, to pass to several calls of `generate` with the same parameters."""
        return PrefixCache(self.prefix_cache_gib)

    def static_batching(self) -> Engine:
        """Make the same engine with static batching, to compare continuous batching with."""
        engine = copy.copy(self)
        engine.continuous_batching, engine.stats = False, EngineStats()
        return engine

    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        sampling: SamplingParams,
        *,
        prefix_cache: PrefixCache | None = None,
        stop_fn: StopFn | None = None,
        progress: Callable[[int], None] | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Sample all completions of all requests.

        Args:
          params: of the model, as `quantize` returns them.
          requests: prompts with a number of completions each.
          sampling: temperature, filters, limits and stop tokens.
          prefix_cache: prefixes of earlier calls, read and added to. None: keep nothing.
          stop_fn: from the tokens of a completion to the number of tokens up to the end of a stop string, or None.
          progress: called with the number of completions that have ended since the last call.
          on_completion: called with each completion when it ends, while others are still sampled: with the index of the
            request, that of the completion in its request, and the completion.

        Returns:
          For each request its completions, in order.

        Raises:
          RequestError: for an empty prompt, a prompt that leaves no space for max_tokens in the model's context, or
            logits that are not numbers. The other requests are served first.
          AstroError: if kv_cache_gib is too small for a single sequence.
        """
        _assert_same_requests(requests, sampling)
        errors = {i: error for i, r in enumerate(requests) if (error := self._error(r, sampling.max_tokens))}
        served = [i for i, r in enumerate(requests) if i not in errors and r.n]
        served.sort(key=lambda i: len(requests[i].prompt_token_ids))  # prompts of similar length need little padding
        completions: list[list[Completion]] = [[] for _ in requests]
        if served:
            groups = [self._sequences(i, requests[r], sampling) for i, r in enumerate(served)]
            loop = self._loop(params, groups, sampling, prefix_cache, stop_fn)
            if on_completion is not None:
                loop.on_end = lambda s: on_completion(
                    served[s.request], s.index, s.completion(sampling.stop_token_ids or ())
                )
            loop.run(progress)
            for i, (r, sequences) in enumerate(zip(served, groups, strict=True)):
                if i in loop.state.broken:
                    errors[r] = (
                        f"the model's logits are not numbers ({requests[r].request_id}); its weights are damaged"
                    )
                else:
                    completions[r] = [s.completion(sampling.stop_token_ids or ()) for s in sequences]
        if errors:
            raise RequestError(errors, completions)
        return completions

    def _error(self, r: Request, max_tokens: int) -> str | None:
        """Why a request cannot be served, or None."""
        n = len(r.prompt_token_ids)
        new = max((_limit(r, j, max_tokens) for j in range(r.n)), default=max_tokens)
        if 0 < n <= self.config.max_positions - new:
            return None
        return (
            f"a prompt of {n} tokens ({r.request_id}) and {new} new ones do not fit the model's "
            f"{self.config.max_positions} positions; lower max_tokens"
        )

    def _sequences(self, i: int, r: Request, sampling: SamplingParams) -> list[scheduler.Sequence]:
        """One sequence for each completion of a request, the i-th that is served."""
        return [
            scheduler.Sequence(
                request=i,
                prompt_token_ids=r.prompt_token_ids,
                key=completion_key(self.seed, r.request_id, j),
                max_tokens=_limit(r, j, sampling.max_tokens),
                index=j,
            )
            for j in range(r.n)
        ]

    def _loop(
        self,
        params: Params,
        groups: list[list[scheduler.Sequence]],
        sampling: SamplingParams,
        prefix_cache: PrefixCache | None,
        stop_fn: StopFn | None,
    ) -> GenerationLoop:
        longest = max(len(sequences[0].prompt_token_ids) for sequences in groups)
        self.reserve(longest, sampling.max_tokens)
        dtype = params.embed.dtype
        layout, sizes = self.choose_layout(sum(map(len, groups)), len(groups), longest, sampling.max_tokens, dtype)
        programs = self._programs(dtype, sampling.filtered)
        if prefix_cache is not None:
            prefix_cache.prepare(self.config, self.sharding, dtype, layout)
        return GenerationLoop(
            runner=ModelRunner(params, programs, self.prefill_batches),
            state=initial_state(layout, programs.allocate(layout), groups),
            sampling=SamplingInputs.of(sampling),
            stop_tokens=self._stop_tokens(sampling),
            sizes=sizes,
            stats=self.stats,
            prefix_cache=prefix_cache,
            stop_fn=stop_fn,
            continuous_batching=self.continuous_batching,
        )

    def _programs(self, dtype: DType, filtered: bool) -> Programs:
        return make_programs(self.config, self.sharding, dtype, self.num_scheduler_steps, filtered)

    def _stop_tokens(self, sampling: SamplingParams) -> np.ndarray:
        """The stop tokens as a mask, bool [V]."""
        mask = np.zeros(self.config.vocab_size, bool)
        mask[np.asarray(sampling.stop_token_ids or (), np.int32)] = True
        return mask

    # ---- Layouts and compilation

    def reserve(self, prompt: int, new: int) -> None:
        """Make the caches of all later calls long enough for prompts and completions of so many tokens.

        Without `reserve` the caches grow by doubling when a call needs more, and their programs compile again.
        """
        prefix_blocks = power_of_two(-(-(prompt - 1) // self.block_size))
        completion_blocks = power_of_two(-(-new // self.block_size))
        self.reserved = Reserved(
            max(self.reserved.prefix_blocks, prefix_blocks), max(self.reserved.completion_blocks, completion_blocks)
        )

    def precompile(
        self,
        params: Params,
        prompt: int,
        new: int,
        filtered: bool = False,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        """Compile the programs of all layouts for prompts and completions of so many tokens; later calls compile none.

        Args:
          params: of the model.
          prompt: tokens of the longest prompt.
          new: tokens of the longest completion.
          filtered: compile for sampling with top_k, top_p or min_p.
          prefix_cache: compile the copies from and to this prefix cache, too.
        """
        self.reserve(prompt, new)
        dtype = params.embed.dtype
        programs = self._programs(dtype, filtered)
        runner = ModelRunner(params, programs, self.prefill_batches)
        sampling = SamplingParams(max_tokens=1)
        for layout in self.layouts(dtype):
            if prefix_cache is not None:
                prefix_cache.prepare(self.config, self.sharding, dtype, layout)
            state = initial_state(layout, programs.allocate(layout), [])
            cache, _ = runner.decode(
                state.cache, state.inputs, SamplingInputs.of(sampling), self._stop_tokens(sampling)
            )
            buffer = prefix_cache.buffer if prefix_cache is not None else None
            buffer = runner.precompile(cache, layout, self._batch_sizes(layout.group_size, dtype), buffer)
            if prefix_cache is not None:
                prefix_cache.buffer = buffer

    def layouts(self, dtype: DType) -> list[CacheLayout]:
        """Every layout that a call within `reserved` can use, for weights of this type."""
        layouts: dict[CacheLayout, None] = {}
        for group_size in GROUP_SIZES:
            for n in self._batch_sizes(group_size, dtype):
                for size in (group_size, 1):
                    if n // self.sharding.batch_size % size == 0:
                        layouts[self._layout(n, size)] = None
        return list(layouts)

    def choose_layout(
        self, num_seqs: int, num_prompts: int, longest: int, max_tokens: int, dtype: DType
    ) -> tuple[CacheLayout, list[int]]:
        """Choose the smallest batch that holds all sequences, and the size of its prefix groups.

        A prefix group is so large that prefixes take at most a quarter of the columns of new tokens, or as large as the
        number of completions of a prompt: rows of small groups wait less for the next prompt.

        Args:
          num_seqs: sequences of the call.
          num_prompts: prompts of the call.
          longest: tokens of the longest prompt.
          max_tokens: the most tokens of a completion.
          dtype: of the computation.

        Returns:
          The layout, and the rising numbers of rows that the batch can shrink to.

        Raises:
          AstroError: if kv_cache_gib is too small for a single sequence.
        """
        largest = power_of_two(min(-(-8 * longest // max_tokens), -(-num_seqs // num_prompts)))
        for group_size in reversed([size for size in GROUP_SIZES if size <= largest]):
            sizes = self._batch_sizes(group_size, dtype)
            if sizes and (rows := smallest_fit(sizes, num_seqs)) // self.sharding.batch_size % group_size == 0:
                break
        return self._layout(rows, group_size), sizes

    def _layout(self, num_seqs: int, group_size: int) -> CacheLayout:
        devices = self.sharding.batch_size
        return CacheLayout(num_seqs, group_size, *self.reserved, self.block_size, devices, self.quantized_cache)

    def _batch_sizes(self, group_size: int, dtype: DType) -> list[int]:
        """Rows of the largest batch and of the smaller ones; none if kv_cache_gib does not hold one prefix group.

        Raises:
          AstroError: if kv_cache_gib does not hold a single sequence.
        """
        num_seqs = self.max_num_seqs
        if self.kv_cache_gib is not None:
            prompt, new = (blocks * self.block_size for blocks in self.reserved)
            budget = int(self.kv_cache_gib * 2**30)
            column = kv_cache.bytes_per_column(self.config, np.dtype(dtype).itemsize, self.quantized_cache)
            try:
                fit = kv_cache.sequences_that_fit(budget, column, prompt, new, group_size, self.sharding)
            except AstroError:
                if group_size == 1:
                    raise
                return []
            num_seqs = min(num_seqs, fit)
        return batch_sizes(num_seqs, self.sharding.batch_size)


def _limit(r: Request, j: int, max_tokens: int) -> int:
    """The most tokens of the j-th completion of a request."""
    return min((max_tokens, *r.max_tokens[j : j + 1]))


def batch_sizes(num_seqs: int, unit: int) -> list[int]:
    """Rows of a batch of `num_seqs` and of the smaller batches that it can shrink to: multiples of `unit`, rising."""
    return sorted({max(unit, -(-num_seqs // (f * unit)) * unit) for f in (1, 2, 4, 8)})


def power_of_two(n: int) -> int:
    """Round n up to a power of two, at least 1. So lengths come in few shapes."""
    return 1 << max(n - 1, 0).bit_length()


def completion_key(seed: int, request_id: tuple[str | int, ...], index: int) -> np.ndarray:
    """The random key uint32 [2] of one completion: a hash of its names, so that order and batches play no part.

    For example, `completion_key(0, ("search", "p7"), 2)` is the key of the third completion of a request.
    """
    digest = hashlib.blake2b(repr((seed, request_id, index)).encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint32)


def _assert_same_requests(requests: Sequence[Request], sampling: SamplingParams) -> None:
    """Assert that all processes got the same requests."""
    if distributed.process_count() > 1:
        names = repr((sampling, [(r.request_id, r.prompt_token_ids, r.n, r.max_tokens) for r in requests]))
        distributed.assert_equal_across_processes(
            "sampling", hashlib.blake2b(names.encode(), digest_size=8).hexdigest()
        )
