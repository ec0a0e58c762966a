"""A synthetic policy: an engine and a tokenizer with known properties, in the place of a language model.

A solution has `lines` lines. After each line `distinct` different lines can follow, with different priors. A hidden
number x decides the verdict: x does a random walk along the solution, one standard normal step a line, and the solution
is right if x > 0 after the last line. So the chance to solve the problem from a node with n lines to go is
Phi(x / sqrt(n)): a random walk that starts at `solve` and ends at 0 or 1.

The world is a function of its seed. No tree is stored: a node's children are computed from the hash of its path, for
all sequences of a call at once. One line is one token, so tokens are counted in lines.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.sampler import Completion, EngineStats, Request, SamplingParams
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier

RIGHT = "0"  # the right answer of every problem
ANSWERS = 17  # the right answer, and 16 wrong ones
_ANSWER = "The answer is "
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class World:
    """The properties of the policy and of its problems.

    Attributes:
      lines: the lines of a solution.
      distinct: the different lines that can follow a node.
      solve: the chance of a right solution, over problems and samples.
      unfinished: the chance that a line never ends. The rest of the completion is then without an end.
      noise: the standard deviation of the log-probabilities of the lines that can follow a node.
      seed: of the whole world.
    """

    lines: int
    distinct: int = 8
    solve: float = 0.5
    unfinished: float = 0.0
    noise: float = 1.5
    seed: int = 0

    @property
    def unfinished_token(self) -> int:
        """The token of a line without an end. The tokens of the lines that end stand before it."""
        return self.distinct * (1 + ANSWERS)

    def problems(self, n: int) -> list[Problem]:
        """The first n problems."""
        return [Problem(f"synthetic-{i}", f"{i}", RIGHT, task="number") for i in range(n)]

    def policy(self) -> Policy:
        """The policy: its engine samples from this world."""
        engine, tokenizer = typing.cast(Any, SyntheticEngine(self)), typing.cast(Tokenizer, SyntheticTokenizer(self))
        return Policy(engine, typing.cast(Any, None), tokenizer)


class SyntheticTokenizer:
    """The tokenizer of a world. Tokens below `distinct` are lines before the last one.

    The token `distinct + ANSWERS * i + a` is the last line: line i, with the answer a. It is an end token too. The
    prompt of problem i is one token above all lines.
    """

    def __init__(self, world: World):
        self.world = world
        d = world.distinct
        self.stop_token_ids = tuple(range(d, world.unfinished_token))
        self._texts = [f"Line {i}.\n" for i in range(d)]
        self._texts += [f"{_ANSWER}{a}." for _ in range(d) for a in range(ANSWERS)] + ["unfinished "]

    def prompt(self, problem: str) -> list[int]:
        """The token of a problem."""
        return [self.world.unfinished_token + 1 + int(problem)]

    def ending_with(self, text: str) -> list[int]:
        """The tokens that end a line before the last one. Each such line ends a step."""
        return list(range(self.world.distinct))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some lines."""
        return "".join([self._texts[t] for t in token_ids])


class SyntheticVerifier(Verifier):
    """The verifier of a world: it reads the answer of the last line. It is much faster than one that parses numbers."""

    def judge(self, responses: Sequence[Response], use: str = "reward") -> list[Verdict]:
        """Judge responses: a response is correct if it ended with the answer of its problem."""
        answers = [r.text.rpartition(_ANSWER)[2].rstrip(".") if r.stopped else None for r in responses]
        return [_verdict(a, a == r.problem.answer) for a, r in zip(answers, responses, strict=True)]


@functools.cache
def _verdict(answer: str | None, correct: bool) -> Verdict:
    return Verdict(correct, answer is not None, answer, 0)


@dataclasses.dataclass
class _States:
    """The states of B sequences.

    Attributes:
      key: uint64 [B], the hash of each path.
      x: float64 [B], the hidden numbers.
      half: uint64 [B], `key` at the middle of the solution.
      depth: int64 [B], the lines so far.
    """

    key: np.ndarray
    x: np.ndarray
    half: np.ndarray
    depth: np.ndarray

    def take(self, rows: np.ndarray) -> _States:
        """The states of some sequences, in order."""
        return _States(*(field[rows] for field in vars(self).values()))


