"""Supervised fine-tuning (paper, section 3.1), and the same code from random parameters for a toy base."""

from __future__ import annotations

import jax

from astro_jax import config as cfg
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.train import losses
from astro_jax.train.losses import Batch
from astro_jax.train.state import Loss, Metrics


def make_loss(c: cfg.Sft, config: LlamaConfig, sharding: Sharding) -> Loss:
    """Mean cross entropy of the weighted tokens of a Batch."""

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        logp, _ = losses.token_logprobs(losses.cast(params, c.dtype), batch, config, sharding, c.remat_policy == "full")
        value = losses.cross_entropy(logp, batch.weights)
        return value, {"loss": value}

    return loss
