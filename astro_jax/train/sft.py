"""Supervised fine-tuning (paper, section 3.1). The same code trains a toy base from random parameters."""

from __future__ import annotations

import jax

from astro_jax import config as cfg
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.train import losses
from astro_jax.train.losses import Batch
from astro_jax.train.state import LossFn, Metrics


def make_loss(c: cfg.Sft, config: LlamaConfig, sharding: Sharding) -> LossFn:
    """Make the loss of SFT: the mean cross entropy of the weighted tokens of a Batch."""

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        remat = c.remat_policy == "full"
        logprobs, _ = losses.token_logprobs(losses.cast(params, c.dtype), batch, config, sharding, remat)
        value = losses.cross_entropy(logprobs, batch.loss_weights)
        return value, {"loss": value}

    return loss
