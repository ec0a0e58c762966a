"""A run's programs, lowered for devices that are not there: the functions, shardings and donation of training and
sampling themselves. Nothing is allocated."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import attention
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.mesh import Sharding, decode_sharding, train_sharding
from astro_jax.plan import work
from astro_jax.plan.work import Work
from astro_jax.sampler import Engine, kv_cache, programs
from astro_jax.sampler.engine import batch_sizes
from astro_jax.sampler.kv_cache import CacheLayout, KVCache
from astro_jax.sampler.programs import DecodeInputs
from astro_jax.sampler.sample import SamplingInputs
from astro_jax.train import grpo, sft
from astro_jax.train.losses import Batch, RolloutBatch
from astro_jax.train.state import abstract_state, make_accumulate, make_apply, make_optimizer, make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted function of a run.

    Attributes:
      lower: makes the lowered program.
      held: what the run holds on the devices beside the program's arguments and results.
      work: what one call computes and reads; None where it only moves arrays.
      trips: of its loop, where its bound is no constant.
      unshared: of decoding, the work of as many rows as the same memory holds if each has a prefix of its own.
    """

    stage: str
    name: str
    lower: Callable[[], Any]
    held: Any = ()
    work: Work | None = None
    trips: int = 1
    unshared: Work | None = None


