"""Writing new keys and values: to the ring buffer of the completions, or on a TPU to a write buffer.

On a TPU, XLA lays out an array that a loop writes to by its columns, and copies all of it, each step, for the matmuls
that read it. So the decode loop on a TPU reads the ring buffer and writes to a small buffer, [L, 1, row_groups,
B / row_groups, K, h, n] for keys: the n neighbouring columns of one block around the current step. The program puts
these columns back at its end.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from astro_jax.mesh import Sharding
from astro_jax.sampler.kv_cache import KV, completion_sharding, finite

# n, by platform. Other platforms have no write buffer: there it would cost a tenth of the speed.
WRITE_BUFFER_COLUMNS = {"tpu": 32}


def take(completion: KV, step: jax.Array, sharding: Sharding) -> KV | None:
    """Copy the columns around `step` out of the ring buffer; None where the platform needs no write buffer."""
    if sharding.platform not in WRITE_BUFFER_COLUMNS:
        return None
    n = math.gcd(WRITE_BUFFER_COLUMNS[sharding.platform], completion.k.shape[-1])

    def local(completion: KV, step: jax.Array) -> KV:
        layers, _, groups, rows, kv, h, _ = completion.k.shape

        def take_layer(layer: jax.Array) -> KV:
            start = _start(completion, step, layer, n)
            k = jax.lax.dynamic_slice(completion.k, start.k, (1, 1, groups, rows, kv, h, n))[0]
            v = jax.lax.dynamic_slice(completion.v, start.v, (1, 1, groups, rows, kv, n, h))[0]
            # Without the constraint the ring buffer would get the layout that suits the write buffer.
            return jax.tree.map(lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), KV(k=k, v=v))

        return jax.lax.map(take_layer, jnp.arange(layers))  # as one slice, XLA would pad it to whole vectors

    spec = completion_sharding(sharding).k.spec
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)(completion, step)


def put(completion: KV, buffer: KV, step: jax.Array) -> KV:
    """Copy the columns of the write buffer back to the ring buffer."""

    def put_layer(layer: jax.Array, completion: KV) -> KV:
        start = _start(completion, step, layer, buffer.k.shape[-1])
        k, v = (jax.lax.dynamic_index_in_dim(x, layer) for x in (buffer.k, buffer.v))
        return KV(
            k=jax.lax.dynamic_update_slice(completion.k, k, start.k),
            v=jax.lax.dynamic_update_slice(completion.v, v, start.v),
        )

    return jax.lax.fori_loop(0, len(completion.k), put_layer, completion)


def write(written: KV, k: jax.Array, v: jax.Array, step: jax.Array) -> KV:
    """Write the column of one step to the ring buffer or to the write buffer: k, v [L, B, 1, K, h]."""
    layers, _, groups, rows, kv, h, _ = written.k.shape
    chex.assert_shape([k, v], (layers, groups * rows, 1, kv, h))
    start = _start(written, step)
    k, v = (finite(x).reshape(layers, 1, rows, groups, kv, h).swapaxes(2, 3) for x in (k, v))
    return KV(
        k=jax.lax.dynamic_update_slice(written.k, k[..., :, None], start.k),
        v=jax.lax.dynamic_update_slice(written.v, v[..., None, :], start.v),
    )


def _start(written: KV, step: jax.Array, layer: jax.Array | int = 0, n: int = 1) -> KV:
    """The indices, in k and in v, at which the n columns around `step` start, from a layer on."""
    blocks, columns = written.k.shape[1], written.k.shape[-1]
    block, column = step // columns % blocks, step % columns // n * n
    return KV(k=(layer, block, 0, 0, 0, 0, column), v=(layer, block, 0, 0, 0, column, 0))
