"""A model that writes text: parameters with the sampler and the tokenizer that go with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from astro_jax import config as cfg
from astro_jax.llama import checkpoint
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import decode_sharding, make_mesh
from astro_jax.sampler.engine import Request, Sample, Sampler


@dataclasses.dataclass(frozen=True)
class Policy:
    """What search, GRPO and evaluation sample from."""

    sampler: Sampler
    params: Params
    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: str, seed: int = 0, slots: int = 64, chat: cfg.Chat | None = None) -> Policy:
        """A checkpoint, a Hugging Face folder, or a model that ships with the package, on one device.

        Raises:
          AstroError: when there is no model or no tokenizer, or they are damaged.
        """
        sharding = decode_sharding(make_mesh())
        config, params = checkpoint.load(path, sharding)
        return cls(Sampler(config, sharding, seed, slots), params, tokenizers.load(path, chat))

    def request(self, prompt: str, n: int, *name: str | int) -> Request:
        """A request for n answers to a problem."""
        return Request(tuple(self.tokenizer.prompt(prompt)), n, name)

    def generate(self, requests: Sequence[Request], **how: Any) -> list[list[Sample]]:
        """See Sampler.generate; without `stop`, samples go on to an end token."""
        return self.sampler.generate(self.params, requests, **({"stop": self.tokenizer.ends} | how))
