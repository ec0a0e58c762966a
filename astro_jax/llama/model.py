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
    pin, gather, scatter = _placing(sharding, x)
    y = gather(rms_norm(x, p.attn_norm, config.norm_eps))
    q = _rope(jnp.einsum("bsd,dnh->bsnh", y, p.wq), *rope)
    k = _rope(jnp.einsum("bsd,dnh->bsnh", y, p.wk), *rope)
    v = jnp.einsum("bsd,dnh->bsnh", y, p.wv)
    q = pin(q, "batch", None, "heads", None)
    k = pin(k, "batch", None, "kv_heads", None)
    v = pin(v, "batch", None, "kv_heads", None)
    x = x + scatter(jnp.einsum("bsnh,nhd->bsd", attend(q, k, v), p.wo))
    y = gather(rms_norm(x, p.mlp_norm, config.norm_eps))
    y = jax.nn.silu(y @ p.w_gate) * (y @ p.w_up)
    x = x + scatter(pin(y, "batch", None, "mlp") @ p.w_down)
    return x, (k, v)


def _placing(sharding: Sharding | None, x: jax.Array) -> tuple[Callable[..., jax.Array], ...]:
    """(`constrain`; gather a [B, S, D] of a part of the sequence; scatter one), or nothing where there is no mesh.

    Between blocks the sequence is split over tp; decoding has a sequence of one, which stays whole.
    """
    if sharding is None:
        return (lambda x, *_: x,) * 3
    whole, part = ("batch", None, None), ("batch", None if x.shape[1] == 1 else "seq", None)
    return (
        sharding.constrain,
        functools.partial(sharding.move, here=part, there=whole),
        functools.partial(sharding.move, here=whole, there=part),
    )


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
    return logits(*head(params), x)


def head(params: Params) -> tuple[jax.Array, tuple[str, str]]:
    """The matrix of the LM head, [V, D] where it is tied to the embedding, else [D, V]; and its logical axes."""
    if params.lm_head is None:
        return params.embed, ("vocab", "embed")
    return params.lm_head, ("embed", "vocab")


def logits(matrix: jax.Array, axes: tuple[str, str], x: jax.Array) -> jax.Array:
    """`lm_head` by a matrix with those axes, or by a part of its vocabulary."""
    letters = "vd" if axes[0] == "vocab" else "dv"
    return jnp.einsum(f"...d,{letters}->...v", x, matrix, preferred_element_type=jnp.float32)


def forward(params: Params, tokens: jax.Array, config: LlamaConfig) -> jax.Array:
    """Logits float32 [B, S, V] of tokens int32 [B, S]; for small inputs and tests (losses chunk the LM head)."""
    return lm_head(params, hidden(params, tokens, config))


def _embed(params: Params, tokens: jax.Array, sharding: Sharding | None) -> jax.Array:
    """The tokens' rows of the table, [B, S, D]. Each device looks up those that it has; their sum over tp is whole.

    Spelled out, since XLA splits the width of the gradient's scatter in place of its rows: all activations then move.
    """
    if sharding is None:
        return jnp.take(params.embed, tokens, axis=0)
    (vocab,), (embed,) = sharding.axes("vocab"), sharding.axes("embed") or (None,)

    def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if embed:
            table = jax.lax.all_gather(table, embed, axis=1, tiled=True)
        row = tokens - jax.lax.axis_index(vocab) * len(table)
        own = (row >= 0) & (row < len(table))
        return jax.lax.psum(jnp.where(own[..., None], jnp.take(table, row, axis=0, mode="clip"), 0), vocab)

    where = (sharding.spec(("vocab", "embed")), sharding.spec(("batch", None)))
    whole = sharding.spec(("batch", None, None))
    x = jax.shard_map(look_up, mesh=sharding.mesh, in_specs=where, out_specs=whole)(params.embed, tokens)
    return _placing(sharding, x)[2](x)


def _angles(positions: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, S, 1, h / 2] of positions [B, S]."""
    angle = positions.astype(jnp.float32)[:, :, None] * rope_frequencies(config)[None, None, :]
    return jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
