"""Causal attention over whole sequences: plain XLA, JAX's splash attention on TPUs, or cuDNN's attention on GPUs.

Dimension letters: see `astro_jax.llama.config`.
"""

from __future__ import annotations

import functools
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.typing import DTypeLike

from astro_jax.errors import AstroError
from astro_jax.mesh import Sharding

# Plain XLA takes so many queries at once, in the most groups of equal length that have two such chunks or more.
QUERY_CHUNK = 128
QUERY_GROUPS = (8, 4, 2)
NEG_INF = -1e30
# Block sizes of splash attention, in tokens. The largest that divides S is used.
BLOCK_SIZES = (1024, 512, 256, 128)
# Splash attention needs a head size that is a multiple of this one.
HEAD_DIM_MULTIPLE = 64
# What JAX asks of cuDNN's attention (check_is_flash_attention in jax/_src/cudnn/fused_attention_stablehlo.py).
CUDNN_MAX_HEAD_DIM, CUDNN_HEAD_DIM_MULTIPLE = 128, 8
CUDNN_CAPABILITY = 8  # compute capability 8.0: Ampere
IMPLEMENTATION: Literal["xla", "cudnn"] = "cudnn"  # of jax.nn.dot_product_attention; tests take "xla"


def choose_kernel(
    sharding: Sharding, length: int, head_dim: int = HEAD_DIM_MULTIPLE, dtype: DTypeLike = jnp.bfloat16
) -> str:
    """Choose the attention kernel for sequences of `length` tokens: "xla", "splash" or "cudnn".

    The config key `attention` decides. "auto" is splash attention on TPUs and cuDNN's attention on GPUs, wherever they
    can run.

    Args:
      dtype: of queries, keys and values.

    Raises:
      AstroError: where the config asks for a kernel that cannot run.
    """
    kernel = sharding.attention
    if kernel == "auto":
        kernel = {"tpu": "splash", "gpu": "cudnn"}.get(sharding.platform, "xla")
    obstacle = ""
    if kernel == "splash":
        obstacle = _splash_obstacle(sharding, length, head_dim)
    elif kernel == "cudnn":
        obstacle = _cudnn_obstacle(sharding, length, head_dim, dtype)
    if obstacle and sharding.attention == kernel:
        raise AstroError(f"attention={kernel} {obstacle}; set attention=auto or xla")
    return "xla" if obstacle else kernel


def _splash_obstacle(sharding: Sharding, length: int, head_dim: int) -> str:
    """What is in the way of splash attention; empty if nothing is."""
    if sharding.platform != "tpu":
        return f"needs TPUs, but the platform is {sharding.platform}"
    if length % BLOCK_SIZES[-1]:
        return f"needs a sequence length that is a multiple of {BLOCK_SIZES[-1]}, but a length is {length}"
    if head_dim % HEAD_DIM_MULTIPLE:
        return f"needs a head size that is a multiple of {HEAD_DIM_MULTIPLE}, but the model's is {head_dim}"
    return ""


