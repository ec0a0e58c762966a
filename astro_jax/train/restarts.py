"""Restart and explore: RL that begins some responses inside a known trace (Satori, arXiv 2502.02508, section 4.2).

A policy that starts each response from nothing meets few of the states in which going back pays off. A start inside a
trace, after a wrong branch or before its reflection, puts the policy there. What the trace has written is given, like a
prompt: only the continuation is learned, and the verifier judges both together.
"""

from __future__ import annotations

import itertools
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
        self.rate = c.restart_rate
        self._beginnings: dict[str, list[Beginning]] = {}
        self.longest, limit = 0, min(c.max_length, max_positions) - c.max_completion_length
        for trace in traces:
            prompt = len(tokenizer.prompt(trace["prompt"]))
            texts = itertools.accumulate(segment["text"] for segment in trace["segments"][:-1])
            for text in texts:
                beginning = Beginning(text, tuple(tokenizer.encode_after(text)))
                size = prompt + len(beginning.token_ids)
                if size <= limit:
                    self._beginnings.setdefault(trace["problem_id"], []).append(beginning)
                    self.longest = max(self.longest, size)
        if not self._beginnings:
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
        rng, known = np.random.default_rng(key), self._beginnings.get(problem_id)
        if known is None or rng.random() >= self.rate:
            return Beginning()
        return known[int(rng.integers(len(known)))]
