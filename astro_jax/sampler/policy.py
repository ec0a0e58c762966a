"""A model that writes text: parameters with the sampler and the tokenizer that go with them."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.problems import Problem
from astro_jax.sampler.engine import Request, Sample, Sampler
from astro_jax.verify import Response


@dataclasses.dataclass(frozen=True)
class Policy:
    """What search, GRPO and evaluation sample from."""

    sampler: Sampler
    params: Params
    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: str, seed: int = 0, chat: cfg.Chat | None = None, **how: Any) -> Policy:
        """A checkpoint, a Hugging Face folder, or a model that ships with the package, on one device.

        Args:
          how: of the Sampler, as in slots=64.

        Raises:
          AstroError: when there is no model or no tokenizer, or they are damaged.
        """
        sharding = decode_sharding(make_mesh())
        config, params = checkpoint.load(path, sharding)
        return cls(Sampler(config, sharding, seed, **how), params, tokenizers.load(path, chat))

    def request(self, prompt: str, n: int, *name: str | int) -> Request:
        """A request for n answers to a problem."""
        return Request(tuple(self.tokenizer.prompt(prompt)), n, name)

    def response(self, problem: Problem, sample: Sample, before: str = "") -> Response:
        """A sample as what a verifier judges; `before` is what stood between the problem's prompt and it."""
        return Response(problem, before + self.tokenizer.decode(sample.tokens.tolist()), sample.stopped)

    def generate(
        self, requests: Sequence[Request], *, stop_strings: Sequence[str] = (), **how: Any
    ) -> list[list[Sample]]:
        """See Sampler.generate; without `stop`, samples go on to an end token.

        Args:
          stop_strings: texts that end a sample with the token that completes one of them, wherever in a token it
            begins or ends.
        """
        if not all(stop_strings):
            raise AstroError("sampler: a stop string is not empty")
        if stop_strings:
            how["cut"] = functools.partial(self._cut, tuple(stop_strings))
        return self.sampler.generate(self.params, requests, **({"stop": self.tokenizer.ends} | how))

    def _cut(self, strings: tuple[str, ...], tokens: list[int]) -> int | None:
        """How many of a sample's tokens there are up to the end of the first stop string; none if none came."""

        def stopped(n: int) -> bool:
            text = self.tokenizer.decode(tokens[:n])
            return any(s in text for s in strings)

        if not stopped(len(tokens)):
            return None
        return bisect.bisect_left(range(len(tokens)), True, key=stopped)
