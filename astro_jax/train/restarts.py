"""Restart and explore: RL that begins some responses inside a known trace (Satori, arXiv 2502.02508, section 4.2).

A policy that starts each response from nothing meets few of the states in which going back pays off. A start inside a
trace, after a wrong branch or before its reflection, puts the policy there. What the trace has written is given, like a
prompt: only the continuation is learned, and the verifier judges both together.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.storage import Json


class Beginning(NamedTuple):
    """The beginning of a response.

    Attributes:
      text: of the segments of a trace up to some place; empty for a response from nothing.
      token_ids: of the text.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()


class Restarts:
    """Beginnings of responses, by problem.

    Args:
      c: the settings. A beginning leaves room for `max_completion_length` tokens in a row of `max_length`, and in the
        model's context.
      traces: lines of traces/astro.jsonl or traces/direct.jsonl.
      tokenizer: of the policy.
      max_positions: the model's context.

    Raises:
      AstroError: when no trace has a beginning that leaves room.
    """

    def __init__(self, c: cfg.Grpo, traces: Iterable[Json], tokenizer: Tokenizer, max_positions: int):
        self.rate, self._tokenizer = c.restart_rate, tokenizer
        # The segments of a trace up to the longest beginning that leaves room. The beginnings themselves would take
        # memory with the square of its length.
        self._segments: dict[str, list[list[str]]] = {}
        self.longest, limit = 0, min(c.max_length, max_positions) - c.max_completion_length
        for trace in traces:
            prompt = len(tokenizer.prompt(trace["prompt"]))
            texts = [segment["text"] for segment in trace["segments"][:-1]]

            def size(n: int, prompt: int = prompt, texts: list[str] = texts) -> int:
                return prompt + len(tokenizer.encode_after("".join(texts[:n])))

            if n := bisect.bisect_right(range(1, len(texts) + 1), limit, key=size):
                self._segments.setdefault(trace["problem_id"], []).append(texts[:n])
                self.longest = max(self.longest, size(n))
        if not self._segments:
            raise AstroError(
                f"grpo.restart_rate={c.restart_rate:g}: no trace has a beginning that leaves room for "
                f"grpo.max_completion_length={c.max_completion_length} tokens in a row and in the "
                "model's context; raise grpo.max_length or lower grpo.max_completion_length"
            )

    def draw(self, problem_id: str, *key: int) -> Beginning:
        """Draw the beginning of the responses to a problem: of a trace with the probability `restart_rate`.

        Args:
          key: names the draw.
        """
        rng, traces = np.random.default_rng(key), self._segments.get(problem_id)
        if traces is None or rng.random() >= self.rate:
            return Beginning()
        ends = [(trace, n) for trace in traces for n in range(1, len(trace) + 1)]
        trace, n = ends[int(rng.integers(len(ends)))]
        text = "".join(trace[:n])
        return Beginning(text, tuple(self._tokenizer.encode_after(text)))
