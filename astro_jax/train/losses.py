"""Log-probabilities over packed sequences, and the loss of SFT. The losses of RL: `policy_loss`.

The LM head runs over chunks of tokens, whatever the shape of the batch: at most `LIVE_LOGITS` logits are live at once.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
from flax import struct

from astro_jax.llama import mixed_precision as mp
from astro_jax.llama import model
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Array, Params
from astro_jax.mesh import Sharding
from astro_jax.train import linear_cross_entropy, lm_head

# Logits that are live at once on a device: 512 MiB in float32. A chunk has as many tokens as fit.
LIVE_LOGITS = 2**27


@struct.dataclass
class Batch:
    """Packed rows of documents.

    Example: the documents `a b c` and `d e` in a row of S = 6 have tokens `a b c d e 0`, segment_ids `1 1 1 2 2 0`,
    positions `0 1 2 0 1 0` and, where all tokens are learned, loss_weights `0 1 1 0 1 0`.

    Attributes:
      tokens: int32 [B, S].
      segment_ids: int32 [B, S], the number of the document in its row, from 1. 0 is padding.
      positions: int32 [B, S], the place of a token in its document, from 0.
      loss_weights: float32 [B, S], the weight of a token's prediction in the loss. The prediction is made at the token
        before. 0 on padding and on the first token of each document.
    """

    tokens: Array
    segment_ids: Array
    positions: Array
    loss_weights: Array


def token_logprobs(
    params: Params,
    batch: Batch,
    config: LlamaConfig,
    sharding: Sharding | None = None,
    remat_policy: str = "none",
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each token given the tokens before it, and the entropy of the distribution at that place.

    Args:
      temperature: divides the logits, as in sampling.

    Returns:
      two float32 [B, S], in nats. Column 0 and the first token of each document hold values without meaning; their
      weight in the loss is 0.
    """
    x = _hidden_states(params, batch, config, sharding, remat_policy)
    targets = jnp.roll(batch.tokens, -1, axis=1)
    matrix, axes = model.lm_head_weight(params)
    predict = functools.partial(_predictions, axes=axes, temperature=temperature)
    if sharding is not None:
        # Gather the LM head and the hidden states once, and write the collectives by hand. XLA alone would gather both
        # in every chunk, and would scatter the gradient of the head in every chunk.
        gathered = [axis if axis == "vocab" else None for axis in axes]
        matrix = mp.map_arrays(lambda x: sharding.reshard(x, axes, gathered), matrix)
        x = sharding.reshard(x, ("batch", "seq", None), ("batch", None, None))
        rows = sharding.spec(("batch", None))
        predict = jax.shard_map(
            functools.partial(predict, batch=sharding.mesh_axes("batch"), vocab=sharding.mesh_axes("vocab")),
            mesh=sharding.mesh,
            in_specs=(sharding.spec(gathered), sharding.spec(("batch", None, None)), rows), out_specs=rows,
        )  # fmt: skip
    logprobs, entropy = predict(matrix, x, targets)
    return jnp.roll(logprobs, 1, axis=1), jnp.roll(entropy, 1, axis=1)


def sum_nll(
    params: Params, batch: Batch, config: LlamaConfig, sharding: Sharding | None = None, remat_policy: str = "none"
) -> jax.Array:
    """Weighted sum of the negative log-likelihoods of all tokens, in nats: float32 [].

    Equals `-sum(token_logprobs * loss_weights)`. Where the LM head runs in chunks, its gradient is computed in the
    forward pass (`astro_jax.train.linear_cross_entropy`). One chunk keeps its logits for the backward pass.
    """
    n_chunks = num_chunks(batch.tokens.size, config.vocab_size, sharding)
    if n_chunks == 1:
        logprobs, _ = token_logprobs(params, batch, config, sharding, remat_policy)
        return -jnp.sum(logprobs * batch.loss_weights)
    x = _hidden_states(params, batch, config, sharding, remat_policy)
    if sharding is not None:
        x = sharding.reshard(x, ("batch", "seq", None), ("batch", None, None))
    targets, weights = (jnp.roll(column, -1, axis=1) for column in (batch.tokens, batch.loss_weights))
    return linear_cross_entropy.sum_nll(*model.lm_head_weight(params), x, targets, weights, n_chunks, sharding)


