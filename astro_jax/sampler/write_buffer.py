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

from astro_jax.llama.quantized import QuantizedArray
from astro_jax.mesh import Sharding
from astro_jax.sampler.kv_cache import KV, completion_sharding, stored

# n, by platform. Other platforms have no write buffer: there it would cost a tenth of the speed.
WRITE_BUFFER_COLUMNS = {"tpu": 32}


def take(completion: KV, step: jax.Array, sharding: Sharding) -> KV | None:
    """Copy the columns around `step` out of the ring buffer; None where the platform needs no write buffer."""
    if sharding.platform not in WRITE_BUFFER_COLUMNS:
        return None
    n = math.gcd(WRITE_BUFFER_COLUMNS[sharding.platform], completion.keys.shape[-1])

    def local(completion: KV, step: jax.Array) -> KV:
        def take_layer(layer: jax.Array) -> KV:
            def take_columns(x: jax.Array, axis: int) -> jax.Array:
                size = [1, 1, *x.shape[2:]]
                size[axis] = n
                x = jax.lax.dynamic_slice(x, _start(x, axis, step, layer, n), size)[0]
                # Without the constraint the ring buffer would get the layout that suits the write buffer.
                return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

            return jax.tree.map(take_columns, completion, _column_axes(completion))

        # As one slice, XLA would pad it to whole vectors.
        return jax.lax.map(take_layer, jnp.arange(len(completion.keys)))

    spec = completion_sharding(sharding).spec
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)(completion, step)


def put(completion: KV, buffer: KV, step: jax.Array) -> KV:
    """Copy the columns of the write buffer back to the ring buffer.

    Each layer writes the whole block of the columns: for a few int8 columns XLA would copy the ring buffer, each layer.
    """

    def put_layer(layer: jax.Array, completion: KV) -> KV:
        def put_columns(x: jax.Array, buffer: jax.Array, axis: int) -> jax.Array:
            blocks, columns, n = x.shape[1], x.shape[axis], buffer.shape[axis]
            start: list[jax.Array | int] = [layer, step // columns % blocks, *[0] * (x.ndim - 2)]
            block = jax.lax.dynamic_slice(x, start, (1, 1, *x.shape[2:]))
            repeats = [1] * x.ndim
            repeats[axis] = columns // n
            new = jnp.tile(jax.lax.dynamic_index_in_dim(buffer, layer), repeats)
            is_new = jax.lax.broadcasted_iota(jnp.int32, block.shape, x.ndim + axis) // n == step % columns // n
            return jax.lax.dynamic_update_slice(x, jnp.where(is_new, new, block), start)

        return jax.tree.map(put_columns, completion, buffer, _column_axes(completion))

    return jax.lax.fori_loop(0, len(completion.keys), put_layer, completion)


def write(written: KV, k: jax.Array, v: jax.Array, step: jax.Array) -> KV:
    """Write the column of one step to the ring buffer or to the write buffer: k, v [L, B, 1, K, h]."""
    layers, _, groups, rows, kv, h, _ = written.keys.shape
    chex.assert_shape([k, v], (layers, groups * rows, 1, kv, h))
    k, v = (x.reshape(layers, 1, rows, groups, kv, h).swapaxes(2, 3) for x in (k, v))

    def write_column(x: jax.Array, column: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice(x, column, _start(x, axis, step))

    new = stored(k[..., :, None], v[..., None, :], written.quantized)
    return jax.tree.map(write_column, written, new, _column_axes(written))


def _column_axes(kv: KV) -> KV:
    """The axis of the columns of each array: the last of keys and scales, the last but one of values."""
    return KV(k=QuantizedArray(-1, -1), v=QuantizedArray(-2, -1)) if kv.quantized else KV(k=-1, v=-2)


def _start(x: jax.Array, axis: int, step: jax.Array, layer: jax.Array | int = 0, n: int = 1) -> list[jax.Array | int]:
    """The indices at which the n columns around `step` start, from a layer on.

    Args:
      x: of the ring buffer or the write buffer, [L, blocks, row_groups, ...].
      axis: of its columns.
    """
    blocks, columns = x.shape[1], x.shape[axis]
    start: list[jax.Array | int] = [0] * x.ndim
    start[0], start[1], start[axis] = layer, step // columns % blocks, step % columns // n * n
    return start