@dataclasses.dataclass(frozen=True)
class _EngineConfig:
    max_positions: int


class SyntheticEngine:
    """An engine that samples from a world, with the methods of `sampler.Engine` that a search calls.

    Random draws are named by request and completion, as those of the real engine.
    """

    new_prefix_cache = staticmethod(lambda: None)

    def __init__(self, world: World):
        self.world, self.stats = world, EngineStats()
        self.config = _EngineConfig(1 << 20)
        # The walk starts where Phi(x / sqrt(lines)) = solve: at +-infinity for 1 and 0.
        self._start = float(scipy.special.ndtri(world.solve)) * world.lines**0.5

    def generate(
        self, params: None, requests: Sequence[Request], sampling: SamplingParams, *, prefix_cache: None = None,
        stop_fn: None = None, progress: None = None, on_completion: None = None,
    ) -> list[list[Completion]]:  # fmt: skip
        """Sample all completions of all requests: one line where lines end a completion, else whole solutions."""
        lines = 1 if 0 in (sampling.stop_token_ids or ()) else sampling.max_tokens
        rows = np.repeat(np.arange(len(requests)), [r.n for r in requests])
        states = self._after([r.prompt_token_ids for r in requests]).take(rows)
        draws = np.concatenate([_names(self.world.seed, r) for r in requests])
        firsts = self._different_lines(states.key, draws, requests) if lines == 1 else None
        tokens, logprobs, lengths, ended = self._write(states, draws, min(lines, sampling.max_tokens), firsts)
        completions = []
        for i, (length, stopped) in enumerate(zip(lengths.tolist(), ended.tolist(), strict=True)):
            ids, logs = tokens[i, :length], logprobs[i, :length]
            if not stopped and length < sampling.max_tokens and ids[-1] == self.world.unfinished_token:
                ids = np.concatenate([ids, np.full(sampling.max_tokens - length, ids[-1], np.int32)])
                logs = np.concatenate([logs, np.zeros(sampling.max_tokens - length)])
            completions.append(Completion(ids, logs, logs, "stop" if stopped else "length"))
        self.stats.tokens += sum(len(c.token_ids) for c in completions)
        self.stats.row_steps += int(lengths.max(initial=0)) * len(completions)
        groups = iter(completions)
        return [[next(groups) for _ in range(r.n)] for r in requests]

    def _write(
        self, states: _States, draws: np.ndarray, max_lines: int, firsts: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Write lines until each sequence has ended, has an unfinished line, or has `max_lines` more lines.

        Args:
          draws: uint64 [B], the names of the random draws.
          firsts: the first line of each sequence, int64 [B]. None: sample it.

        Returns:
          tokens int32 [B, T] and their log-probabilities [B, T]; the lengths [B]; whether each sequence came to an
          end: of its solution, or of its only line.
        """
        world, n = self.world, len(draws)
        width = max(1, min(max_lines, world.lines - int(states.depth.min(initial=0))))
        tokens, logprobs = np.zeros((n, width), np.int32), np.zeros((n, width))
        lengths, ended = np.zeros(n, np.int64), np.zeros(n, bool)
        rows = np.arange(n)
        for t in range(width):
            if not len(rows):
                break
            names = _mix(draws[rows] ^ _multiple(t + 1))
            running = np.cumsum(self._weights(states.key), axis=1)
            line = (running < (_uniform(names) * running[:, -1])[:, None]).sum(axis=1) if firsts is None else firsts
            below = np.where(line > 0, running[np.arange(len(line)), line - 1], 0.0)
            logprob = np.log((running[np.arange(len(line)), line] - below) / running[:, -1])
            states = self._follow(states, line)
            last, cut = states.depth >= world.lines, _uniform(_mix(names)) < world.unfinished
            token = np.where(last, world.distinct + line * ANSWERS + self._answers(states), line)
            tokens[rows, t] = np.where(cut, world.unfinished_token, token)
            logprobs[rows, t] = logprob
            lengths[rows] = t + 1
            ended[rows] = ~cut & (last | (max_lines == 1))
            states, rows = states.take(~last & ~cut), rows[~last & ~cut]
        return tokens, logprobs, lengths, ended

    def _after(self, prefixes: Sequence[Sequence[int]]) -> _States:
        """The states after some prompts, each a problem's token and lines."""
        problem = np.array([p[0] for p in prefixes], np.uint64)
        key = _mix(problem + _multiple(self.world.seed))
        states = _States(key, np.full(len(key), self._start), key.copy(), np.zeros(len(key), np.int64))
        lengths = np.array([len(p) - 1 for p in prefixes])
        lines = np.zeros((len(prefixes), int(lengths.max(initial=0))), np.int64)
        for i, prefix in enumerate(prefixes):
            lines[i, : len(prefix) - 1] = prefix[1:]
        for t in range(lines.shape[1]):
            rows = np.flatnonzero(lengths > t)
            following = self._follow(states.take(rows), lines[rows, t])
            for name, values in vars(following).items():
                getattr(states, name)[rows] = values
        return states

    def _weights(self, key: np.ndarray) -> np.ndarray:
        """The weights [B, distinct] of the lines that can follow each state."""
        lines = np.arange(1, self.world.distinct + 1, dtype=np.uint64) * _GOLDEN
        return np.exp(self.world.noise * scipy.special.ndtri(_uniform(_mix(key[:, None] ^ lines))))

    def _different_lines(self, key: np.ndarray, draws: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
        """Sample the next line [B] of each sequence. The n lines of a request differ as long as there are lines left.

        A request with more sequences than lines takes the same lines again, in the same order.
        """
        starts = np.cumsum([0, *(r.n for r in requests)])[:-1]
        lines = np.arange(1, self.world.distinct + 1, dtype=np.uint64) * _GOLDEN
        # The order of exponential times divided by weights is that of samples without replacement.
        times = -np.log(_uniform(_mix(draws[starts][:, None] ^ lines))) / self._weights(key[starts])
        orders = np.argsort(times, axis=1)
        counts = [np.arange(r.n) % self.world.distinct for r in requests]
        return np.concatenate([order[i] for order, i in zip(orders, counts, strict=True)])

    def _follow(self, states: _States, line: np.ndarray) -> _States:
        """The states after one more line each."""
        key = _mix(states.key + (line.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD1342543DE82EF95))
        depth = states.depth + 1
        x = states.x + scipy.special.ndtri(_uniform(_mix(key ^ np.uint64(0x5851F42D4C957F2D))))
        return _States(key, x, np.where(depth == (self.world.lines + 1) // 2, key, states.half), depth)

    def _answers(self, states: _States) -> np.ndarray:
        """The answer [B] of each state: 0 if it is right, else a wrong answer from 1 to 16.

        One half of the wrong answers is decided by the first half of the solution, so that solutions with the same
        error often give the same answer.
        """
        name = np.where(states.key >> np.uint64(63), states.half, states.key)
        wrong = 1 + _mix(name ^ np.uint64(0x2545F4914F6CDD1D)) % np.uint64(ANSWERS - 1)
        return np.where(states.x > 0, 0, wrong.astype(np.int64))


@functools.cache
def _golden_multiples(n: int) -> np.ndarray:
    return np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0xA0761D6478BD642F)


def _multiple(n: int) -> np.uint64:
    return np.uint64(n * int(_GOLDEN) % 2**64)


def _names(seed: int, request: Request) -> np.ndarray:
    """The names of the random draws of all completions of a request, uint64 [n]."""
    digest = hashlib.blake2b(repr((seed, request.request_id)).encode(), digest_size=8).digest()
    return _mix(np.uint64(int.from_bytes(digest, "big")) + _golden_multiples(request.n))


def _mix(x: np.ndarray) -> np.ndarray:
    """Hash 64-bit integers (the finalizer of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(x: np.ndarray) -> np.ndarray:
    """Turn hashes into numbers between 0 and 1, both excluded."""
    return ((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
