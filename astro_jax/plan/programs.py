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
from astro_jax.sampler import Engine, cache, decode
from astro_jax.sampler.cache import KV, Shape
from astro_jax.sampler.draw import Filters
from astro_jax.sampler.engine import batch_sizes
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

    def stores(self, shape: Shape, dtype: str) -> tuple[KV, KV]:
        """The caches of a shape: prefixes and suffixes, in the type of the weights."""
        makers = decode.make_allocate(self.config, self.sample, jnp.dtype(dtype))
        where = (cache.prefix_sharding(self.sample), cache.suffix_sharding(self.sample))
        prefix, suffix = (
            jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(make, shape), w
            )
            for make, w in zip(makers, where, strict=True)
        )
        return prefix, suffix

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
            shape = self.shape(
                c.search.num_rollouts,
                self.prompt + c.search.max_rollout_tokens,
                c.search.max_rollout_tokens,
                c.sampler.dtype,
            )
            return self._sampling("search", shape, c.sampler.dtype, ())
        shape = self.shape(c.grpo.num_generations, self.prompt, c.grpo.max_completion_length, c.grpo.dtype)
        done = self._train(c.grpo, grpo.micro_rows(c.grpo, self.train), update=False)
        return [
            Program("grpo", "reshard", self.reshard, self.state.opt_state),
            *self._sampling("grpo", shape, c.grpo.dtype, self.state),
            Program("grpo", "gradient", self.grpo_gradient, self.state.opt_state, done),
            Program("grpo", "update", self.grpo_update),
        ]

    def _train(self, c: cfg.Sft | cfg.Grpo, rows: int, update: bool) -> Work:
        kernel = attention.choose_kernel(self.train, c.max_length, self.config.head_dim)
        scored = attention.computed_share(kernel, c.max_length)
        return work.train(
            self.config, self.mesh, rows * c.max_length, c.max_length, c.remat_policy == "full", update, scored
        )

    def _sampling(self, stage: str, shape: Shape, dtype: str, held: Any) -> list[Program]:
        _, suffix = self.stores(shape, dtype)
        head = self.weights(dtype).lm_head  # prefill does not read it
        rows, columns = self.chunk(shape)
        decoded = functools.partial(
            work.decode, self.config, self.mesh, dtype=dtype, steps=self.c.sampler.num_scheduler_steps
        )
        packing = [Program(stage, "pack", functools.partial(self.pack, shape, dtype), (held, self.weights(dtype)))]
        return [
            Program(
                stage, "prefill", functools.partial(self.prefill, shape, dtype), (held, head, suffix),
                work.prefill(self.config, self.mesh, rows * columns, shape.prefix_blocks * shape.block, dtype),
            ),
            Program(
                stage, "decode", functools.partial(self.decode, shape, dtype), held,
                decoded(shape=shape), self.c.sampler.num_scheduler_steps, decoded(shape=self.unshared(shape)),
            ),
            *(packing if self.packed(shape) else ()),
        ]  # fmt: skip

    def shape(self, group: int, prefix: int, new: int, dtype: str) -> Shape:
        """What the sampler decodes with when all its rows are wanted."""
        sampler = self.engine()
        sampler.reserve(prefix, new)
        return sampler.shape(
            sampler.max_num_seqs, max(sampler.max_num_seqs // group, 1), prefix, new, jnp.dtype(dtype)
        )[0]

    def packed(self, shape: Shape) -> int:
        """Rows of the largest batch that one of this shape can shrink to; 0 where there is none."""
        return max(filter(shape.shrinks_to, batch_sizes(shape.rows, self.sample.batch_size)), default=0)

    def unshared(self, shape: Shape) -> Shape:
        """Of as many rows as take the memory of this shape where each has a prefix of its own."""
        columns = (shape.prefix_blocks * shape.block, shape.suffix_blocks * shape.block)
        shared, own = (cache.row_bytes(self.config, *columns, lane, 2) for lane in (shape.lane, 1))
        unit = self.sample.batch_size
        return dataclasses.replace(shape, rows=max(1, shape.rows * shared // (own * unit)) * unit, lane=1)

    def chunk(self, shape: Shape) -> tuple[int, int]:
        """The most prefixes that are prefilled at once, and columns of each."""
        rows = {blocks: max(n) for blocks, n in self.engine().batches.items() if blocks <= shape.prefix_blocks}
        blocks = max(rows, key=lambda blocks: rows[blocks] * blocks)
        return rows[blocks], blocks * shape.block

    def sft_step(self) -> Any:
        tx = make_optimizer(self.c.sft, self.steps)
        state = abstract_state(self.config, tx, self.train)
        step = make_step(sft.make_loss(self.c.sft, self.config, self.train), tx, self.config, self.train)
        return _lower(step, state, batch(self.c.sft.batch_size, self.c.sft.max_length))

    def grpo_gradient(self) -> Any:
        shape = (grpo.micro_rows(self.c.grpo, self.train), self.c.grpo.max_length)
        loss = grpo.make_loss(self.c.grpo, self.config, self.train)
        rollouts = RolloutBatch(batch(*shape), advantages=floats(*shape), old_logprobs=floats(*shape))
        accumulate = make_accumulate(loss, self.tx, self.config, self.train)
        return _lower(accumulate, self.state.params, self.state.params, rollouts)

    def grpo_update(self) -> Any:
        return _lower(make_apply(self.tx, self.config, self.train), self.state, self.state.params)

    def reshard(self) -> Any:
        return _lower(grpo.make_reshard(self.c.grpo, self.config, self.sample), self.state.params)

    def prefill(self, shape: Shape, dtype: str) -> Any:
        (n, columns), (prefix, _) = self.chunk(shape), self.stores(shape, dtype)
        program = decode.make_prefill(self.config, self.sample)
        return _lower(program, self.weights(dtype), prefix, ints(n, columns), ints(n), ints(n))

    def pack(self, shape: Shape, dtype: str) -> Any:
        n = self.packed(shape)
        smaller = dataclasses.replace(shape, rows=n, lane=1)
        program = decode.make_pack(self.config, self.sample)
        return _lower(program, *self.stores(shape, dtype), ints(n), ints(n), smaller)

    def decode(self, shape: Shape, dtype: str) -> Any:
        n, v = shape.rows, self.config.vocab_size
        rows = decode.Rows(ints(n), ints(n), ints(n), ints(n), ints(n, 2, dtype=jnp.uint32), ints(n))
        span = decode.Span(ints(), ints(shape.prefixes), ints(shape.tiles), ints())
        how = Filters(floats(), ints(), floats(), floats())
        program = decode.make_decode(self.config, self.sample, self.c.sampler.num_scheduler_steps, False)
        return _lower(program, self.weights(dtype), *self.stores(shape, dtype), rows, span, how, ints(v, dtype=bool))


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
    return Batch(tokens=ints(*shape), segments=ints(*shape), positions=ints(*shape), weights=floats(*shape))
