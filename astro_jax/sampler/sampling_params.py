"""The settings by which completions are sampled."""

from __future__ import annotations

import dataclasses

from astro_jax.errors import AstroError


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How the completions of a call are sampled. The names are vLLM's.

    Attributes:
      max_tokens: the most tokens of one completion, the stop token included.
      temperature: divides the logits. 0 is greedy.
      top_k: sample from the k most likely tokens, and from those equal to the last of them. 0: from all.
      top_p: sample from the most likely tokens that together have this probability (nucleus sampling,
        arXiv 1904.09751), and from those equal to the last of them.
      min_p: sample from tokens with at least this share of the highest probability (arXiv 2407.01082).
      stop: texts that end a completion. The token that completes such a text is the last one.
      stop_token_ids: tokens that end a completion. None: the end tokens of the tokenizer.

    Raises:
      AstroError: for a value out of range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise AstroError(f"sampler: max_tokens is {self.max_tokens}; it must be at least 1")
        for name, holds, values in (
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p < 1, "in [0, 1)"),
        ):
            if not holds:
                raise AstroError(f"sampler: {name} is {values}, got {getattr(self, name)}")
        if not all(self.stop):
            raise AstroError("sampler: a stop string must not be empty")

    @property
    def filtered(self) -> bool:
        """Whether some tokens have probability 0 by top_k, top_p or min_p. Filtering costs time."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0
