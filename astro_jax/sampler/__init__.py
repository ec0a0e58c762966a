"""The one engine that generates text, for search, GRPO and evaluation."""

from astro_jax.sampler.engine import Request, Sample, Sampler
from astro_jax.sampler.policy import Policy

__all__ = ["Policy", "Request", "Sample", "Sampler"]
