"""The Llama model as pure functions of a parameter pytree.

`hidden_states` runs whole sequences, for training. `forward_with_cache` runs tokens that attend to a KV cache, for
prefill and decode. Both scan over the layers and share `_block`. Softmax, norms and RoPE are computed in float32, with
parameters of any dtype. Dimension letters: see `astro_jax.llama.config`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from astro_jax.llama import attention
from astro_jax.llama import mixed_precision as mp
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Layers, Params
from astro_jax.mesh import Sharding

# The scan over layers is unrolled in training for models of at most this many layers.
UNROLLED_LAYERS = 4

# The results inside a block that each rematerialization policy keeps for the backward pass, by name. All others are
# computed again. The names of the policies are MaxText's; "none" keeps everything.
REMAT_POLICIES: dict[str, tuple[str, ...]] = {
    "full": (),
    "save_out_proj": ("out_proj",),
    "save_dot_except_mlp": ("qkv_proj", "context", "out_proj"),
    "minimal_with_context": ("qkv_proj", "context", "out_proj", "mlpwi"),
}


def rms_norm(x: jax.Array, weight: mp.Weight, eps: float) -> jax.Array:
    """Normalize the last axis of x [..., D] to a root mean square of 1, times weight [D]."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return mp.scale(y.astype(x.dtype), weight)


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """RoPE frequencies float32 [h / 2], in radians a token, with the scaling of Llama 3.1 if the config has one.

    The scaling divides low frequencies by `factor`, keeps high frequencies, and interpolates between them.

    NumPy computes the frequencies and rounds as the code of the published models does. XLA rounds differently inside
    and outside jit, and the last bit of a frequency changes the angle at position 100000 by 0.006.
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
    """Rotate queries or keys x [B, S, H or K, h] by the angles of cos and sin [B, S, 1, h / 2].

    Element i of a head is paired with element i + h / 2 (Hugging Face's convention).
    """
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
    """Apply one transformer block to x [B, S, D].

    Args:
      p: the weights of one layer, without the axis L.
      attend: (q [B, S, H, h], k [B, S, K, h], v [B, S, K, h]) -> [B, S, H, h].

    Returns:
      (x [B, S, D], (k, v)), the keys and values [B, S, K, h] of this layer.
    """
    constrain, gather, scatter = _constraints(sharding, x.shape[1])
    y = gather(rms_norm(x, p.attn_norm, config.norm_eps))
    q = _rope(mp.einsum("bsd,dnh->bsnh", y, p.wq), *rope)
    k = _rope(mp.einsum("bsd,dnh->bsnh", y, p.wk), *rope)
    v = mp.einsum("bsd,dnh->bsnh", y, p.wv)
    q = constrain(q, "batch", None, "heads", None)
    k = constrain(k, "batch", None, "kv_heads", None)
    v = constrain(v, "batch", None, "kv_heads", None)
    q, k, v = (checkpoint_name(z, "qkv_proj") for z in (q, k, v))
    context = checkpoint_name(attend(q, k, v), "context")
    x = x + checkpoint_name(scatter(mp.einsum("bsnh,nhd->bsd", context, p.wo)), "out_proj")
    y = gather(rms_norm(x, p.mlp_norm, config.norm_eps))
    gate, up = (checkpoint_name(mp.einsum("bsd,df->bsf", y, w), "mlpwi") for w in (p.w_gate, p.w_up))
    y = jax.nn.silu(gate) * up
    x = x + scatter(mp.einsum("bsf,fd->bsd", constrain(y, "batch", None, "mlp"), p.w_down))
    return x, (k, v)


def _constraints(sharding: Sharding | None, length: int) -> tuple[Callable[..., jax.Array], ...]:
    """Functions that constrain shardings inside a block; without a mesh, functions that return their argument.

    Activations [B, S, D] between blocks are split over tp along S (sequence parallelism). A single token (S = 1,
    decode) is not split.

    Returns:
      (`Sharding.constrain`, gather activations along S before a matmul, scatter activations along S after a matmul).
    """
    if sharding is None:
        return (lambda x, *_: x,) * 3
    gathered, scattered = ("batch", None, None), ("batch", None if length == 1 else "seq", None)
    return (
        sharding.constrain,
        functools.partial(sharding.reshard, source=scattered, target=gathered),
        functools.partial(sharding.reshard, source=gathered, target=scattered),
    )


def hidden_states(
    params: Params,
    tokens: jax.Array,
    config: LlamaConfig,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    sharding: Sharding | None = None,
    remat_policy: str = "none",
) -> jax.Array:
    """Compute the final hidden states of whole sequences, the input of the LM head.

    Args:
      tokens: int32 [B, S].
      positions: int32 [B, S], for RoPE; default 0..S-1.
      segment_ids: int32 [B, S] of packed sequences; default one segment a row. 0 is padding.
      sharding: None for one device.
      remat_policy: what the backward pass computes again: "none", or a name of REMAT_POLICIES.

    Returns:
      [B, S, D], in the dtype in which the parameters compute.
    """
    chex.assert_rank(tokens, 2)
    b, s = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(s), (b, s)) if positions is None else positions
    segment_ids = jnp.ones((b, s), jnp.int32) if segment_ids is None else segment_ids
    chex.assert_shape([positions, segment_ids], (b, s))
    rope = _rope_angles(positions, config)
    attend = functools.partial(attention.attend, segment_ids=segment_ids, sharding=sharding)

    def step(x: jax.Array, layer: Layers) -> tuple[jax.Array, None]:
        return _block(x, layer, config, rope, attend, sharding)[0], None

    x = _embed(params, tokens, sharding)
    # On a CPU the backward pass of a rolled scan takes a third longer.
    unroll = config.n_layers if config.n_layers <= UNROLLED_LAYERS else 1
    if remat_policy != "none":
        saved = jax.checkpoint_policies.save_only_these_names(*REMAT_POLICIES[remat_policy])
        step = jax.checkpoint(step, policy=saved)
    x, _ = jax.lax.scan(step, x, params.layers, unroll=unroll)
    return rms_norm(x, params.final_norm, config.norm_eps)


def forward_with_cache(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    attend: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
    config: LlamaConfig,
    sharding: Sharding | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the final hidden states of tokens that attend to a KV cache, for prefill and decode.

    The caller owns the cache. `attend` only reads the cache, so that the scan over layers needs no second copy; after
    the scan the caller writes the new keys and values once. The scan is never unrolled: XLA on a CPU would then copy
    the whole cache before the write.

    Args:
      tokens: int32 [B, S].
      positions: int32 [B, S], for RoPE.
      attend: (layer int32 [], q [B, S, H, h], k [B, S, K, h], v [B, S, K, h]) -> [B, S, H, h], the attention of the new
        tokens to the cache and to each other.
      sharding: None for one device.

    Returns:
      (hidden states [B, S, D], keys [L, B, S, K, h] after RoPE, values [L, B, S, K, h]) of the new tokens.
    """
    chex.assert_rank(tokens, 2)
    chex.assert_equal_shape([tokens, positions])
    rope = _rope_angles(positions, config)

    def step(x: jax.Array, inputs: tuple[Layers, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        layer, index = inputs
        return _block(x, layer, config, rope, functools.partial(attend, index), sharding)

    x, (k, v) = jax.lax.scan(step, _embed(params, tokens, sharding), (params.layers, jnp.arange(config.n_layers)))
    return rms_norm(x, params.final_norm, config.norm_eps), k, v


def lm_head(params: Params, x: jax.Array) -> jax.Array:
    """Compute the logits float32 [..., V] of hidden states x [..., D]."""
    return logits(*lm_head_weight(params), x)


def lm_head_weight(params: Params) -> tuple[mp.Weight, tuple[str, str]]:
    """The weight of the LM head and its logical axes: the embedding table [V, D] if tied, otherwise [D, V]."""
    if params.lm_head is None:
        return params.embed, ("vocab", "embed")
    return params.lm_head, ("embed", "vocab")


def logits(weight: mp.Weight, axes: tuple[str, str], x: jax.Array) -> jax.Array:
    """Compute the logits float32 [..., V] of x [..., D].

    Args:
      weight: of the LM head, or the columns of one shard of the vocabulary.
      axes: the logical axes of `weight`, as `lm_head_weight` returns them.
    """
    letters = "vd" if axes[0] == "vocab" else "dv"
    rows = "abc"[: x.ndim - 1]
    return mp.einsum(f"{rows}d,{letters}->{rows}v", x, weight, preferred_element_type=jnp.float32)


def forward(params: Params, tokens: jax.Array, config: LlamaConfig) -> jax.Array:
    """Compute the logits float32 [B, S, V] of tokens int32 [B, S].

    For small inputs: all logits are in memory at once. The losses compute them in chunks (`astro_jax.train.losses`).
    """
    return lm_head(params, hidden_states(params, tokens, config))


def _embed(params: Params, tokens: jax.Array, sharding: Sharding | None) -> jax.Array:
    """Look up the embeddings [B, S, D] of tokens int32 [B, S].

    With a mesh, each device looks up the tokens of its own shard of the table, and an all-reduce over tp adds the
    results. `shard_map` fixes this plan: XLA alone would split the gradient's scatter along D and move all activations.
    """
    if sharding is None:
        return mp.look_up(functools.partial(jnp.take, axis=0), params.embed, tokens)
    vocab, embed = sharding.mesh_axes("vocab"), sharding.mesh_axes("embed")

    def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if embed:
            table = jax.lax.all_gather(table, embed, axis=1, tiled=True)
        if not vocab:
            return jnp.take(table, tokens, axis=0)
        row = tokens - jax.lax.axis_index(vocab) * len(table)
        in_shard = (row >= 0) & (row < len(table))
        return jax.lax.psum(jnp.where(in_shard[..., None], jnp.take(table, row, axis=0, mode="clip"), 0), vocab)

    in_specs = (sharding.spec(("vocab", "embed")), sharding.spec(("batch", None)))
    out_specs = sharding.spec(("batch", None, None))
    take = jax.shard_map(look_up, mesh=sharding.mesh, in_specs=in_specs, out_specs=out_specs)
    x = mp.look_up(take, params.embed, tokens)
    scatter = _constraints(sharding, x.shape[1])[2]
    return scatter(x)


def _rope_angles(positions: jax.Array, config: LlamaConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, S, 1, h / 2] of positions [B, S]."""
    angle = positions.astype(jnp.float32)[:, :, None] * rope_frequencies(config)[None, None, :]
    return jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
