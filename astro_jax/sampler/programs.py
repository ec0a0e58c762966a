"""The jitted programs of the sampler: prefill, decode, copy and pack. Each is pure and built once per configuration.

A CacheLayout decides all shapes, so each layout compiles each program once. kv_cache.py allocates the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from astro_jax.llama import model
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding
from astro_jax.sampler import attention, kv_cache, write_buffer
from astro_jax.sampler.attention import CacheView
from astro_jax.sampler.kv_cache import KV, Array, CacheLayout, KVCache
from astro_jax.sampler.sample import SamplingInputs, sample

# In place of a token: the row had ended before; the logits of the row were not numbers.
ENDED, BROKEN = -1, -2
ROW_FIELDS = ("token", "position", "length", "prefix_slot", "key", "left")


class DecodeInputs(struct.PyTreeNode):
    """What one call of the decode program needs beside the cache.

    Attributes:
      token: int32 [B], the last token of each row. The cache does not hold it yet.
      position: int32 [B], the position of `token` in its sequence.
      length: int32 [B], tokens of the row's prompt in the prefix part of the cache. Later tokens are in the completion
        part.
      prefix_slot: int32 [B], the row's prefix among those of its prefix group, from 0.
      key: uint32 [B, 2], the random key of the row's completion.
      left: int32 [B], tokens that the row may still emit. 0: the row has ended, or holds no sequence.
      step: int32 [], the first step of the call, counted from the start of the generation loop.
      prefix_blocks: int32 [prefixes_per_group], blocks that the longest prefix fills.
      oldest: int32 [row_groups], the step at which the oldest row of each row group started.
      min_live: int32 []. The program returns when no more than so many rows go on.
    """

    token: Array
    position: Array
    length: Array
    prefix_slot: Array
    key: Array
    left: Array
    step: Array
    prefix_blocks: Array
    oldest: Array
    min_live: Array

    def map_rows(self, f: Callable[[Array], Array]) -> DecodeInputs:
        """Apply f to the arrays that have a row axis."""
        return self.replace(**{name: f(getattr(self, name)) for name in ROW_FIELDS})


class DecodeOutputs(NamedTuple):
    """What one call of the decode program sampled.

    Attributes:
      steps: int32 [], the number of steps T <= num_scheduler_steps.
      tokens: int32 [num_scheduler_steps, B]. ENDED and BROKEN stand in place of a token. Rows from T on are ENDED.
      logprobs: float32 [num_scheduler_steps, B], under the model at temperature 1.
      sampling_logprobs: float32 [num_scheduler_steps, B], under the distribution that the token was sampled from.
    """

    steps: Array
    tokens: Array
    logprobs: Array
    sampling_logprobs: Array


Prefill = Callable[[Params, KV, Array, Array, Array], tuple[KV, jax.Array]]
Decode = Callable[[Params, KV, KV, DecodeInputs, SamplingInputs, Array], tuple[KV, DecodeOutputs]]


class Programs(NamedTuple):
    """The programs of one engine for one type of weights."""

    allocate: Callable[[CacheLayout], KVCache]
    prefill: Prefill
    decode: Decode
    copy: Callable[[KV, Array, Array, Array], KV]
    copy_from: Callable[[KV, KV, Array, Array, Array], KV]
    pack: Callable[[KV, KV, Array, Array, CacheLayout], tuple[KV, KV]]


@functools.lru_cache(maxsize=32)
def make_prefill(config: LlamaConfig, sharding: Sharding) -> Prefill:
    """Build the program that computes a chunk of each of N prompts and writes its keys and values to the cache.

    The program maps (params, prefix KV, tokens int32 [N, c C], block int32 [N], prefix_slot int32 [N]) to (prefix KV,
    finite bool [N]). The prefix KV is donated. A chunk is c blocks of C tokens; `block` is its first block, and the
    cache holds the blocks before. A short chunk is padded at its end; no row attends to the padding. `prefix_slot`
    counts from the first prefix of the device that row n lies on; an index past the end marks a row without work.
    `finite` is whether the hidden states of the row are finite numbers.
    """
    shardings = kv_cache.prefix_sharding(sharding)
    gather, scatter = _make_prefix_access(sharding)

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=(shardings, sharding.named()))
    def prefill(
        params: Params, prefix: KV, tokens: jax.Array, block: jax.Array, prefix_slot: jax.Array
    ) -> tuple[KV, jax.Array]:
        chex.assert_rank([tokens, block, prefix_slot], [2, 1, 1])
        chex.assert_equal_shape_prefix([tokens, block, prefix_slot], 1)
        block_size = prefix.keys.shape[-1]
        column = jnp.arange(tokens.shape[1])
        token, block, slot = (sharding.constrain(x, "batch") for x in (tokens, block, prefix_slot))
        causal = (column[:, None] >= column[None, :])[None, None]

        def attend(layer: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            def load_block(j: jax.Array) -> KV:
                return jax.tree.map(lambda x: gather(x, layer, j, slot), prefix)

            k, v = (kv_cache.rounded(x, prefix.quantized) for x in (k, v))
            return attention.attend_chunk(q, k, v, causal, block, load_block, sharding)

        positions = block[:, None] * block_size + column[None, :]
        x, k, v = model.forward_with_cache(params, token, positions, attend, config, sharding)
        finite = jnp.all(jnp.isfinite(x), axis=(1, 2))
        # [L, N, c, C, K, h]
        k, v = (x.reshape(*x.shape[:2], -1, block_size, *x.shape[3:]) for x in (k, v))
        k, v = jnp.moveaxis(k, 3, 5), v.swapaxes(3, 4)  # [L, N, c, K, h, C], [L, N, c, K, C, h]
        new = kv_cache.stored(k, v, prefix.quantized)
        return jax.tree.map(lambda x, y: scatter(x, y, block, slot), prefix, new), finite

    return prefill


def _make_prefix_access(sharding: Sharding) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Build the read and the write of blocks of prefixes, where each device works on its own prefix groups.

    The read maps (x, layer, block j, slot [N]) to [N, K, ...]; the write maps (x, new [L, N, c, K, ...], block [N],
    slot [N]) to x.
    """
    batch = sharding.spec(["batch"])
    spec = kv_cache.prefix_sharding(sharding).spec
    heads, scalar = spec[3:], PartitionSpec()

    def local(f: Callable[..., jax.Array], in_specs: tuple, out_specs: PartitionSpec) -> Callable[..., jax.Array]:
        return jax.shard_map(f, mesh=sharding.mesh, in_specs=in_specs, out_specs=out_specs)

    def take(x: jax.Array, layer: jax.Array, block: jax.Array, slot: jax.Array) -> jax.Array:
        return x.at[layer, block, slot].get(mode="clip")

    def put(x: jax.Array, new: jax.Array, block: jax.Array, slot: jax.Array) -> jax.Array:
        blocks = block[:, None] + jnp.arange(new.shape[2])[None, :]
        return x.at[:, blocks, slot[:, None]].set(new, mode="drop")

    gather = local(take, (spec, scalar, scalar, batch), PartitionSpec(*batch, *heads))
    scatter = local(put, (spec, PartitionSpec(None, *batch, None, *heads), batch, batch), spec)
    return gather, scatter


