"""Llama in pure JAX: `config, params = load(path)`; `logits = forward(params, tokens, config)`."""

from astro_jax.llama.checkpoint import load, save
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.model import forward
from astro_jax.llama.params import Params

__all__ = ["LlamaConfig", "Params", "forward", "load", "save"]
