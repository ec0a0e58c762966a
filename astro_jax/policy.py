"""A policy: the parameters of a model, with the engine and the tokenizer that belong to it."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from astro_jax import config as cfg
from astro_jax.llama import checkpoint
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.sampler import Completion, Engine, PrefixCache, Request, SamplingParams
from astro_jax.sampler.engine import OnCompletion
from astro_jax.types import Problem, Response


class Prompt(NamedTuple):
    """A text that a model completes n times. `request_id` names the random draws."""

    text: str
    n: int
    request_id: tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Policy:
    """The model that search, traces, GRPO and evaluation sample from.

    Attributes:
      engine: generates completions.
      params: the parameters of the model.
      tokenizer: of the model. Its end tokens end a completion.
    """

    engine: Engine
    params: Params
    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: str, seed: int = 0, chat: cfg.Chat | None = None, **engine_options: Any) -> Policy:
        """Load a checkpoint, a Hugging Face folder, or a model that ships with the package, onto one device.

        Args:
          path: a checkpoint, a Hugging Face folder, or the name of a model of the package.
          seed: of all random draws.
          chat: the chat template.
          engine_options: arguments of the Engine, for example max_num_seqs=64.

        Raises:
          AstroError: if there is no model or no tokenizer, or if they are damaged.
        """
        sharding = decode_sharding(make_mesh())
        config, params = checkpoint.load(path, sharding)
        engine = Engine(config, sharding, seed, **engine_options)
        return cls(engine, engine.quantize(params), tokenizers.load(path, chat))

    def request(self, prompt: str, n: int, *request_id: str | int) -> Request:
        """Make a request for n completions of a problem's prompt."""
        return Request(tuple(self.tokenizer.prompt(prompt)), n, request_id)

    def response(self, problem: Problem, completion: Completion, before: str = "") -> Response:
        """Turn a completion into a response. `before` is the text between the prompt and the completion."""
        return Response(problem, before + self.tokenizer.decode(completion.token_ids.tolist()), completion.stopped)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        progress: Callable[[int], None] | None = None,
        prefix_cache: PrefixCache | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """Sample all completions of all requests: `Engine.generate` with the stop tokens and strings of `sampling`.

        Args:
          requests: prompts with a number of completions each.
          sampling: without stop tokens, the end tokens of the tokenizer end a completion.
          progress: called with the number of completions that have ended since the last call.
          prefix_cache: from `engine.new_prefix_cache()`, to keep prompts from one call to the next.
          on_completion: called with each completion when it ends (`Engine.generate`).

        Returns:
          For each request its completions, in order.

        Raises:
          RequestError: if some requests could not be served.
        """
        if sampling.stop_token_ids is None:
            sampling = dataclasses.replace(sampling, stop_token_ids=self.tokenizer.stop_token_ids)
        stop_fn = functools.partial(self._stop_length, sampling.stop) if sampling.stop else None
        return self.engine.generate(
            self.params, requests, sampling, prefix_cache=prefix_cache, stop_fn=stop_fn, progress=progress,
            on_completion=on_completion,
        )  # fmt: skip

    def complete(
        self, prompts: Sequence[Prompt], max_tokens: Sequence[int], temperature: float = 1.0, stop: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> list[list[str | None]]:  # fmt: skip
        """Sample the completions of texts that are no problems, in one call of the sampler.

        The prompts have the chat template, but not the system prompt of the problems.

        Args:
          max_tokens: the most new tokens of each prompt.
          progress: as in `generate`.

        Returns:
          for each prompt n texts. A completion that reached its `max_tokens` is None. A prompt that is too long for the
          model's context has no completions.
        """
        room = self.engine.config.max_positions
        requests = [
            Request(tuple(self._without_system.prompt(p.text)), p.n, p.request_id, (limit,) * p.n)
            for p, limit in zip(prompts, max_tokens, strict=True)
        ]
        fitting = [i for i, r in enumerate(requests) if len(r.prompt_token_ids) + max_tokens[i] <= room]
        texts: list[list[str | None]] = [[] for _ in prompts]
        if fitting:
            sampling = SamplingParams(max(max_tokens[i] for i in fitting), temperature, stop=tuple(stop))
            groups = self.generate([requests[i] for i in fitting], sampling, progress)
            for i, group in zip(fitting, groups, strict=True):
                texts[i] = [self.tokenizer.decode(c.token_ids.tolist()) if c.stopped else None for c in group]
        return texts

    @functools.cached_property
    def _without_system(self) -> Tokenizer:
        """The tokenizer with the chat template, but without the system prompt of the problems."""
        return dataclasses.replace(self.tokenizer, chat=self.tokenizer.chat.model_copy(update={"system": None}))

    def _stop_length(self, strings: tuple[str, ...], token_ids: list[int]) -> int | None:
        """The number of tokens up to the end of the first stop string; None if the text holds none."""

        def has_stop(n: int) -> bool:
            text = self.tokenizer.decode(token_ids[:n])
            return any(s in text for s in strings)

        if not has_stop(len(token_ids)):
            return None
        return bisect.bisect_left(range(len(token_ids)), True, key=has_stop)
