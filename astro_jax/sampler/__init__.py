"""The inference engine that generates text for search, traces, GRPO and evaluation."""

from astro_jax.sampler.engine import Completion, Engine, Request, RequestError
from astro_jax.sampler.run import EngineStats
from astro_jax.sampler.sampling_params import SamplingParams

__all__ = ["Completion", "Engine", "EngineStats", "Request", "RequestError", "SamplingParams"]
