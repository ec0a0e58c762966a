"""The model that judges solutions and writes traces, and how it is asked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from astro_jax.errors import AstroError
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.prompts import Prompt
from astro_jax.sampler import Request, SamplingParams
from astro_jax.verify import Verifier


class Question(NamedTuple):
    """What is asked n times; `name` names the random draws."""

    text: str
    n: int
    name: tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Author:
    """A policy with what its texts are checked by.

    Attributes:
      prompts: by name (astro_jax.prompts).
    """

    policy: Policy
    verifier: Verifier
    prompts: Mapping[str, Prompt]

    def ask(
        self, questions: Sequence[Question], max_tokens: int, temperature: float, stop_strings: Sequence[str] = ()
    ) -> list[list[str | None]]:
        """The answers to each question, in one call of the sampler; None for one that came to no end. A question that
        is too long for the model's context has no answers.

        Raises:
          AstroError: when the model's context cannot hold max_tokens at all.
        """
        room = self.policy.engine.config.max_positions - max_tokens
        if room < 1:
            raise AstroError(f"traces: the model has no room for {max_tokens} new tokens; lower traces.*_tokens")
        requests = [Request(tuple(self._tokenizer.prompt(q.text)), q.n, q.name) for q in questions]
        fit = [i for i, request in enumerate(requests) if len(request.prompt_token_ids) <= room]
        samples = self.policy.generate(
            [requests[i] for i in fit], SamplingParams(max_tokens, temperature, stop=tuple(stop_strings))
        )
        found: list[list[str | None]] = [[] for _ in questions]
        for i, each in zip(fit, samples, strict=True):
            found[i] = [self.policy.tokenizer.decode(s.token_ids.tolist()) if s.stopped else None for s in each]
        return found

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Puts a prompt to the model as a problem is put, but without the problems' system prompt."""
        tokenizer = self.policy.tokenizer
        return dataclasses.replace(tokenizer, chat=tokenizer.chat.model_copy(update={"system": None}))
