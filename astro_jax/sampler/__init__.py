"""The one engine that generates text, for search, GRPO and evaluation."""

from astro_jax.sampler.engine import Request, Sample, Sampler

__all__ = ["Request", "Sample", "Sampler"]
