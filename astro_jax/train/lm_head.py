"""The softmax of the LM head where the vocabulary is split over devices, and chunks of tokens for it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Softmax(NamedTuple):
    """The softmax of logits at some tokens, and the place of their targets.

    Attributes:
      logits: float32 [..., V], less the largest one of the token.
      exp: float32 [..., V], of these logits.
      z: float32 [...], the sum of `exp` over the whole vocabulary.
      is_target: bool [..., V]. A masked sum over the targets stays local where the vocabulary is split; a gather would
        not.
    """

    logits: jax.Array
    exp: jax.Array
    z: jax.Array
    is_target: jax.Array


def softmax(logits: jax.Array, targets: jax.Array, vocab: tuple[str, ...]) -> Softmax:
    """Compute the softmax of logits.

    Args:
      logits: float32 [..., V], of the part of the vocabulary that this device holds.
      targets: int32 [...].
      vocab: the mesh axes that the vocabulary is split over; empty for one part.
    """
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    logits = logits - (jax.lax.pmax(top, vocab) if vocab else top)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    if vocab:
        ids += jax.lax.axis_index(vocab) * logits.shape[-1]
    exp = jnp.exp(logits)
    return Softmax(logits, exp, total(exp, vocab), ids == targets[..., None])


def total(x: jax.Array, vocab: tuple[str, ...]) -> jax.Array:
    """Sum over the whole vocabulary: [..., V] -> [...]."""
    x = jnp.sum(x, axis=-1)
    return jax.lax.psum(x, vocab) if vocab else x


def chunks(x: jax.Array, n_chunks: int) -> jax.Array:
    """Split the tokens of [B, S, ...] into chunks of R tokens: [n_chunks, R, ...]. Zeros fill the last chunk."""
    tokens = x.reshape(-1, *x.shape[2:])
    rows = -(-len(tokens) // n_chunks)
    padding = [(0, n_chunks * rows - len(tokens))] + [(0, 0)] * (tokens.ndim - 1)
    return jnp.pad(tokens, padding).reshape(n_chunks, rows, *tokens.shape[1:])
