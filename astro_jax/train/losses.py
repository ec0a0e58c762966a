"""Losses over packed sequences. No tensor of [B, S, V] is ever live: the LM head runs in chunks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from astro_jax.llama import model
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding

# Positions of each row whose logits are live at once.
LOGITS_CHUNK = 1024


@struct.dataclass
class Batch:
    """Packed rows. A token with weight w counts w times in the loss; its prediction comes from the token before."""

    tokens: Any  # int32 [B, S]
    segments: Any  # int32 [B, S]; 0 is padding
    positions: Any  # int32 [B, S]; restart in each segment
    weights: Any  # float32 [B, S]; 0 on padding and on each segment's first token


@struct.dataclass
class RolloutBatch:
    """Packed rollouts: a Batch and what GRPO knows of each response token. Weights sum to 1 over the batch."""

    batch: Batch
    advantages: Any  # float32 [B, S]
    old_logprobs: Any  # float32 [B, S], from the sampler


def token_logprobs(
    params: Params, batch: Batch, config: LlamaConfig, sharding: Sharding | None = None, remat: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token given those before it, and the entropy that it was drawn from.

    Returns:
      two float32 [B, S]; column 0 and each segment's first token hold values without meaning (their weight is 0).
    """
    x = model.hidden_states(
        params, batch.tokens, config,
        positions=batch.positions, segment_ids=batch.segments, sharding=sharding, remat=remat,
    )  # fmt: skip
    targets = jnp.roll(batch.tokens, -1, axis=1)
    matrix, axes = model.lm_head_weight(params)
    predict = functools.partial(_predictions, axes=axes)
    if sharding is not None:
        # Gathered once, and spelled out for each device: in XLA's hands every chunk would gather the head and what the
        # blocks give, and scatter the head's gradient.
        there = [axis if axis == "vocab" else None for axis in axes]
        matrix = sharding.reshard(matrix, axes, there)
        x = sharding.reshard(x, ("batch", "seq", None), ("batch", None, None))
        rows = sharding.spec(("batch", None))
        predict = jax.shard_map(
            functools.partial(predict, vocab=sharding.mesh_axes("vocab")), mesh=sharding.mesh,
            in_specs=(sharding.spec(there), sharding.spec(("batch", None, None)), rows), out_specs=rows,
        )  # fmt: skip
    logp, entropy = predict(matrix, x, targets)
    return jnp.roll(logp, 1, axis=1), jnp.roll(entropy, 1, axis=1)


def _predictions(
    matrix: jax.Array, x: jax.Array, targets: jax.Array, axes: tuple[str, str], vocab: tuple[str, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target, and the entropy, from hidden states [B, S, D]: a chunk of positions at a time.

    Args:
      matrix: of the LM head, whose logical axes are `axes`.
      vocab: the mesh axes that its vocabulary is split over; all sums over it are over them too.
    """
    b, s, d = x.shape

    def chunk(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, targets = part
        logits = model.logits(matrix, axes, x)
        top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        logits = logits - (jax.lax.pmax(top, vocab) if vocab else top)
        ids = jnp.arange(logits.shape[-1])
        if vocab:
            ids = ids + jax.lax.axis_index(vocab) * len(ids)
        log_z = jnp.log(total(jnp.exp(logits)))
        # A masked sum, not a gather: it stays local where the vocabulary is split over devices.
        picked = total(jnp.where(ids[None, None, :] == targets[..., None], logits, 0.0))
        mean_logit = total(jnp.exp(logits - log_z[..., None]) * logits)
        return picked - log_z, jax.lax.stop_gradient(log_z - mean_logit)

    def total(x: jax.Array) -> jax.Array:
        x = jnp.sum(x, axis=-1)
        return jax.lax.psum(x, vocab) if vocab else x

    if s <= LOGITS_CHUNK or s % LOGITS_CHUNK:
        return chunk((x, targets))
    n = s // LOGITS_CHUNK
    parts = (
        jnp.moveaxis(x.reshape(b, n, LOGITS_CHUNK, d), 1, 0),
        jnp.moveaxis(targets.reshape(b, n, LOGITS_CHUNK), 1, 0),
    )
    logp, entropy = (jnp.moveaxis(y, 0, 1).reshape(b, s) for y in jax.lax.map(jax.checkpoint(chunk), parts))
    return logp, entropy


def cross_entropy(logp: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean negative log-likelihood, in nats a token."""
    return -jnp.sum(logp * weights) / jnp.maximum(jnp.sum(weights), 1e-9)


def policy_loss(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, weights: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """GRPO's clipped surrogate without a KL term (arXiv 2402.03300, eq. 3; ASTRO, section 3.2).

    -sum_t w_t min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t) with r_t = exp(logp_t - old_logp_t).

    Returns:
      (the loss, the share of the weight whose ratio is clipped).
    """
    ratio = jnp.exp(jnp.where(weights > 0, logp - old_logp, 0.0))
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    gain = jnp.minimum(ratio * advantages, bounded * advantages)
    clipped = (ratio * advantages > gain).astype(jnp.float32)
    return -jnp.sum(weights * gain), jnp.sum(weights * clipped) / jnp.maximum(jnp.sum(weights), 1e-9)


def cast(params: Params, dtype: str) -> Params:
    """Parameters in the computation's type; gradients come back in the parameters' own."""
    return jax.tree.map(lambda p: p.astype(dtype), params)
