"""The one engine that generates text, for search, GRPO and evaluation."""

from astro_jax.sampler.engine import Request, RequestError, Sample, Sampler
from astro_jax.sampler.policy import Policy
from astro_jax.sampler.run import Stats

__all__ = ["Policy", "Request", "RequestError", "Sample", "Sampler", "Stats"]
