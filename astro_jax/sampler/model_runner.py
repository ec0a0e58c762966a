"""Run the jitted programs on what the scheduler decides, in batches of a few fixed sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from astro_jax.llama.params import Params
from astro_jax.sampler.kv_cache import KV, CacheLayout, KVCache
from astro_jax.sampler.programs import DecodeInputs, DecodeOutputs, Programs
from astro_jax.sampler.sample import SamplingInputs
from astro_jax.sampler.scheduler import ScheduledPrefix

PREFILL_BLOCKS = (4, 1)  # blocks of a prompt that one call of the prefill program computes


class PrefixCopy(NamedTuple):
    """A copy of the first `tokens` tokens of a prefix, from slot `source` to slot `target`."""

    target: int
    source: int
    tokens: int


class FiniteCheck(NamedTuple):
    """Whether the rows of one prefill gave finite numbers.

    Attributes:
      finite: bool [N], on the devices.
      requests: for each row the index of its request, None for a row without work.
    """

    finite: jax.Array
    requests: list[int | None]


class _Chunk(NamedTuple):
    """The next blocks to compute of a prompt; no prefix marks a row without work."""

    prefix: ScheduledPrefix | None
    block: int  # the first of the chunk

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole prefix."""
        return self.prefix.num_tokens if self.prefix is not None else 0


