"""An independent opinion on what was exported: transformers with torch."""

from __future__ import annotations

import jax
import numpy as np
from etils import epath

from astro_jax.errors import AstroError
from astro_jax.llama import model
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params

# Of float32 logits; of lower precision both sides are computed in float32 from the same values.
TOLERANCE = 1e-3


def available(option: str) -> None:
    """Raise an AstroError where torch, which this option of the command line needs, is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise AstroError(f"{option}: torch is not installed here; pip install torch, or leave it out") from e


def compare(folder: epath.Path, config: LlamaConfig, params: Params) -> float:
    """The largest difference between transformers' logits of a Hugging Face folder and ours, on 64 fixed tokens.

    Raises:
      AstroError: when it exceeds TOLERANCE.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokens = (np.arange(min(64, config.max_positions)) * 31 % config.vocab_size)[None]
    theirs = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens)).logits.numpy()
    exact = jax.tree.map(lambda x: x.astype(np.float32), params)
    found = np.asarray(jax.jit(model.forward, static_argnums=2)(exact, tokens.astype(np.int32), config))
    difference = float(np.abs(found - wanted).max())
    if not difference < TOLERANCE:
        raise AstroError(f"{folder}: transformers computes other logits (by {difference:.2g}); nothing was written")
    return difference
