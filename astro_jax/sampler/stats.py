"""Counts of what the calls of an engine have cost."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class EngineStats:
    """Counts over all calls of an engine.

    Attributes:
      prompt_tokens: prompt tokens of all completions, as if each completion computed its own prompt.
      prefilled: prompt tokens that were computed.
      copied: prompt tokens that were copied from another prefix slot or from the prefix cache.
      tokens: sampled tokens.
      row_steps: rows times decode steps, steps of rows without a sequence included.
    """

    prompt_tokens: int = 0
    prefilled: int = 0
    copied: int = 0
    tokens: int = 0
    row_steps: int = 0

    @property
    def occupancy(self) -> float:
        """The share of row steps that sampled a token."""
        return self.tokens / max(self.row_steps, 1)

    @property
    def prefix_reuse(self) -> float:
        """The share of prompt tokens that were not computed again for a further completion."""
        return 1 - self.prefilled / max(self.prompt_tokens, 1)
