"""Llama as pure functions on one parameter pytree.

Training, prefill and decoding share `_block`; they differ only in what a query may attend to. Layers are scanned, so
depth costs no compile time. Softmax, norms and RoPE are computed in float32 whatever the parameters' type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from astro_jax.llama import attention
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Layers, Params
from astro_jax.mesh import Sharding

# Models of at most this many layers are unrolled in training.
UNROLLED_LAYERS = 4


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * jnp.broadcast_to(weight, x.shape)


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Angular frequencies [h / 2], with Llama 3.1's scaling: long waves are stretched, short ones kept, with a ramp.

    Rounded where the published models' code rounds, and not by XLA, which rounds otherwise inside jit than outside: at
    position 100000 the last bit of a frequency is 0.006 of its angle.
    """
    h = config.head_dim
    power = config.rope_theta ** (np.arange(0, h, 2, dtype=np.float32) / np.float32(h)).astype(np.float64)
    freq = np.float32(1.0) / power.astype(np.float32)
    if (s := config.rope_scaling) is None:
        return freq
    turns = s.original_max_positions * freq / (2 * np.pi)
    keep = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)
    return (freq * (keep + (1 - keep) / s.factor)).astype(np.float32)


def _rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the halves of each head of x [B, S, N, h] by cos, sin [B, S, 1, h / 2] (Hugging Face's convention)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _block(
    x: jax.Array,
    p: Layers,
    config: LlamaConfig,
    rope: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    sharding: Sharding | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One transformer block on x [B, S, D]; returns the new x and this block's keys and values [B, S, K, h]."""
    # Between blocks the sequence is split over tp; decoding has a sequence of one, which stays whole.
    pin = _pin(sharding)
    y = rms_norm(x, p.attn_norm, config.norm_eps)
    q = _rope(jnp.einsum("bsd,dnh->bsnh", y, p.wq), *rope)
    k = _rope(jnp.einsum("bsd,dnh->bsnh", y, p.wk), *rope)
    v = jnp.einsum("bsd,dnh->bsnh", y, p.wv)
    q = pin(q, "batch", None, "heads", None)
    k = pin(k, "batch", None, "kv_heads", None)
    v = pin(v, "batch", None, "kv_heads", None)
    x = x + jnp.einsum("bsnh,nhd->bsd", attend(q, k, v), p.wo)
    x = pin(x, "batch", "seq", None)
    y = rms_norm(x, p.mlp_norm, config.norm_eps)
    y = jax.nn.silu(y @ p.w_gate) * (y @ p.w_up)
    x = x + pin(y, "batch", None, "mlp") @ p.w_down
    return pin(x, "batch", "seq", None), (k, v)


def _pin(sharding: Sharding | None) -> Callable[..., jax.Array]:
    """`constrain`, or nothing where there is no mesh or the sequence is a single token."""

    def pin(x: jax.Array, *axes: str | None) -> jax.Array:
        if sharding is None:
            return x
        return sharding.constrain(x, *[None if a == "seq" and x.shape[1] == 1 else a for a in axes])

    return pin


def hidden(
    params: Params,
    tokens: jax.Array,
    config: LlamaConfig,
    *,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    sharding: Sharding | None = None,
    remat: bool = False,
) -> jax.Array:
    """The final hidden states [B, S, D] of whole sequences, before the LM head.

    Args:
      tokens: int32 [B, S].
      positions: int32 [B, S], for RoPE; default 0..S-1.
      segments: int32 [B, S] of packed sequences; default one segment. 0 is padding.
      remat: recompute each block in the backward pass.
    """
    b, s = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(s), (b, s)) if positions is None else positions
    segments = jnp.ones((b, s), jnp.int32) if segments is None else segments
    rope = _angles(positions, config)
    attend = functools.partial(attention.attend, segments=segments, sharding=sharding)

    def step(x: jax.Array, layer: Layers) -> tuple[jax.Array, None]:
        return _block(x, layer, config, rope, attend, sharding)[0], None

    x = _embed(params, tokens, sharding)
    # A toy's few layers are unrolled: on a CPU the backward pass of a rolled loop takes a third longer.
    unroll = config.n_layers if config.n_layers <= UNROLLED_LAYERS else 1
    x, _ = jax.lax.scan(jax.checkpoint(step) if remat else step, x, params.layers, unroll=unroll)
    return rms_norm(x, params.final_norm, config.norm_eps)


def cached(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    attend: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    config: LlamaConfig,
    sharding: Sharding | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The final hidden states of tokens whose past is held elsewhere, for decoding and prefill.

    The past is only read here, so that the scan over layers needs no second copy of it; the caller writes the new keys
    and values once, after the scan. The scan is never unrolled: XLA on a CPU could then not tell that the last reader
    of the past is done, and would copy all of it.

    Args:
      tokens, positions: int32 [B, S].
      attend: (layer int32 [], q [B, S, H, h], k, v [B, S, K, h]) -> [B, S, H, h], the attention of these tokens to
        their past and to each other.

    Returns:
      (hidden states [B, S, D], the tokens' keys [L, B, S, K, h], rotated, and their values).
    """
    rope = _angles(positions, config)

    def step(x: jax.Array, inputs: tuple[Layers, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        layer, index = inputs
        return _block(x, layer, config, rope, functools.partial(attend, index), sharding)

    x, (k, v) = jax.lax.scan(step, _embed(params, tokens, sharding), (params.layers, jnp.arange(config.n_layers)))
    return rms_norm(x, params.final_norm, config.norm_eps), k, v


def lm_head(params: Params, x: jax.Array) -> jax.Array:
    """Logits float32 [..., V] of hidden states [..., D]."""
    if params.lm_head is None:
        return jnp.einsum("...d,vd->...v", x, params.embed, preferred_element_type=jnp.float32)
    return jnp.einsum("...d,dv->...v", x, params.lm_head, preferred_element_type=jnp.float32)


def forward(params: Params, tokens: jax.Array, config: LlamaConfig) -> jax.Array:
    """Logits float32 [B, S, V] of tokens int32 [B, S]; for small inputs and tests (losses chunk the LM head)."""
    return lm_head(params, hidden(params, tokens, config))


def _embed(params: Params, tokens: jax.Array, sharding: Sharding | None) -> jax.Array:
    return _pin(sharding)(jnp.take(params.embed, tokens, axis=0), "batch", "seq", None)


def _angles(positions: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, S, 1, h / 2] of positions [B, S]."""
    angle = positions.astype(jnp.float32)[:, :, None] * rope_frequencies(config)[None, None, :]
    return jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
