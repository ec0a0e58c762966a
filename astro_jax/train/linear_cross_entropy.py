"""The LM head and its cross entropy in one function, whose gradient is computed in the forward pass.

The logits [B, S, V] of a large vocabulary do not fit into memory, so the head runs over chunks of tokens. Automatic
differentiation would compute the logits of each chunk again in the backward pass: 4 times the FLOPs of the head's
forward pass. The loss is linear in the negative log-likelihood of each token, so the gradient of a chunk is known as
soon as its logits are: 3 times the FLOPs (as in Liger Kernel, arXiv 2410.10989).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from astro_jax.llama import mixed_precision as mp
from astro_jax.llama import model
from astro_jax.mesh import Sharding
from astro_jax.train import lm_head

Axes = tuple[str, str]  # the logical axes of the LM head, as `model.lm_head_weight` returns them


def sum_nll(
    weight: mp.Weight,
    axes: Axes,
    x: jax.Array,
    targets: jax.Array,
    loss_weights: jax.Array,
    n_chunks: int,
    sharding: Sharding | None,
) -> jax.Array:
    """Weighted sum of the negative log-likelihoods of the targets, in nats: float32 [].

    Args:
      weight: of the LM head.
      axes: its logical axes.
      x: [B, S, D], hidden states.
      targets: int32 [B, S].
      loss_weights: float32 [B, S]. They have no gradient.
      n_chunks: chunks of tokens on each device.
      sharding: None for one device.
    """
    mixed = weight if isinstance(weight, mp.MixedWeight) else mp.MixedWeight(jax.lax.stop_gradient(weight), weight)
    return _sum_nll(axes, n_chunks, sharding, mixed.value, mixed.master, x, targets, loss_weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sum_nll(
    axes: Axes, n_chunks: int, sharding: Sharding | None, value: jax.Array, master: jax.Array, *inputs: jax.Array
) -> jax.Array:
    (loss,) = _sharded(axes, n_chunks, sharding, False)(value, *inputs)
    return loss


def _forward(
    axes: Axes, n_chunks: int, sharding: Sharding | None, value: jax.Array, master: jax.Array, *inputs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    loss, dx, gradient = _sharded(axes, n_chunks, sharding, True)(value, *inputs)
    return loss, (dx, gradient)


def _backward(
    axes: Axes, n_chunks: int, sharding: Sharding | None, gradients: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array | None, ...]:
    dx, gradient = gradients
    return None, g * gradient, (g * dx).astype(dx.dtype), None, None


_sum_nll.defvjp(_forward, _backward)


def _sharded(
    axes: Axes, n_chunks: int, sharding: Sharding | None, with_gradient: bool
) -> Callable[..., tuple[jax.Array, ...]]:
    """Run `_chunks` on each device of the mesh, with collectives by hand: one gather of the head and one scatter of its
    gradient, not one a chunk."""
    if sharding is None:
        return functools.partial(_chunks, axes, n_chunks, with_gradient)
    embed, vocab, batch = (sharding.mesh_axes(name) for name in ("embed", "vocab", "batch"))
    place = axes.index("embed")

    def local(value: jax.Array, x: jax.Array, targets: jax.Array, loss_weights: jax.Array) -> tuple[jax.Array, ...]:
        if embed:
            value = jax.lax.all_gather(value, embed, axis=place, tiled=True)
        loss, *gradients = _chunks(axes, n_chunks, with_gradient, value, x, targets, loss_weights, batch, vocab)
        loss = jax.lax.psum(loss, batch)
        if not with_gradient:
            return (loss,)
        dx, gradient = gradients
        if embed:
            gradient = jax.lax.psum_scatter(gradient, embed, scatter_dimension=place, tiled=True)
        if rest := tuple(name for name in batch if name not in embed):
            gradient = jax.lax.psum(gradient, rest)
        return loss, jax.lax.psum(dx, vocab), gradient

    head, rows = sharding.spec(axes), sharding.spec(("batch", None))
    hidden, scalar = sharding.spec(("batch", None, None)), sharding.spec(())
    return jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(head, hidden, rows, rows),
        out_specs=(scalar, hidden, head) if with_gradient else (scalar,),
    )  # fmt: skip


def _chunks(
    axes: Axes, n_chunks: int, with_gradient: bool, weight: jax.Array, x: jax.Array, targets: jax.Array,
    loss_weights: jax.Array, batch: tuple[str, ...] = (), vocab: tuple[str, ...] = (),
) -> tuple[jax.Array, ...]:  # fmt: skip
    """The loss of one device, and its gradients: by x [B, S, D] in its dtype, and by the head in float32.

    Args:
      batch, vocab: the mesh axes that split the rows and the vocabulary. The gradients are parts of sums over them.
    """
    letters = "vd" if axes[0] == "vocab" else "dv"

    def chunk(
        carry: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        x, targets, weights = inputs  # [R, D], [R], [R], with R tokens of a chunk
        p = lm_head.softmax(model.logits(weight, axes, x), targets, vocab)
        nll = jnp.log(p.z) - lm_head.total(jnp.where(p.is_target, p.logits, 0.0), vocab)
        loss = carry[0] + jnp.sum(weights * nll)
        if not with_gradient:
            return (loss,), None
        d = p.exp * (weights / p.z)[:, None] - jnp.where(p.is_target, weights[:, None], 0.0)
        gradient = carry[1] + jnp.einsum(f"rd,rv->{letters}", x, d, preferred_element_type=jnp.float32)
        return (loss, gradient), jnp.einsum(f"rv,{letters}->rd", d, weight).astype(x.dtype)

    def zeros(shape: tuple[int, ...], *varying: str) -> jax.Array:
        start = jnp.zeros(shape, jnp.float32)
        return jax.lax.pcast(start, varying, to="varying") if varying else start

    start = (zeros((), *batch), *((zeros(weight.shape, *batch, *vocab),) if with_gradient else ()))
    # Tokens of weight 0 fill the last chunk.
    sums, dx = jax.lax.scan(chunk, start, tuple(lm_head.chunks(a, n_chunks) for a in (x, targets, loss_weights)))
    if dx is None:
        return sums
    return sums[0], dx.reshape(-1, x.shape[-1])[: targets.size].reshape(x.shape), sums[1]
