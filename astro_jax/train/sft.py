"""Supervised fine-tuning (paper, section 3.1). The same code trains a toy base from random parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import grain
import jax
import optax

from astro_jax import config as cfg
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.train import data, losses
from astro_jax.train.losses import Batch
from astro_jax.train.state import LossFn, Metrics, TrainState, make_step


def make_loss(c: cfg.Sft, config: LlamaConfig, sharding: Sharding) -> LossFn:
    """Make the loss of SFT: the mean cross entropy of the weighted tokens of a Batch."""

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        remat = c.remat_policy == "full"
        logprobs, _ = losses.token_logprobs(losses.mixed(params, c.dtype), batch, config, sharding, remat)
        value = losses.cross_entropy(logprobs, batch.loss_weights)
        return value, {"loss": value}

    return loss


class SFTTrainer:
    """Trains on packed documents, one step at a time. `train.loop.run` calls `step`.

    Args:
      c: the settings.
      batches: from `data.packed_batches`.
      tx: the optimizer.
      config: of the model.
      sharding: of training.

    Attributes:
      iterator: over the batches. Its state belongs into a checkpoint.
    """

    def __init__(
        self,
        c: cfg.Sft,
        batches: grain.IterDataset,
        tx: optax.GradientTransformation,
        config: LlamaConfig,
        sharding: Sharding,
    ):
        self._batches, self.iterator = batches, data.prefetched(batches)
        self._loss, self._sharding = make_loss(c, config, sharding), sharding
        self._step = make_step(self._loss, tx, config, sharding)
        self._indices: Sequence[int] = ()

    def step(self, state: TrainState, i: int) -> tuple[TrainState, Metrics | dict[str, Any]]:
        """Train on the next batch. The state is donated.

        Returns:
          (the new state, metrics: those of the update, and the `tokens` of the batch without padding).
        """
        batch, indices = next(self.iterator)
        self._indices = indices.tolist()
        state, metrics = self._step(state, self._sharding.device_put(batch, "batch"))
        return state, metrics | {"tokens": (batch.segment_ids > 0).sum()}

    def examples(self, i: int) -> list[str]:
        """Name the examples of the batch of step i, the last step: their places among the documents, from 0."""
        return list(map(str, self._indices))

    def is_finite(self, params: Params) -> bool:
        """Return whether the loss of the first batch is finite. No later step tests the last update."""
        batch = self._sharding.device_put(next(iter(self._batches)).batch, "batch")
        return math.isfinite(jax.jit(self._loss)(params, batch)[0])

    def close(self) -> None:
        """Stop the thread that packs ahead."""
        self.iterator.close()
