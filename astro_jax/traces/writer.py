"""The model that judges solutions and writes segments of traces."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from astro_jax.errors import AstroError
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.prompts import PromptTemplate
from astro_jax.sampler import Request, SamplingParams
from astro_jax.verify import Verifier


class Prompt(NamedTuple):
    """A text that the model completes n times. `request_id` names the random draws."""

    text: str
    n: int
    request_id: tuple[str | int, ...]


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
        """Sample the completions of all prompts, in one call of the sampler.

        Args:
          max_tokens: the most new tokens of each prompt.

        Returns:
          for each prompt n texts. A completion that reached its `max_tokens` is None. A prompt that is too long for the
          model's context has no completions.

        Raises:
          AstroError: when the model's context cannot hold the new tokens of any prompt.
        """
        room = self.policy.engine.config.max_positions
        if prompts and min(max_tokens) >= room:
            raise AstroError(f"traces: the model has no room for {min(max_tokens)} new tokens; lower traces.*_tokens")
        requests = [
            Request(tuple(self._tokenizer.prompt(p.text)), p.n, p.request_id, (limit,) * p.n)
            for p, limit in zip(prompts, max_tokens, strict=True)
        ]
        fitting = [i for i, r in enumerate(requests) if len(r.prompt_token_ids) + max_tokens[i] <= room]
        longest = max((max_tokens[i] for i in fitting), default=1)
        completions = self.policy.generate(
            [requests[i] for i in fitting], SamplingParams(longest, temperature, stop=tuple(stop))
        )
        decode = self.policy.tokenizer.decode
        texts: list[list[str | None]] = [[] for _ in prompts]
        for i, group in zip(fitting, completions, strict=True):
            texts[i] = [decode(c.token_ids.tolist()) if c.stopped else None for c in group]
        return texts

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """The policy's tokenizer with the chat template, but without the system prompt of the problems."""
        tokenizer = self.policy.tokenizer
        return dataclasses.replace(tokenizer, chat=tokenizer.chat.model_copy(update={"system": None}))
