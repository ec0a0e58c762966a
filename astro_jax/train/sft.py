"""Supervised fine-tuning (paper, section 3.1). The same code trains a toy base from random parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
from etils import epath

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, lora
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import Sharding
from astro_jax.progress import log
from astro_jax.train import data, loop, losses
from astro_jax.train.data import Document, Example
from astro_jax.train.losses import Batch
from astro_jax.train.state import (
    GradientFn,
    Metrics,
    TrainState,
    abstract_state,
    make_optimizer,
    make_step,
    new_state,
    place,
)


def make_loss(c: cfg.Sft, config: LlamaConfig, sharding: Sharding) -> Callable[..., tuple[jax.Array, Metrics]]:
    """Make the loss of SFT: the mean cross entropy of the weighted tokens of a Batch.

    Returns:
      (params, batch) -> (loss, metrics); with LoRA (adapters, batch, frozen parameters) -> (loss, metrics).
    """

    def loss(params: Any, batch: Batch, *frozen: Params) -> tuple[jax.Array, Metrics]:
        value = losses.mean_nll(_weights(c, params, *frozen), batch, config, sharding, c.remat_policy)
        return value, {"loss": value}

    return loss


def make_gradient(c: cfg.Sft, config: LlamaConfig, sharding: Sharding) -> GradientFn:
    """Make the loss of SFT with its gradient, `micro_batch_size` rows at a time.

    The sums over the tokens of all micro-batches are divided by the weight of the whole batch. So the result is that of
    the whole batch, however the tokens are spread over the micro-batches.
    """
    n = c.num_micro_batches
    if n == 1:
        return jax.value_and_grad(make_loss(c, config, sharding), has_aux=True)

    def total(params: Any, batch: Batch, *frozen: Params) -> jax.Array:
        return losses.sum_nll(_weights(c, params, *frozen), batch, config, sharding, c.remat_policy)

    def split(x: jax.Array) -> jax.Array:
        """[B, S] -> [n, B / n, S]. Every n-th row is in a micro-batch, so each device keeps its own rows."""
        return sharding.constrain(x.reshape(-1, n, x.shape[1]).swapaxes(0, 1), None, "batch", None)

    def gradient(params: Any, batch: Batch, *frozen: Params) -> tuple[tuple[jax.Array, Metrics], Any]:
        def add(sums: tuple[jax.Array, Any], micro_batch: Batch) -> tuple[tuple[jax.Array, Any], None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(total)(params, micro_batch, *frozen)), None

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        sums, _ = jax.lax.scan(add, start, jax.tree.map(split, batch))
        weight = jnp.maximum(jnp.sum(batch.loss_weights), 1e-9)
        value, grads = jax.tree.map(lambda x: x / weight, sums)
        return (value, {"loss": value}), grads

    return gradient


def _weights(c: cfg.Sft, params: Any, *frozen: Params) -> Params:
    """The weights of the model, as it computes with them."""
    if c.lora is None:
        return losses.mixed(params, c.dtype)
    (base,) = frozen
    adapters: Any = losses.mixed(params, c.dtype)
    return lora.attach(losses.cast(base, c.dtype), adapters, c.lora.scale)


def train(
    folder: epath.Path, c: cfg.Sft, config: LlamaConfig, params: Params, tokenizer: Tokenizer,
    examples: Iterable[Example], sharding: Sharding, seed: int,
) -> dict[str, int]:  # fmt: skip
    """Train on tokenized examples, and write checkpoints, metrics.jsonl and the model to `folder`.

    Args:
      examples: an end token is appended to each.
      seed: of the order of the examples.

    Returns:
      Counts for the manifest: examples, how many were dropped, truncated and (with `eval_share`) held out, optimizer
      steps, and the step of the model where it may not be the last.

    Raises:
      AstroError: when the loss or the gradient is not finite, in several steps in a row or after the last.
    """
    ended = (dataclasses.replace(e, completion=[*e.completion, tokenizer.eos_token_id]) for e in examples)
    # Wrapped documents are split at the ends of rows: none is too long.
    longest = sys.maxsize if c.packing_strategy == "wrapped" else c.max_length
    documents, counts = data.make_documents(ended, longest, c.overlong, c.loss_on)
    for verb, n in counts.items():
        if n:
            log(f"{folder.name}: {n} examples have more than max_length={c.max_length} tokens and are {verb}")
    n_examples, held_out = len(documents) + counts["dropped"], list[Document]()
    if c.eval_share:
        documents, held_out = data.hold_out(documents, c.eval_share, seed)
        counts["held_out"] = len(held_out)
    batches = data.packed_batches(documents, c.batch_size, c.max_length, seed, c.num_train_epochs, c.packing_strategy)
    steps = sum(1 for _ in batches)
    tx = make_optimizer(c, steps)
    like = abstract_state(config, tx, sharding, c.lora)
    trained: Any = params
    if c.lora is not None:
        trained = lora.init(jax.random.key(seed), config, c.lora.rank, c.lora.target_modules)
    frozen = None if c.lora is None else params
    with contextlib.closing(SFTTrainer(c, batches, tx, config, sharding, held_out, steps, frozen)) as trainer:
        state, step = loop.run(
            folder, folder.name, place(new_state(trained, tx), like), like, trainer.step, trainer.examples, steps,
            c, trainer.iterator,
        )  # fmt: skip
        if not trainer.is_finite(state.params):
            raise AstroError(
                f"{folder.name}: the loss of the trained model is not finite, so it is not saved; lower learning_rate"
            )
    trained = state.params
    if c.lora is not None:
        trained = lora.merge(params, trained, c.lora.scale)
    checkpoint.save(folder / "model", config, trained, tokenizer)
    return {"examples": n_examples} | counts | {"steps": steps} | loop.model_step(c, step)


class SFTTrainer:
    """Trains on packed documents, one step at a time. `train.loop.run` calls `step`.

    Args:
      c: the settings.
      batches: from `data.packed_batches`.
      tx: the optimizer.
      config: of the model.
      sharding: of training.
      held_out: documents whose loss is measured.
      max_steps: the last step, which measures too.
      frozen: with LoRA, the parameters of the base model.

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
        held_out: Sequence[Document] = (),
        max_steps: int = 0,
        frozen: Params | None = None,
    ):
        self._batches, self.iterator = batches, data.prefetched(batches)
        self._loss, self._sharding, self._eval_steps = make_loss(c, config, sharding), sharding, c.eval_steps
        self._rows, self._max_steps = c.gradient_rows, max_steps
        packed = data.packed_batches(held_out, self._rows, c.max_length, 0, 1, c.packing_strategy) if held_out else ()
        self._held_out = [batch for batch, _ in packed]
        self._frozen = () if frozen is None else (frozen,)
        self._step = make_step(make_gradient(c, config, sharding), tx, config, sharding, c.lora)
        self._sum = jax.jit(
            lambda params, batch, *frozen: losses.sum_nll(_weights(c, params, *frozen), batch, config, sharding)
        )
        self._indices: Sequence[int] = ()

    def step(self, state: TrainState, i: int) -> tuple[TrainState, Metrics | dict[str, Any]]:
        """Train on the next batch. The state is donated.

        Returns:
          (the new state, metrics: those of the update, the `tokens` of the batch without padding, the share
          `padding_rate` of the padding, and every `eval_steps` steps `eval_loss`).
        """
        batch, indices = next(self.iterator)
        self._indices = indices.tolist()
        state, metrics = self._step(state, self._sharding.device_put(batch, "batch"), *self._frozen)
        is_token = batch.segment_ids > 0
        metrics |= {"tokens": is_token.sum(), "padding_rate": 1 - is_token.mean()}
        if self._held_out and ((i + 1) % self._eval_steps == 0 or i + 1 == self._max_steps):
            metrics |= {"eval_loss": self._eval_loss(state.params)}
        return state, metrics

    def examples(self, i: int) -> list[str]:
        """Name the examples of the batch of step i, the last step: their places among the documents, from 0."""
        return list(map(str, self._indices))

    def is_finite(self, params: Params) -> bool:
        """Return whether the loss of the first batch is finite. No later step tests the last update."""
        batch = jax.tree.map(lambda x: x[: self._rows], next(iter(self._batches)).batch)
        batch = self._sharding.device_put(batch, "batch")
        return math.isfinite(jax.jit(self._loss)(params, batch, *self._frozen)[0])

    def _eval_loss(self, params: Params) -> jax.Array:
        """The mean cross entropy of the held-out tokens, in nats a token: float32 []."""
        batches = (self._sharding.device_put(batch, "batch") for batch in self._held_out)
        sums = [self._sum(params, batch, *self._frozen) for batch in batches]
        return sum(sums) / max(sum(float(batch.loss_weights.sum()) for batch in self._held_out), 1e-9)

    def close(self) -> None:
        """Stop the thread that packs ahead."""
        self.iterator.close()
