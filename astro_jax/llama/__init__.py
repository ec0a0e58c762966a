"""Llama models in pure JAX: `config, params = load(path)`; `logits = forward(params, tokens, config)`.

Modules, each of which imports only from those above it:

    config                    a model's config; the legend of dimension letters
    params                    the parameters, declared once
    attention                 attention over whole sequences
    model                     the forward pass
    paths, weights            where a model is on disk; tensors on disk
    gguf_file                 GGUF files
    tokenizer_model           tokenizer.model files of Llama 2 and 3
    tokenizer                 tokenizers, end tokens, chat templates
    hf                        Hugging Face folders, read and written
    checkpoint, reference     load any format, save a checkpoint; compare an export with transformers
"""

from astro_jax.llama.checkpoint import load, save
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.model import forward
from astro_jax.llama.params import Params

__all__ = ["LlamaConfig", "Params", "forward", "load", "save"]