class _Carry(NamedTuple):
    """The state of the decode loop."""

    i: jax.Array  # int32 [], steps done
    written: KV  # the ring buffer, or the write buffer where the platform has one
    token: jax.Array  # int32 [B]
    left: jax.Array  # int32 [B]
    out: tuple[jax.Array, ...]  # the three arrays of DecodeOutputs, without steps


@functools.lru_cache(maxsize=32)
def make_decode(config: LlamaConfig, sharding: Sharding, num_steps: int, filtered: bool) -> Decode:
    """Build the program that decodes up to `num_steps` tokens of all rows.

    The program maps (params, prefix KV, completion KV, inputs, sampling, stop_tokens bool [V]) to (completion KV,
    outputs). The completion KV is donated; the prefix KV is only read. The program ends early when no more than
    `inputs.min_live` rows go on, and at the end of the write buffer.
    """
    # The host of every process reads the outputs: they lie on all devices.
    out_shardings = (kv_cache.completion_sharding(sharding), DecodeOutputs(*[sharding.named()] * 4))

    @functools.partial(jax.jit, donate_argnums=2, out_shardings=out_shardings)
    def decode(
        params: Params,
        prefix: KV,
        completion: KV,
        inputs: DecodeInputs,
        sampling: SamplingInputs,
        stop_tokens: jax.Array,
    ) -> tuple[KV, DecodeOutputs]:
        _assert_shapes(inputs, stop_tokens, config)
        inputs = inputs.map_rows(lambda x: sharding.constrain(x, "batch"))
        prefixes = jnp.arange(len(inputs.prefix_blocks))
        visible = jnp.where(prefixes[:, None] == inputs.prefix_slot[None, :], inputs.length[None, :], 0)
        shape = (num_steps, len(inputs.token))
        out = (jnp.full(shape, ENDED, jnp.int32), jnp.zeros(shape), jnp.zeros(shape))
        buffer = write_buffer.take(completion, inputs.step, sharding)
        limit: int | jax.Array = num_steps
        if buffer is not None:
            columns = buffer.keys.shape[-1]
            limit = jnp.minimum(num_steps, columns - inputs.step % columns)

        def step(carry: _Carry) -> _Carry:
            cache = KVCache(prefix, carry.written)
            if buffer is not None:  # the loop reads the ring buffer, and writes to the write buffer
                cache = KVCache(prefix, completion, carry.written)
            return decode_step(params, cache, visible, inputs, carry, sampling, stop_tokens, config, sharding, filtered)

        def goes_on(carry: _Carry) -> jax.Array:
            return (carry.i < limit) & (jnp.sum(carry.left > 0) > inputs.min_live)

        start = _Carry(jnp.int32(0), completion if buffer is None else buffer, inputs.token, inputs.left, out)
        end = jax.lax.while_loop(goes_on, step, start)
        completion = end.written if buffer is None else write_buffer.put(completion, end.written, inputs.step)
        return completion, DecodeOutputs(end.i, *end.out)

    return decode