def _hidden_states(
    params: Params, batch: Batch, config: LlamaConfig, sharding: Sharding | None, remat_policy: str
) -> jax.Array:
    """Compute the final hidden states [B, S, D] of packed rows."""
    chex.assert_rank(batch.tokens, 2)
    chex.assert_equal_shape([batch.tokens, batch.segment_ids, batch.positions, batch.loss_weights])
    return model.hidden_states(
        params, batch.tokens, config,
        positions=batch.positions, segment_ids=batch.segment_ids, sharding=sharding, remat_policy=remat_policy,
    )  # fmt: skip


def num_chunks(tokens: int, vocab_size: int, sharding: Sharding | None = None) -> int:
    """Return the number of chunks of the LM head on each device.

    Args:
      tokens: of the whole batch.
      vocab_size: of the model.
      sharding: None for one device.
    """
    split = 1 if sharding is None else sharding.batch_size * sharding.mesh.shape["tp"]
    return -(-tokens * vocab_size // (split * LIVE_LOGITS))


def _predictions(
    matrix: mp.Weight,
    x: jax.Array,
    targets: jax.Array,
    axes: tuple[str, str],
    batch: tuple[str, ...] = (),
    vocab: tuple[str, ...] = (),
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target, and the entropy, from hidden states: one chunk of tokens at a time.

    Args:
      matrix: of the LM head, whose logical axes are `axes`.
      x: [B, S, D].
      targets: int32 [B, S], the next tokens.
      batch: the mesh axes that the rows are split over.
      vocab: the mesh axes that the vocabulary is split over. Sums over the vocabulary are sums over these axes too.
      temperature: divides the logits.

    Returns:
      two float32 [B, S].
    """
    b, s, _ = x.shape
    if isinstance(matrix, mp.MixedWeight):
        n_vocab = matrix.value.shape[axes.index("vocab")]
        if batch:
            # Each device sums the gradient over its chunks; one reduction over the devices follows.
            matrix = mp.MixedWeight(matrix.value, jax.lax.pcast(matrix.master, batch, to="varying"))
            x = jax.lax.pcast(x, vocab, to="varying")
    else:
        n_vocab = matrix.shape[axes.index("vocab")]
    n_chunks = num_chunks(b * s, n_vocab)

    def chunk(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, targets = inputs
        logits = model.logits(matrix, axes, x)
        if temperature != 1:
            logits = logits / temperature
        p = lm_head.softmax(logits, targets, vocab)
        log_z = jnp.log(p.z)
        target_logits = lm_head.total(jnp.where(p.is_target, p.logits, 0.0), vocab)
        mean_logit = lm_head.total(jnp.exp(p.logits - log_z[..., None]) * p.logits, vocab)
        return target_logits - log_z, jax.lax.stop_gradient(log_z - mean_logit)

    if n_chunks == 1:
        return chunk((x, targets))
    chunks = (lm_head.chunks(x, n_chunks), lm_head.chunks(targets, n_chunks))
    logprobs, entropy = jax.lax.map(jax.checkpoint(chunk), chunks)
    return tuple(y.reshape(-1)[: b * s].reshape(b, s) for y in (logprobs, entropy))


def mean_nll(
    params: Params, batch: Batch, config: LlamaConfig, sharding: Sharding | None = None, remat_policy: str = "none"
) -> jax.Array:
    """Weighted mean of the negative log-likelihood, in nats a token: the loss of SFT."""
    return sum_nll(params, batch, config, sharding, remat_policy) / jnp.maximum(jnp.sum(batch.loss_weights), 1e-9)


def cast(params: Params, dtype: str) -> Params:
    """Parameters in the type of the computation."""
    return jax.tree.map(lambda p: p.astype(dtype), params)


def mixed(params: Params, dtype: str) -> Params:
    """Parameters that compute in `dtype`, and whose gradients are float32: all sums that make them are float32 too."""
    return jax.tree.map(lambda p: mp.mixed(p, dtype), params)
