"""Causal attention of many tokens to each other: in plain XLA, and by the splash kernel where the devices are TPUs.

Letters as in the README: B rows, S tokens, H query and K key-value heads of size h.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from astro_jax.errors import AstroError
from astro_jax.mesh import Sharding

# Rows of queries that attend at once in XLA: bounds the scores to [B, H, chunk, S].
QUERY_CHUNK = 1024
NEG_INF = -1e30
# Sides of the squares of scores that splash attention computes at once; it takes the largest that divides S.
BLOCKS = (1024, 512, 256, 128)
HEAD = 64  # what it takes a head's size to be a multiple of


def kernel(sharding: Sharding, length: int, head_dim: int = HEAD) -> str:
    """Which attention rows of `length` tokens get, "xla" or "splash": as the setting says, or with "auto" splash where
    it can be.

    Raises:
      AstroError: where splash attention is asked for and cannot be.
    """
    if sharding.attention == "xla":
        return "xla"
    why_not = ""
    if sharding.platform != "tpu":
        why_not = f"needs TPUs, and the devices are of {sharding.platform}"
    elif length % BLOCKS[-1]:
        why_not = f"needs rows of a multiple of {BLOCKS[-1]} tokens, and there are some of {length}"
    elif head_dim % HEAD:
        why_not = f"needs heads of a multiple of {HEAD}, and the model's have {head_dim}"
    if why_not and sharding.attention == "splash":
        raise AstroError(f"attention=splash {why_not}; set attention=auto or xla")
    return "xla" if why_not else "splash"


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, sharding: Sharding | None) -> jax.Array:
    """Causal attention inside segments, grouped queries.

    Args:
      q: [B, S, H, h]; k, v: [B, S, K, h].
      segments: int32 [B, S]; a token sees the earlier ones of its own segment. 0 is padding.

    Returns:
      [B, S, H, h]. Rows of padding hold finite values that nobody reads.
    """
    if sharding is None or kernel(sharding, q.shape[1], q.shape[3]) == "xla":
        return xla(q, k, v, segments)
    return splash(q, k, v, segments, sharding)


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    sharding: Sharding,
    with_sums: bool = False,
    interpret: bool = False,
) -> Any:
    """`attend` by JAX's splash attention (flash attention that skips blocks above the diagonal): no scores in memory.

    Args:
      with_sums: give also float32 [B, S, H], the log of each query's sum of exponentials; then there is no gradient.
      interpret: run the kernel's code on any device, slowly; for tests.
    """
    length, head_dim = q.shape[1], q.shape[3]
    block = block_size(length)
    sizes = splash_kernel.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> Any:
        mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length)) for _ in range(q.shape[2])])
        one = splash_kernel.make_splash_mha(
            mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, save_residuals=with_sums, interpret=interpret
        )
        q, k, v = (x.swapaxes(1, 2) for x in (q * head_dim**-0.5, k, v))  # heads first
        out = jax.vmap(one)(q, k, v, splash_kernel.SegmentIds(segments, segments))
        return jax.tree.map(lambda x: x.swapaxes(1, 2), (out[0], out[1][0]) if with_sums else out)

    heads, kv_heads, sums, rows = (
        sharding.spec(axes)
        for axes in (
            ("batch", None, "heads", None), ("batch", None, "kv_heads", None), ("batch", None, "heads"), ("batch", None)
        )
    )  # fmt: skip
    return jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(heads, kv_heads, kv_heads, rows),
        out_specs=(heads, sums) if with_sums else heads, check_vma=False,
    )(q, k, v, segments)  # fmt: skip


def block_size(length: int) -> int:
    """The side of splash attention's blocks for rows of `length` tokens."""
    return next(block for block in BLOCKS if length % block == 0)


def computed(name: str, length: int) -> float:
    """The share of the [S, S] scores that a kernel computes: splash leaves out the blocks above the diagonal."""
    blocks = length // block_size(length) if name == "splash" else 1
    return (blocks + 1) / (2 * blocks)


def xla(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """`attend`, one chunk of queries at a time."""
    b, s, n, h = q.shape
    n_kv = k.shape[2]
    # Heads before sequence: plain batched matmuls, which XLA on a CPU runs ten times faster than the transposed ones.
    q = q.reshape(b, s, n_kv, n // n_kv, h).transpose(0, 2, 3, 1, 4) * h**-0.5  # [B, K, G, S, h]
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))  # [B, K, S, h]
    column = jnp.arange(s)

    def chunk(q: jax.Array, q_segments: jax.Array, rows: jax.Array) -> jax.Array:
        scores = jnp.einsum("bkgsh,bkth->bkgst", q, k, preferred_element_type=jnp.float32)
        mask = (q_segments[:, :, None] == segments[:, None, :]) & (rows[:, None] >= column[None, :])[None]
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, NEG_INF), axis=-1)
        return jnp.einsum("bkgst,bkth->bkgsh", weights.astype(v.dtype), v)

    if s <= QUERY_CHUNK or s % QUERY_CHUNK:
        out = chunk(q, segments, column)
    else:
        split = functools.partial(_split, parts=s // QUERY_CHUNK)
        chunks = (split(q, axis=3), split(segments, axis=1), split(column, axis=0))
        out = jax.lax.map(lambda c: jax.checkpoint(chunk)(*c), chunks)  # [parts, B, K, G, chunk, h]
        out = jnp.moveaxis(out, 0, 3).reshape(b, n_kv, n // n_kv, s, h)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, s, n, h)


def _split(x: jax.Array, parts: int, axis: int) -> jax.Array:
    """Cut an axis into parts and put the parts first."""
    return jnp.stack(jnp.split(x, parts, axis=axis))
