"""A request, its completions, and the error for requests that cannot be served."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from astro_jax.errors import AstroError


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and the number of completions to sample from it.

    Attributes:
      prompt_token_ids: the prompt, at least one token.
      n: number of completions.
      request_id: names the random draws, for example `("search", problem id, path)`. Two requests with the same id and
        prompt get the same completions.
      max_tokens: a limit for each completion, at most that of the SamplingParams. Empty: that of the SamplingParams.
    """

    prompt_token_ids: tuple[int, ...]
    n: int
    request_id: tuple[str | int, ...]
    max_tokens: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """One completion of a prompt of T new tokens.

    Attributes:
      token_ids: int32 [T]. The stop token, and the tokens of a stop string, are included.
      logprobs: float32 [T], log-probabilities under the model at temperature 1 without any filter.
      sampling_logprobs: float32 [T], log-probabilities under the distribution that the tokens were sampled from: after
        temperature, top_k, top_p and min_p.
      finish_reason: "stop" if a stop token or a stop string ended the completion, "length" if max_tokens did.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]

    @property
    def stopped(self) -> bool:
        """Whether a stop token or a stop string ended the completion."""
        return self.finish_reason == "stop"


class RequestError(AstroError):
    """Some requests could not be served; the others were.

    Attributes:
      completions: the result of `Engine.generate`, with an empty list for each request that was not served.
    """

    def __init__(self, errors: dict[int, str], completions: list[list[Completion]]):
        first, *more = errors.values()
        rest = f"; and {len(more)} more of {len(completions)} requests" if more else ""
        super().__init__(f"sampler: {first}{rest}")
        self.completions = completions