class Plan:
    """A config on a mesh: its arrays as shapes with shardings, and its programs.

    Args:
      prompt: tokens of a problem's prompt, the chat template included.
      steps: optimizer steps of a training stage, which the schedule of the learning rate holds.
    """

    def __init__(self, c: cfg.Config, config: LlamaConfig, mesh: Mesh, prompt: int = 512, steps: int = 100):
        self.c, self.config, self.mesh, self.prompt, self.steps = c, config, mesh, prompt, steps
        self.train, self.sample = train_sharding(mesh, c.attention), decode_sharding(mesh, c.attention)
        check(c, config, self.train)
        self.tx = make_optimizer(c.grpo, steps)
        self.state = abstract_state(config, self.tx, self.train)

    def weights(self, dtype: str) -> llama_params.Params:
        """Those that decode."""
        return llama_params.abstract(self.config, self.sample, jnp.dtype(dtype))

    def kv_cache(self, layout: CacheLayout, dtype: str) -> KVCache:
        """The key-value cache of a layout, in the type of the weights."""
        return kv_cache.abstract(self.config, self.sample, jnp.dtype(dtype), layout)

    def engine(self) -> Engine:
        return Engine.from_config(self.c.sampler, self.config, self.sample, seed=0)

    # ---- Programs

    def programs(self, stage: str) -> list[Program]:
        """The programs of sft, grpo (its sampling included) or search."""
        c = self.c
        if stage == "sft":
            done = self._train(c.sft, c.sft.batch_size, update=True)
            return [Program("sft", "step", self.sft_step, (), done)]
        if stage == "search":
            layout = self.layout(
                c.search.num_rollouts,
                self.prompt + c.search.max_rollout_tokens,
                c.search.max_rollout_tokens,
                c.sampler.dtype,
            )
            return self._sampling("search", layout, c.sampler.dtype, ())
        layout = self.layout(c.grpo.num_generations, self.prompt, c.grpo.max_completion_length, c.grpo.dtype)
        done = self._train(c.grpo, grpo.micro_batch_size(c.grpo, self.train), update=False)
        return [
            Program("grpo", "reshard", self.reshard, self.state.opt_state),
            *self._sampling("grpo", layout, c.grpo.dtype, self.state),
            Program("grpo", "gradient", self.grpo_gradient, self.state.opt_state, done),
            Program("grpo", "update", self.grpo_update),
        ]

    def _train(self, c: cfg.Sft | cfg.Grpo, rows: int, update: bool) -> Work:
        kernel = attention.choose_kernel(self.train, c.max_length, self.config.head_dim)
        scored = attention.computed_share(kernel, c.max_length)
        return work.train(
            self.config, self.mesh, rows * c.max_length, c.max_length, c.remat_policy == "full", update, scored
        )

    def _sampling(self, stage: str, layout: CacheLayout, dtype: str, held: Any) -> list[Program]:
        completion = self.kv_cache(layout, dtype).completion
        head = self.weights(dtype).lm_head  # prefill does not read it
        rows, columns = self.chunk(layout)
        decode_work = functools.partial(
            work.decode, self.config, self.mesh, dtype=dtype, steps=self.c.sampler.num_scheduler_steps
        )
        packing = [Program(stage, "pack", functools.partial(self.pack, layout, dtype), (held, self.weights(dtype)))]
        return [
            Program(
                stage, "prefill", functools.partial(self.prefill, layout, dtype), (held, head, completion),
                work.prefill(self.config, self.mesh, rows * columns, layout.prefix_blocks * layout.block_size, dtype),
            ),
            Program(
                stage, "decode", functools.partial(self.decode, layout, dtype), held,
                decode_work(layout=layout), self.c.sampler.num_scheduler_steps,
                decode_work(layout=self.unshared(layout)),
            ),
            *(packing if self.packed(layout) else ()),
        ]  # fmt: skip

    def layout(self, group: int, prompt: int, new: int, dtype: str) -> CacheLayout:
        """The layout that the engine decodes with when all its rows hold a sequence.

        Args:
          group: completions of each prompt.
          prompt: tokens of the longest prompt.
          new: tokens of the longest completion.
          dtype: of the weights and of the cache.
        """
        engine = self.engine()
        engine.reserve(prompt, new)
        num_seqs = engine.max_num_seqs
        return engine.choose_layout(num_seqs, max(num_seqs // group, 1), prompt, new, jnp.dtype(dtype))[0]

    def packed(self, layout: CacheLayout) -> int:
        """Rows of the largest batch that a batch of this layout can shrink to; 0 if it cannot shrink."""
        return max(filter(layout.shrinks_to, batch_sizes(layout.num_seqs, self.sample.batch_size)), default=0)

    def unshared(self, layout: CacheLayout) -> CacheLayout:
        """The layout in the same memory of rows that each have a prefix of their own."""
        columns = (layout.prefix_blocks * layout.block_size, layout.completion_blocks * layout.block_size)
        shared, own = (kv_cache.bytes_per_sequence(self.config, *columns, m, 2) for m in (layout.group_size, 1))
        unit = self.sample.batch_size
        return layout.ungrouped(max(1, layout.num_seqs * shared // (own * unit)) * unit)

    def chunk(self, layout: CacheLayout) -> tuple[int, int]:
        """The most prompts that one call of prefill computes, and the columns of each."""
        batches = self.engine().prefill_batches
        rows = {blocks: max(n) for blocks, n in batches.items() if blocks <= layout.prefix_blocks}
        blocks = max(rows, key=lambda blocks: rows[blocks] * blocks)
        return rows[blocks], blocks * layout.block_size

    def sft_step(self) -> Any:
        tx = make_optimizer(self.c.sft, self.steps)
        state = abstract_state(self.config, tx, self.train)
        step = make_step(sft.make_loss(self.c.sft, self.config, self.train), tx, self.config, self.train)
        return _lower(step, state, batch(self.c.sft.batch_size, self.c.sft.max_length))

    def grpo_gradient(self) -> Any:
        shape = (grpo.micro_batch_size(self.c.grpo, self.train), self.c.grpo.max_length)
        loss = grpo.make_loss(self.c.grpo, self.config, self.train)
        rollouts = RolloutBatch(batch(*shape), advantages=floats(*shape), old_logprobs=floats(*shape))
        accumulate = make_accumulate(loss, self.tx, self.config, self.train)
        return _lower(accumulate, self.state.params, self.state.params, rollouts)

    def grpo_update(self) -> Any:
        return _lower(make_apply(self.tx, self.config, self.train), self.state, self.state.params)

    def reshard(self) -> Any:
        return _lower(grpo.make_reshard(self.c.grpo, self.config, self.sample), self.state.params)

    def prefill(self, layout: CacheLayout, dtype: str) -> Any:
        (n, columns), cache = self.chunk(layout), self.kv_cache(layout, dtype)
        program = programs.make_prefill(self.config, self.sample)
        return _lower(program, self.weights(dtype), cache.prefix, ints(n, columns), ints(n), ints(n))

    def pack(self, layout: CacheLayout, dtype: str) -> Any:
        n, cache = self.packed(layout), self.kv_cache(layout, dtype)
        program = programs.make_pack(self.config, self.sample)
        return _lower(program, cache.prefix, cache.completion, ints(n), ints(n), layout.ungrouped(n))

    def decode(self, layout: CacheLayout, dtype: str) -> Any:
        n, cache = layout.num_seqs, self.kv_cache(layout, dtype)
        inputs = DecodeInputs(
            token=ints(n), position=ints(n), length=ints(n), prefix_slot=ints(n), key=ints(n, 2, dtype=jnp.uint32),
            left=ints(n), step=ints(), prefix_blocks=ints(layout.prefixes_per_group), oldest=ints(layout.row_groups),
            min_live=ints(),
        )  # fmt: skip
        sampling, stop_tokens = (
            SamplingInputs(floats(), ints(), floats(), floats()),
            ints(self.config.vocab_size, dtype=bool),
        )
        program = programs.make_decode(self.config, self.sample, self.c.sampler.num_scheduler_steps, False)
        return _lower(program, self.weights(dtype), cache.prefix, cache.completion, inputs, sampling, stop_tokens)


def check(c: cfg.Config, config: LlamaConfig, sharding: Sharding) -> None:
    """Raise an AstroError where parameters or batches do not divide over the mesh, or attention cannot be as asked."""
    for path, spec in jax.tree_util.tree_leaves_with_path(llama_params.param_specs(config)):
        for n, axis in zip(spec.shape, spec.axes, strict=True):
            where = dict(sharding.rules).get(axis, ())
            parts = math.prod(sharding.mesh.shape[name] for name in where)
            if n % parts:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise AstroError(f"mesh: {name} has {n} {axis}, which {'x'.join(where)}={parts} does not divide")
    for length in (c.sft.max_length, c.grpo.max_length, c.sampler.block_size):
        attention.choose_kernel(sharding, length, config.head_dim)
    if c.sft.batch_size % sharding.batch_size:
        raise AstroError(
            f"sft.batch_size={c.sft.batch_size} cannot be split over data x fsdp = {sharding.batch_size} devices"
        )


def _lower(function: Any, *args: Any) -> Any:
    """That the functions of training and sampling are jitted does not stand in their types."""
    return function.lower(*args)


def size(tree: Any) -> int:
    """Bytes that a tree of sharded arrays takes of a chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def ints(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def batch(*shape: int) -> Batch:
    return Batch(tokens=ints(*shape), segment_ids=ints(*shape), positions=ints(*shape), loss_weights=floats(*shape))