@dataclasses.dataclass(frozen=True)
class ModelRunner:
    """Calls the programs of an engine. Each method takes a cache, which it consumes, and returns the next one.

    Attributes:
      params: of the model.
      programs: of the engine.
      prefill_batches: for each of PREFILL_BLOCKS the rising numbers of prompts that one call can compute.
    """

    params: Params
    programs: Programs
    prefill_batches: Mapping[int, list[int]]

    def prefill(
        self, cache: KVCache, layout: CacheLayout, prefixes: list[ScheduledPrefix], blocks_done: list[int]
    ) -> tuple[KVCache, list[FiniteCheck]]:
        """Compute prompts from the blocks on that their slots hold already, many prompts at once."""

        def rest(chunks: list[_Chunk]) -> list[_Chunk]:
            return [c for c in chunks if c.block * layout.block_size < c.num_tokens]

        checks: list[FiniteCheck] = []
        todo = rest([_Chunk(*pair) for pair in zip(prefixes, blocks_done, strict=True)])
        while todo:
            again: list[_Chunk] = []
            for blocks in PREFILL_BLOCKS:
                chunks = [c for c in todo if _chunk_blocks(c, layout) == blocks]
                for batch in self._batches(chunks, blocks, layout):
                    cache, check = self._prefill_batch(cache, layout, batch, blocks)
                    checks.append(check)
                again += rest([_Chunk(c.prefix, c.block + blocks) for c in chunks])
            todo = again
        return cache, checks

    def _batches(self, chunks: list[_Chunk], blocks: int, layout: CacheLayout) -> Iterator[list[_Chunk]]:
        """Batches of chunks; a row of a batch lies on the device of its prefix slot."""
        slots = layout.num_prefixes // layout.devices
        queues: list[list[_Chunk]] = [[] for _ in range(layout.devices)]
        for chunk in chunks:
            if chunk.prefix is not None:
                queues[chunk.prefix.prefix_slot // slots].append(chunk)
        while longest := max(map(len, queues)):
            n = smallest_fit(self.prefill_batches[blocks], longest * len(queues)) // len(queues)
            yield [c for queue in queues for c in (queue + [_Chunk(None, 0)] * n)[:n]]
            queues = [queue[n:] for queue in queues]

    def _prefill_batch(
        self, cache: KVCache, layout: CacheLayout, chunks: list[_Chunk], blocks: int
    ) -> tuple[KVCache, FiniteCheck]:
        slots = layout.num_prefixes // layout.devices
        tokens = np.zeros((len(chunks), blocks * layout.block_size), np.int32)
        block, prefix_slot = np.zeros(len(chunks), np.int32), np.full(len(chunks), slots, np.int32)
        for i, (prefix, first) in enumerate(chunks):
            if prefix is not None:
                prompt = prefix.prompt_token_ids[first * layout.block_size : -1][: tokens.shape[1]]
                tokens[i, : len(prompt)] = prompt
                block[i], prefix_slot[i] = first, prefix.prefix_slot % slots
        kv, finite = self.programs.prefill(self.params, cache.prefix, tokens, block, prefix_slot)
        return cache.replace(prefix=kv), FiniteCheck(finite, [c.prefix.request if c.prefix else None for c in chunks])

    def copy(self, to: KV, source: KV | None, copies: list[PrefixCopy]) -> KV:
        """Copy prefixes to slots of `to`, from slots of `source`, or of `to` itself if source is None."""
        sizes, block_size = self.prefill_batches[1], to.keys.shape[-1]
        while copies:
            n = smallest_fit(sizes, len(copies))
            batch, copies = copies[:n], copies[n:]
            target, origin = np.full(n, to.keys.shape[2], np.int32), np.zeros(n, np.int32)
            target[: len(batch)], origin[: len(batch)] = [c.target for c in batch], [c.source for c in batch]
            blocks = np.int32(max(-(-c.tokens // block_size) for c in batch))
            if source is None:
                to = self.programs.copy(to, target, origin, blocks)
            else:
                to = self.programs.copy_from(to, source, target, origin, blocks)
        return to

    def decode(
        self, cache: KVCache, inputs: DecodeInputs, sampling: SamplingInputs, stop_tokens: np.ndarray
    ) -> tuple[KVCache, DecodeOutputs]:
        """Decode up to num_scheduler_steps tokens of all rows; the outputs are on the host."""
        completion, outputs = self.programs.decode(
            self.params, cache.prefix, cache.completion, inputs, sampling, stop_tokens
        )
        return cache.replace(completion=completion), jax.device_get(outputs)

    def pack(self, cache: KVCache, rows: np.ndarray, prefix_slots: np.ndarray, layout: CacheLayout) -> KVCache:
        """Move some rows, each with its prefix, to the cache of a smaller batch."""
        return KVCache(*self.programs.pack(cache.prefix, cache.completion, rows, prefix_slots, layout))

    def precompile(self, cache: KVCache, layout: CacheLayout, sizes: list[int], buffer: KV | None) -> KV | None:
        """Call prefill, copy and pack once in each shape, without work; return the buffer.

        Args:
          cache: an empty cache.
          layout: of the cache.
          sizes: numbers of rows that the batch can shrink to.
          buffer: of the prefix cache, if one is in use.
        """
        for blocks, batches in self.prefill_batches.items():
            for n in batches:
                cache, _ = self._prefill_batch(cache, layout, [_Chunk(None, 0)] * n, blocks)
        for n in self.prefill_batches[1]:
            past_the_end = [PrefixCopy(layout.num_prefixes, 0, 0)] * n
            prefix = self.copy(cache.prefix, None, past_the_end)
            if buffer is not None:
                prefix = self.copy(prefix, buffer, past_the_end)
                buffer = self.copy(buffer, prefix, [PrefixCopy(buffer.keys.shape[2], 0, 0)] * n)
            cache = cache.replace(prefix=prefix)
        for n in filter(layout.shrinks_to, sizes):
            zeros = np.zeros(n, np.int32)
            self.pack(cache, zeros, zeros, layout.ungrouped(n))
        return buffer


def _chunk_blocks(chunk: _Chunk, layout: CacheLayout) -> int:
    """Blocks of the next chunk of a prompt. A chunk of several blocks must be filled to three quarters."""
    left = -(-chunk.num_tokens // layout.block_size) - chunk.block
    return next(blocks for blocks in PREFILL_BLOCKS if 4 * left >= 3 * blocks or blocks == 1)


def smallest_fit(sizes: list[int], n: int) -> int:
    """The smallest of some rising sizes that is at least n, or the largest if none is."""
    return next((size for size in sizes if size >= n), sizes[-1])
