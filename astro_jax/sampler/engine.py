"""From requests to samples: prefixes are prefilled once each, their samples decode together, ended rows are dropped."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from astro_jax.errors import AstroError
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.sampler import decode
from astro_jax.sampler.decode import Rows

# The shortest cache; longer ones double, so that few shapes are compiled.
COLUMNS = 16


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
      tokens: int32 [T], the stop token included.
      logprobs: float32 [T] under the policy at temperature 1, whatever it was sampled at.
      stopped: whether a stop token ended it, not the limit.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    stopped: bool


class Sampler:
    """Generates on one mesh.

    Args:
      config: the Llama.
      sharding: of decoding (mesh.decode_sharding); parameters passed to `generate` lie accordingly.
      seed: all randomness is folded from it and the requests' names.
      slots: rows that decode at once. Batches of rows are slots, slots / 2, ... down to an eighth.
      chunk: decode steps between two looks at which rows have ended.
    """

    def __init__(self, config: LlamaConfig, sharding: Sharding, seed: int, slots: int = 512, chunk: int = 16):
        if slots < 1:
            raise AstroError("sampler: slots is at least 1")
        smallest = sharding.batch_size
        self.sizes = sorted({max(smallest, -(-slots // (f * smallest)) * smallest) for f in (1, 2, 4, 8)})
        self.config, self.sharding, self.seed, self.chunk = config, sharding, seed, chunk
        self._prefill = decode.make_prefill(config, sharding)
        self._spread = decode.make_spread(sharding)

    def generate(
        self,
        params: Params,
        requests: Sequence[Request],
        *,
        max_tokens: int,
        stop: Sequence[int],
        temperature: float = 1.0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]:
        """Draw all samples of all requests.

        Args:
          max_tokens: of one sample, the stop token included.
          stop: ids that end a sample.
          temperature: 0 is greedy.
          progress: called with the number of samples of each wave that is done.

        Returns:
          for each request its samples, in order.

        Raises:
          AstroError: for an empty prefix, or one that leaves no room in the model's context.
        """
        self._check(requests, max_tokens)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prefix))  # alike lengths pad little
        rows = [(i, j) for i in order for j in range(requests[i].n)]
        samples: list[list[Sample]] = [[] for _ in requests]
        for at in range(0, len(rows), self.sizes[-1]):
            wave = rows[at : at + self.sizes[-1]]
            for (i, _), sample in zip(
                wave, self._wave(params, requests, wave, max_tokens, stop, temperature), strict=True
            ):
                samples[i].append(sample)
            if progress is not None:
                progress(len(wave))
        return samples

    def _check(self, requests: Sequence[Request], max_tokens: int) -> None:
        for r in requests:
            room = self.config.max_positions - max_tokens
            if not 0 < len(r.prefix) <= room:
                raise AstroError(
                    f"sampler: a prefix of {len(r.prefix)} tokens ({r.name}) and {max_tokens} new ones do not fit the "
                    f"model's {self.config.max_positions} positions; lower max_tokens"
                )

    def _wave(
        self,
        params: Params,
        requests: Sequence[Request],
        wave: Sequence[tuple[int, int]],
        max_tokens: int,
        stop: Sequence[int],
        temperature: float,
    ) -> list[Sample]:
        """Prefill the prefixes of a wave, then decode its rows until all have ended."""
        rows, column = self._prefill_wave(params, requests, wave, max_tokens)
        step = decode.make_decode(self.config, self.sharding, self.chunk, tuple(stop))
        tokens: list[list[np.ndarray]] = [[] for _ in wave]
        logprobs: list[list[np.ndarray]] = [[] for _ in wave]
        live = owner = np.arange(len(wave))  # the rows still going, and which sample of the wave each belongs to
        while True:
            rows, new_tokens, new_logprobs = step(params, rows, np.int32(column), np.float32(temperature))
            column += self.chunk
            out_tokens, out_logprobs, left = jax.device_get((new_tokens, new_logprobs, rows.left))
            for row, sample in zip(live, owner, strict=True):
                emitted = int((out_tokens[:, row] >= 0).sum())
                tokens[sample].append(out_tokens[:emitted, row])
                logprobs[sample].append(out_logprobs[:emitted, row])
            going = left[live] > 0
            live, owner = live[going], owner[going]
            if not len(live):
                return [_sample(t, p, stop) for t, p in zip(tokens, logprobs, strict=True)]
            size, columns = self._size(len(live)), power_of_two(column + self.chunk)
            if size < len(left) or columns > rows.cache.length:
                rows = self._spread(rows, self._padded(live), max(columns, rows.cache.length))
                live = np.arange(len(live))

    def _prefill_wave(
        self, params: Params, requests: Sequence[Request], wave: Sequence[tuple[int, int]], max_tokens: int
    ) -> tuple[Rows, int]:
        """Prefill each distinct request of the wave once; give every sample a row with its prefix's cache."""
        groups = list(dict.fromkeys(i for i, _ in wave))
        # The last token of a prefix is not prefilled: it is the first that decodes.
        longest = max(len(requests[i].prefix) - 1 for i in groups)
        columns = power_of_two(longest)
        size = self._size(len(groups))
        tokens = np.zeros((size, columns), np.int32)
        start = np.full(size, columns, np.int32)
        last = np.zeros(size, np.int32)
        for row, i in enumerate(groups):
            *head, last[row] = requests[i].prefix
            start[row] -= len(head)
            tokens[row, start[row] :] = head
        cache = self._prefill(params, tokens, start)
        group_of = {i: row for row, i in enumerate(groups)}
        index = self._padded(np.asarray([group_of[i] for i, _ in wave], np.int32))
        keys, left = np.zeros((len(index), 2), np.uint32), np.zeros(len(index), np.int32)
        keys[: len(wave)] = [sample_key(self.seed, requests[i].name, j) for i, j in wave]
        left[: len(wave)] = [min((max_tokens, *requests[i].caps[j : j + 1])) for i, j in wave]
        rows = Rows(cache=cache, token=last, start=start, key=np.zeros((size, 2), np.uint32), left=start)
        rows = self._spread(rows, index, power_of_two(columns + self.chunk))
        where = self.sharding.named("batch")
        rows = dataclasses.replace(rows, key=jax.device_put(keys, where), left=jax.device_put(left, where))
        return rows, columns

    def _padded(self, index: np.ndarray) -> np.ndarray:
        """Row indices, filled up to a compiled batch size with the first of them."""
        return np.pad(index, (0, self._size(len(index)) - len(index)), constant_values=index[0]).astype(np.int32)

    def _size(self, n: int) -> int:
        return next(size for size in self.sizes if size >= n)


def power_of_two(n: int) -> int:
    """n rounded up to a power of two, at least COLUMNS: lengths come in few shapes."""
    return max(COLUMNS, 1 << (n - 1).bit_length()) if n > 0 else COLUMNS


def sample_key(seed: int, name: tuple[str | int, ...], sample: int) -> np.ndarray:
    """The random key uint32 [2] of one sample: a hash of all that names it, so order and batches do not matter."""
    digest = hashlib.blake2b(repr((seed, name, sample)).encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint32)


def _sample(tokens: list[np.ndarray], logprobs: list[np.ndarray], stop: Sequence[int]) -> Sample:
    ids = np.concatenate(tokens)
    return Sample(ids, np.concatenate(logprobs), bool(ids[-1] in stop))
