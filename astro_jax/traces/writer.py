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
        self, prompts: Sequence[Prompt], max_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> list[list[str | None]]:
        """Sample the completions of all prompts, in one call of the sampler.

        Returns:
          for each prompt n texts. A completion that reached `max_tokens` is None. A prompt that is too long for the
          model's context has no completions.

        Raises:
          AstroError: when the model's context cannot hold `max_tokens` at all.
        """
        max_prompt = self.policy.engine.config.max_positions - max_tokens
        if max_prompt < 1:
            raise AstroError(f"traces: the model has no room for {max_tokens} new tokens; lower traces.*_tokens")
        requests = [Request(tuple(self._tokenizer.prompt(p.text)), p.n, p.request_id) for p in prompts]
        fitting = [i for i, request in enumerate(requests) if len(request.prompt_token_ids) <= max_prompt]
        completions = self.policy.generate(
            [requests[i] for i in fitting], SamplingParams(max_tokens, temperature, stop=tuple(stop))
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