def _cudnn_obstacle(sharding: Sharding, length: int, head_dim: int, dtype: DTypeLike) -> str:
    """What is in the way of cuDNN's attention; empty if nothing is."""
    if sharding.platform != "gpu":
        return f"needs an NVIDIA GPU, but the platform is {sharding.platform}"
    capability = sharding.compute_capability
    if capability < CUDNN_CAPABILITY:
        return f"needs compute capability {CUDNN_CAPABILITY}.0 or higher, but the GPU's is {capability:g}"
    if length % 2:
        return f"needs an even sequence length, but a length is {length}"
    if head_dim > CUDNN_MAX_HEAD_DIM or head_dim % CUDNN_HEAD_DIM_MULTIPLE:
        return (
            f"needs a head size that is a multiple of {CUDNN_HEAD_DIM_MULTIPLE} up to {CUDNN_MAX_HEAD_DIM}, but the "
            f"model's is {head_dim}"
        )
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16, but computes in {jnp.dtype(dtype)}"
    return ""


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, sharding: Sharding | None) -> jax.Array:
    """Compute causal grouped-query attention inside each segment, with the kernel of `choose_kernel`.

    Args:
      q: [B, S, H, h].
      k: [B, S, K, h].
      v: [B, S, K, h].
      segment_ids: int32 [B, S] of packed sequences; a token attends to itself and to earlier tokens of its segment. 0
        is padding.
      sharding: None for one device and plain XLA.

    Returns:
      [B, S, H, h]. Padding has finite values without meaning.
    """
    kernel = "xla" if sharding is None else choose_kernel(sharding, q.shape[1], q.shape[3], q.dtype)
    if sharding is None or kernel == "xla":
        return xla(q, k, v, segment_ids)
    return (splash if kernel == "splash" else cudnn)(q, k, v, segment_ids, sharding)


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, sharding: Sharding, interpret: bool = False
) -> jax.Array:
    """Compute `attend` by splash attention: flash attention that skips the blocks above the diagonal.

    Args:
      interpret: run the kernel on any device, slowly; for tests.
    """
    return _splash(q, k, v, segment_ids, sharding, interpret, save_residuals=False)[0]


def splash_with_logsumexp(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, sharding: Sharding, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Compute `splash` and float32 [B, S, H], the log of each query's sum of exponentials. Has no gradient."""
    out, logsumexp = _splash(q, k, v, segment_ids, sharding, interpret, save_residuals=True)
    return out, logsumexp


def _splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    sharding: Sharding,
    interpret: bool,
    save_residuals: bool,
) -> tuple[jax.Array, ...]:
    """(attention [B, S, H, h],), and with `save_residuals` logsumexp float32 [B, S, H]."""
    _assert_shapes(q, k, v, segment_ids)
    length, head_dim = q.shape[1], q.shape[3]
    block = block_size(length)
    sizes = splash_kernel.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, ...]:
        mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length)) for _ in range(q.shape[2])])
        kernel = splash_kernel.make_splash_mha(
            mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, save_residuals=save_residuals, interpret=interpret,
            residual_checkpoint_name="context",  # of model.REMAT_POLICIES
        )  # fmt: skip
        q, k, v = (x.swapaxes(1, 2) for x in (q * head_dim**-0.5, k, v))  # heads before sequence
        out = jax.vmap(kernel)(q, k, v, splash_kernel.SegmentIds(segment_ids, segment_ids))
        return jax.tree.map(lambda x: x.swapaxes(1, 2), (out[0], out[1][0]) if save_residuals else (out,))

    heads, kv_heads, logsumexp, tokens = (
        sharding.spec(axes)
        for axes in (
            ("batch", None, "heads", None), ("batch", None, "kv_heads", None), ("batch", None, "heads"), ("batch", None)
        )
    )  # fmt: skip
    return jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(heads, kv_heads, kv_heads, tokens),
        out_specs=(heads, logsumexp) if save_residuals else (heads,), check_vma=False,
    )(q, k, v, segment_ids)  # fmt: skip


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, sharding: Sharding) -> jax.Array:
    """Compute `attend` by cuDNN's flash attention.

    cuDNN skips what lies above the diagonal, but knows no segments: they are a mask of B x S x S values in HBM.
    """
    _assert_shapes(q, k, v, segment_ids)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]  # [B, 1, S, S]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=IMPLEMENTATION)

    heads, kv_heads, tokens = (
        sharding.spec(("batch", None, *axes)) for axes in (("heads", None), ("kv_heads", None), ())
    )
    return jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(heads, kv_heads, kv_heads, tokens), out_specs=heads, check_vma=False
    )(q, k, v, segment_ids)


def block_size(length: int) -> int:
    """The block size of splash attention for sequences of `length` tokens: 512 for 1536."""
    return next(block for block in BLOCK_SIZES if length % block == 0)


