"""Benchmark a step of SFT: tokens a second, and their share of the limits of this machine, measured in the same run."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from astro_jax import config as cfg
from astro_jax.bench.sampler import bytes_per_s, flops_per_s, peak_bytes, timed, torch_model
from astro_jax.errors import AstroError
from astro_jax.llama import params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import Sharding, make_mesh, train_sharding
from astro_jax.storage import Json
from astro_jax.train import data, sft
from astro_jax.train.state import TrainState, abstract_state, make_optimizer, make_step, new_state, place


@dataclasses.dataclass(frozen=True)
class Workload:
    """Some steps on full rows of random tokens, one document a row.

    Attributes:
      rows: B, rows of a batch.
      length: S, tokens of a row.
      steps: measured steps. The first step, which compiles, comes before them.
      seed: of the tokens.

    Raises:
      AstroError: for a size below 1, or rows of less than 8 tokens.
    """

    rows: int = 4
    length: int = 256
    steps: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.steps) < 1 or self.length < 8:
            raise AstroError("bench: --rows and --steps are at least 1, --length at least 8")

    def tokens(self, vocab_size: int) -> np.ndarray:
        """Random tokens, int32 [B, S]."""
        return np.random.default_rng(self.seed).integers(0, vocab_size, (self.rows, self.length), np.int32)


def measure(
    config: LlamaConfig,
    weights: Params,
    tokenizer: Tokenizer,
    work: Workload,
    dtype: str = "float32",
    compare: str | None = None,
) -> Json:
    """Train some steps with AdamW: gradient, clipping and update.

    Args:
      config: the model.
      weights: float32, of the model.
      tokenizer: of the model, for the comparison.
      work: the workload.
      dtype: of the computation.
      compare: "torch": also measure transformers with fused AdamW on the same weights and tokens.

    Returns:
      workload; dtype; loss: of the first step; seconds: the median of the measured steps; tokens_per_s; limits (see
      `limit`); share_of_limit: of the lower limit; first_s: seconds of the first step; peak_bytes; and under "torch"
      its loss, seconds and tokens_per_s, with `ratio`, the speed of this package over that of transformers.
    """
    run = training(config, weights, work, dtype)
    first, loss = _timed_loss(run)
    result = {"workload": dataclasses.asdict(work), "dtype": dtype, "loss": loss} | rate(work, run)
    limits = limit(config, work, flops_per_s(dtype), bytes_per_s())
    lowest = min(limits["by_flops"], limits["by_bandwidth"])
    result |= {
        "limits": limits, "share_of_limit": round(result["tokens_per_s"] / lowest, 3), "first_s": round(first, 1),
        "peak_bytes": peak_bytes(),
    }  # fmt: skip
    if compare:
        other = transformers(config, weights, tokenizer, work, dtype)
        result[compare] = other | {"ratio": round(result["tokens_per_s"] / other["tokens_per_s"], 2)}
    return result


def training(config: LlamaConfig, weights: Params, work: Workload, dtype: str) -> Callable[[], float]:
    """Make a function that trains one step and returns its loss."""
    c, sharding = _settings(work, dtype), train_sharding(make_mesh())
    tx = make_optimizer(c, 100)
    step = make_step(sft.make_gradient(c, config, sharding), tx, config, sharding)
    states = [first_state(config, weights, tx, sharding)]
    documents = [data.make_document(row) for row in work.tokens(config.vocab_size)]
    batch = sharding.device_put(data.pack(documents, work.length)[0], "batch")

    def run() -> float:
        state, metrics = step(states.pop(), batch)
        states.append(jax.block_until_ready(state))
        return float(metrics["loss"])

    return run


def first_state(
    config: LlamaConfig, weights: Params, tx: optax.GradientTransformation, sharding: Sharding
) -> TrainState:
    """The state at step 0, for a step that donates it: made of copies, so that the caller keeps the weights."""
    copies = jax.tree.map(lambda x: x.copy(), weights)
    return place(new_state(copies, tx), abstract_state(config, tx, sharding))


def _settings(work: Workload, dtype: str) -> cfg.Sft:
    return cfg.Sft.model_validate({"batch_size": work.rows, "max_length": work.length, "dtype": dtype})


def _timed_loss(run: Callable[[], float]) -> tuple[float, float]:
    """The seconds and the loss of one step."""
    losses: list[float] = []
    return timed(lambda: losses.append(run())), round(losses[0], 6)


def rate(work: Workload, run: Callable[[], Any]) -> Json:
    """Measure the median seconds of a step, and the tokens a second."""
    seconds = statistics.median(timed(run) for _ in range(work.steps))
    return {"seconds": round(seconds, 6), "tokens_per_s": round(work.rows * work.length / seconds, 1)}


def limit(config: LlamaConfig, work: Workload, flops: float, bandwidth: float) -> Json:
    """Compute the tokens a second that the machine allows if nothing else costs time.

    FLOPs: those of the matmuls, attention to earlier tokens included; the backward pass costs twice the forward pass.
    Bytes, in float32: the parameters once in each pass, the gradients written once, and in the update the parameters,
    both moments and the gradients read, and the parameters and both moments written.

    Args:
      config: the model.
      work: the workload.
      flops: measured FLOP/s of the machine.
      bandwidth: measured bytes/s of the machine.

    Returns:
      flops_per_s and bytes_per_s of the machine; by_flops and by_bandwidth, the tokens a second that each allows.
    """
    tokens = work.rows * work.length
    executed = 3 * tokens * config.flops_per_token(work.length // 2)
    moved = (2 + 1 + 4 + 3) * 4 * params.count(config)
    return {
        "flops_per_s": round(flops), "bytes_per_s": round(bandwidth),
        "by_flops": round(tokens * flops / executed, 1), "by_bandwidth": round(tokens * bandwidth / moved, 1),
    }  # fmt: skip


def transformers(
    config: LlamaConfig, weights: Params, tokenizer: Tokenizer, work: Workload, dtype: str = "float32"
) -> Json:
    """Measure transformers with torch's fused AdamW, on the same weights and tokens and with the same clipping.

    Returns:
      loss: of the first step; seconds and tokens_per_s of the next ones.
    """
    import torch

    model = torch_model(config, weights, tokenizer).train()
    c = _settings(work, dtype)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=c.learning_rate, betas=c.betas, weight_decay=c.weight_decay, fused=True
    )
    tokens = torch.from_numpy(work.tokens(config.vocab_size).astype(np.int64)).to(model.device)

    def run() -> float:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    _, loss = _timed_loss(run)
    return {"loss": loss} | rate(work, run)