def decode_step(
    params: Params,
    cache: KVCache,
    visible: jax.Array,
    inputs: DecodeInputs,
    carry: _Carry,
    sampling: SamplingInputs,
    stop_tokens: jax.Array,
    config: LlamaConfig,
    sharding: Sharding,
    filtered: bool,
) -> _Carry:
    """Sample one token of each row: run the model on the last tokens, write their keys and values, sample the next.

    Args:
      params: of the model.
      cache: the keys and values of all earlier tokens.
      visible: int32 [prefixes_per_group, B], columns of each prefix of its group that a row attends to.
      inputs: of the call.
      carry: the state of the decode loop.
      sampling: temperature and filters.
      stop_tokens: bool [V], tokens that end a completion.
      config: the model.
      sharding: of decoding.
      filtered: whether top_k, top_p or min_p filters tokens.
    """
    position = inputs.position + carry.i
    step, age = inputs.step + carry.i, position - inputs.length

    def attend(layer: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        loops = sharding.platform not in attention.LOOPLESS_PLATFORMS
        view = CacheView(cache, visible, age, step, inputs.prefix_blocks, inputs.oldest, layer, loops)
        k, v = (kv_cache.rounded(x, cache.prefix.quantized) for x in (k, v))
        return attention.attend(view, q, k, v)

    x, k, v = model.forward_with_cache(params, carry.token[:, None], position[:, None], attend, config, sharding)
    sampled = sample(model.lm_head(params, x)[:, 0], inputs.key, position, sampling, filtered)
    alive, broken = carry.left > 0, sampled.token < 0
    token = jnp.maximum(sampled.token, 0)
    new = (jnp.where(broken, BROKEN, token), sampled.logprob, sampled.sampling_logprob)
    padding = (ENDED, 0.0, 0.0)
    out = tuple(x.at[carry.i].set(jnp.where(alive, y, pad)) for x, y, pad in zip(carry.out, new, padding, strict=True))
    left = jnp.where(alive & ~broken & ~stop_tokens[token], carry.left - 1, 0)
    return _Carry(carry.i + 1, write_buffer.write(carry.written, k, v, step), token, left, out)


def _assert_shapes(inputs: DecodeInputs, stop_tokens: jax.Array, config: LlamaConfig) -> None:
    b = len(inputs.token)
    rows = [inputs.token, inputs.position, inputs.length, inputs.prefix_slot, inputs.left]
    chex.assert_shape(rows, (b,))
    chex.assert_shape(inputs.key, (b, 2))
    chex.assert_shape([inputs.step, inputs.min_live], ())
    chex.assert_rank([inputs.prefix_blocks, inputs.oldest], 1)
    chex.assert_shape(stop_tokens, (config.vocab_size,))


@functools.lru_cache(maxsize=32)
def make_copy(
    sharding: Sharding,
) -> tuple[Callable[[KV, Array, Array, Array], KV], Callable[[KV, KV, Array, Array, Array], KV]]:
    """Build two programs that copy prefixes: inside one array of prefixes, and from another array.

    The programs map (KV, target int32 [N], source int32 [N], blocks int32 []) to KV, and (KV, source KV, target,
    source, blocks) to KV. The first KV is donated. `target` and `source` are prefix slots; a target past the end marks
    a row without work. The first `blocks` blocks of each prefix are copied, between devices where need be.
    """
    shardings = kv_cache.prefix_sharding(sharding)

    def copy(to: KV, from_: KV | None, target: jax.Array, source: jax.Array, blocks: jax.Array) -> KV:
        chex.assert_equal_shape([target, source])

        def copy_block(j: jax.Array, to: KV) -> KV:
            return jax.tree.map(lambda x, y: x.at[:, j, target].set(y[:, j, source], mode="drop"), to, from_ or to)

        return jax.lax.fori_loop(0, blocks, copy_block, to)

    within = jax.jit(lambda to, *arrays: copy(to, None, *arrays), donate_argnums=0, out_shardings=shardings)
    return within, jax.jit(copy, donate_argnums=0, out_shardings=shardings)


@functools.lru_cache(maxsize=32)
def make_pack(sharding: Sharding) -> Callable[[KV, KV, Array, Array, CacheLayout], tuple[KV, KV]]:
    """Build the program that moves some rows to the cache of a smaller batch, where each row is its own prefix group.

    The program maps (prefix KV, completion KV, row int32 [B'], prefix_slot int32 [B'], layout) to both parts of the new
    cache. It works a layer at a time: rows move between devices, which gather a layer before each keeps its own rows.
    """
    shardings = (kv_cache.prefix_sharding(sharding), kv_cache.completion_sharding(sharding))

    @functools.partial(jax.jit, static_argnums=4, out_shardings=shardings)
    def pack(prefix: KV, completion: KV, row: jax.Array, prefix_slot: jax.Array, layout: CacheLayout) -> tuple[KV, KV]:
        chex.assert_shape([row, prefix_slot], (layout.num_seqs,))

        def pack_rows(x: jax.Array) -> jax.Array:  # [completion_blocks, row_groups, B / row_groups, ...]
            blocks, groups, _, *rest = x.shape
            x = x[:, row % groups, row // groups]
            return x.reshape(blocks, layout.num_seqs // layout.row_groups, layout.row_groups, *rest).swapaxes(1, 2)

        def pack_layer(cache: tuple[KV, KV]) -> tuple[KV, KV]:
            return jax.tree.map(lambda x: x[:, prefix_slot], cache[0]), jax.tree.map(pack_rows, cache[1])

        return jax.lax.map(pack_layer, (prefix, completion))

    return pack


def make_programs(
    config: LlamaConfig, sharding: Sharding, dtype: kv_cache.DType, num_steps: int, filtered: bool
) -> Programs:
    """Build all programs of an engine."""
    copy, copy_from = make_copy(sharding)
    return Programs(
        allocate=functools.partial(kv_cache.allocate, config, sharding, dtype),
        prefill=make_prefill(config, sharding),
        decode=make_decode(config, sharding, num_steps, filtered),
        copy=copy,
        copy_from=copy_from,
        pack=make_pack(sharding),
    )