def computed_share(kernel: str, length: int) -> float:
    """The share of the S x S attention scores that a kernel computes.

    Splash attention and plain XLA skip the blocks above the diagonal: of 8 x 8 blocks they compute 36, a share of
    0.5625. What cuDNN skips is not counted.
    """
    blocks = length // block_size(length) if kernel == "splash" else query_groups(length) if kernel == "xla" else 1
    return (blocks + 1) / (2 * blocks)


def xla(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Compute `attend` in plain XLA: all queries at once, or in `query_groups`.

    A group takes QUERY_CHUNK queries at a time, with the keys up to the end of the group: scores of
    [B, H, QUERY_CHUNK, S] are live at once, in the backward pass too, which computes them again.
    """
    _assert_shapes(q, k, v, segment_ids)
    b, s, n, h = q.shape
    n_kv = k.shape[2]
    # Heads before sequence gives plain batched matmuls. XLA on a CPU runs these ten times faster than transposed ones.
    q = q.reshape(b, s, n_kv, n // n_kv, h).transpose(0, 2, 3, 1, 4) * h**-0.5  # [B, K, H / K, S, h]
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))  # [B, K, S, h]
    groups, index = query_groups(s), jnp.arange(s)
    if groups == 1:
        out = _attend_chunk(q, segment_ids, index, k, v, segment_ids)
    else:
        outs = []
        for i in range(groups):
            begin, end = i * s // groups, (i + 1) * s // groups
            split = functools.partial(_split, chunks=(end - begin) // QUERY_CHUNK)
            chunks = (split(q[..., begin:end, :], axis=3), split(segment_ids[:, begin:end], axis=1),
                      split(index[begin:end], axis=0))  # fmt: skip
            keys = (k[:, :, :end], v[:, :, :end], segment_ids[:, :end])
            outs.append(jax.lax.map(lambda c, keys=keys: jax.checkpoint(_attend_chunk)(*c, *keys), chunks))
        out = jnp.concatenate(outs)  # [chunks, B, K, H / K, QUERY_CHUNK, h]
        out = jnp.moveaxis(out, 0, 3).reshape(b, n_kv, n // n_kv, s, h)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, s, n, h)


def query_groups(length: int) -> int:
    """Return the number of groups of queries in plain XLA's attention: 4 for 1024 tokens, 1 for 640."""
    chunks, rest = divmod(length, QUERY_CHUNK)
    return next((n for n in QUERY_GROUPS if not rest and chunks % n == 0 and chunks >= 2 * n), 1)


def _attend_chunk(
    q: jax.Array, q_segment_ids: jax.Array, q_index: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """Compute causal attention of N queries to the first P tokens.

    Args:
      q: [B, K, H / K, N, h], divided by the root of h.
      q_segment_ids: [B, N].
      q_index: [N] places of the queries.
      k, v: [B, K, P, h].
      segment_ids: [B, P].

    Returns:
      [B, K, H / K, N, h].
    """
    scores = jnp.einsum("bkgsh,bkth->bkgst", q, k, preferred_element_type=jnp.float32)
    same_segment = q_segment_ids[:, :, None] == segment_ids[:, None, :]
    mask = same_segment & (q_index[:, None] >= jnp.arange(k.shape[2])[None, :])[None]
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, NEG_INF), axis=-1)
    return jnp.einsum("bkgst,bkth->bkgsh", weights.astype(v.dtype), v)


def _split(x: jax.Array, chunks: int, axis: int) -> jax.Array:
    """Split an axis into equal chunks, and stack the chunks on a new first axis."""
    return jnp.stack(jnp.split(x, chunks, axis=axis))


def _assert_shapes(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> None:
    """Check q [B, S, H, h], k and v [B, S, K, h], segment_ids [B, S]."""
    chex.assert_rank([q, segment_ids], [4, 2])
    chex.assert_shape([k, v], (*q.shape[:2], k.shape[2], q.shape[3]))
    chex.assert_shape(segment_ids, q.shape[:2])
