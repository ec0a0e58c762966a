"""Compare an exported Hugging Face folder with transformers and torch, an independent implementation."""

from __future__ import annotations

import importlib

import jax
import numpy as np
from etils import epath

from astro_jax.errors import AstroError
from astro_jax.llama import model
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params

# The largest allowed difference of a logit. Both sides compute in float32, also for weights of lower precision.
TOLERANCE = 1e-3


def require_torch(option: str) -> None:
    """Check that torch is installed, for an option of the command line that needs torch.

    Raises:
      AstroError: when torch is not installed.
    """
    require("torch", option)


def require(module: str, option: str) -> None:
    """Check that a module is installed, for an option of the command line that needs it.

    Raises:
      AstroError: when the module is not installed.
    """
    try:
        importlib.import_module(module)
    except ImportError as e:
        raise AstroError(f"{option}: {module} is not installed; pip install {module}, or leave out the option") from e


def compare(folder: epath.Path, config: LlamaConfig, params: Params) -> float:
    """Compute the largest difference of a logit between transformers and this package, on 64 fixed tokens.

    Args:
      folder: a Hugging Face folder, which transformers loads.
      params: the parameters that were exported to `folder`.

    Raises:
      AstroError: when it exceeds TOLERANCE.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokens = (np.arange(min(64, config.max_positions)) * 31 % config.vocab_size)[None]
    torch_model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(tokens)).logits.numpy()
    float32_params = jax.tree.map(lambda x: x.astype(np.float32), params)
    logits = np.asarray(jax.jit(model.forward, static_argnums=2)(float32_params, tokens.astype(np.int32), config))
    difference = float(np.abs(logits - expected).max())
    if not difference < TOLERANCE:
        raise AstroError(f"{folder}: transformers computes other logits (by {difference:.2g}); nothing was written")
    return difference
