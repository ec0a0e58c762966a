"""The model that judges solutions and writes segments of traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from astro_jax.errors import AstroError
from astro_jax.policy import Policy, Prompt
from astro_jax.prompts import PromptTemplate
from astro_jax.verify import Verifier


@dataclasses.dataclass(frozen=True)
class TraceWriter:
    """A policy that writes, with the verifier that checks its texts.

    Attributes:
      templates: the prompt templates, by name (`astro_jax.prompts`).
    """

    policy: Policy
    verifier: Verifier
    templates: Mapping[str, PromptTemplate]

    def complete(
        self, prompts: Sequence[Prompt], max_tokens: Sequence[int], temperature: float, stop: Sequence[str] = ()
    ) -> list[list[str | None]]:
        """`Policy.complete`.

        Raises:
          AstroError: when the model's context cannot hold the new tokens of any prompt.
        """
        if prompts and min(max_tokens) >= self.policy.engine.config.max_positions:
            raise AstroError(f"traces: the model has no room for {min(max_tokens)} new tokens; lower traces.*_tokens")
        return self.policy.complete(prompts, max_tokens, temperature, stop)
