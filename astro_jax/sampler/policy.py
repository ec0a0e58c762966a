"""A model that writes text: parameters with the sampler and the tokenizer that go with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from astro_jax.llama import checkpoint, tokenizer
from astro_jax.llama.params import Params
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.sampler.engine import Request, Sample, Sampler


@dataclasses.dataclass(frozen=True)
class Policy:
    """What search, GRPO and evaluation sample from."""

    sampler: Sampler
    params: Params
    tokenizer: Any

    @classmethod
    def load(cls, path: str, seed: int = 0, slots: int = 64) -> Policy:
        """A checkpoint, a Hugging Face folder, or a model that ships with the package, on one device.

        Raises:
          AstroError: when there is no model or no tokenizer, or they are damaged.
        """
        sharding = decode_sharding(make_mesh())
        config, params = checkpoint.load(path, sharding)
        return cls(Sampler(config, sharding, seed, slots), params, tokenizer.load(path))

    @property
    def eos(self) -> int:
        """The end token."""
        return self.tokenizer.eos_token_id

    def request(self, prompt: str, n: int, *name: str | int) -> Request:
        """A request for n samples of the continuation of a text."""
        return Request(tuple(self.tokenizer.encode(prompt)), n, name)

    def generate(self, requests: Sequence[Request], **how: Any) -> list[list[Sample]]:
        """See Sampler.generate; without `stop`, samples go on to the end token."""
        return self.sampler.generate(self.params, requests, **({"stop": (self.eos,)} | how))

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without the end token."""
        return self.tokenizer.decode([t for t in tokens if t != self.eos])
