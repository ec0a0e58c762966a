"""A run's programs, lowered ahead of time for the devices of a mesh.

The functions, shardings and donated arguments are those of training and sampling. No array is allocated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import attention
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.mesh import Sharding, decode_sharding, train_sharding
from astro_jax.plan import work
from astro_jax.plan.work import RooflineCost
from astro_jax.sampler import Engine, cache, decode
from astro_jax.sampler.cache import KV, Shape
from astro_jax.sampler.draw import Filters
from astro_jax.sampler.engine import batch_sizes
from astro_jax.train import grpo, sft
from astro_jax.train.losses import Batch, RolloutBatch
from astro_jax.train.state import abstract_state, make_accumulate, make_apply, make_optimizer, make_step

ArrayTree = Any  # a pytree of jax.Array or jax.ShapeDtypeStruct, with shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function of a run.

    Attributes:
      stage: "search", "sft" or "grpo".
      name: of the function, such as "decode".
      lower: lowers the function.
      resident: arrays of the run that stay on the devices beside the program's arguments and results.
      cost: of one call; None for a program that only moves arrays.
      trip_count: of the program's loop when its limit is not a constant.
      unshared_cost: for decoding, the cost of as many rows as fit the same memory when each row has its own prefix.
    """

    stage: str
    name: str
    lower: Callable[[], jax.stages.Lowered]
    resident: ArrayTree = ()
    cost: RooflineCost | None = None
    trip_count: int = 1
    unshared_cost: RooflineCost | None = None


class Plan:
    """The abstract arrays (shape, dtype, sharding) and the programs of a run on a mesh.

    Args:
      c: config of the run.
      config: of the model.
      mesh: of training and sampling.
      prompt: tokens of a problem's prompt, the chat template included.
      steps: optimizer steps of a training stage, a constant of the learning rate's schedule.

    Raises:
      AstroError: as `check`.
    """

    def __init__(self, c: cfg.Config, config: LlamaConfig, mesh: Mesh, prompt: int = 512, steps: int = 100):
        self.c, self.config, self.mesh, self.prompt, self.steps = c, config, mesh, prompt, steps
        self.train, self.sample = train_sharding(mesh, c.attention), decode_sharding(mesh, c.attention)
        check(c, config, self.train)
        self.tx = make_optimizer(c.grpo, steps)
        self.state = abstract_state(config, self.tx, self.train)

    def weights(self, dtype: str) -> llama_params.Params:
        """Return the abstract weights of the sampler, in its sharding and a dtype."""
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
        """Return the programs of a stage: "search", "sft", or "grpo" with its sampling."""
        c = self.c
        if stage == "sft":
            cost = self._train_cost(c.sft, c.sft.batch_size, update=True)
            return [Program("sft", "step", self.sft_step, (), cost)]
        if stage == "search":
            shape = self.shape(
                c.search.num_rollouts,
                self.prompt + c.search.max_rollout_tokens,
                c.search.max_rollout_tokens,
                c.sampler.dtype,
            )
            return self._sampling("search", shape, c.sampler.dtype, ())
        shape = self.shape(c.grpo.num_generations, self.prompt, c.grpo.max_completion_length, c.grpo.dtype)
        cost = self._train_cost(c.grpo, grpo.micro_rows(c.grpo, self.train), update=False)
        return [
            Program("grpo", "reshard", self.reshard, self.state.opt_state),
            *self._sampling("grpo", shape, c.grpo.dtype, self.state),
            Program("grpo", "gradient", self.grpo_gradient, self.state.opt_state, cost),
            Program("grpo", "update", self.grpo_update),
        ]

    def _train_cost(self, c: cfg.Sft | cfg.Grpo, rows: int, update: bool) -> RooflineCost:
        kernel = attention.kernel(self.train, c.max_length, self.config.head_dim)
        score_share = attention.computed(kernel, c.max_length)
        return work.train(
            self.config, self.mesh, rows * c.max_length, c.max_length, c.remat_policy == "full", update, score_share
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

    def sft_step(self) -> jax.stages.Lowered:
        """Lower SFT's step: gradient and update."""
        tx = make_optimizer(self.c.sft, self.steps)
        state = abstract_state(self.config, tx, self.train)
        step = make_step(sft.make_loss(self.c.sft, self.config, self.train), tx, self.config, self.train)
        return _lower(step, state, batch(self.c.sft.batch_size, self.c.sft.max_length))

    def grpo_gradient(self) -> jax.stages.Lowered:
        """Lower the gradient of one micro-batch of GRPO."""
        shape = (grpo.micro_rows(self.c.grpo, self.train), self.c.grpo.max_length)
        loss = grpo.make_loss(self.c.grpo, self.config, self.train)
        rollouts = RolloutBatch(batch(*shape), advantages=floats(*shape), old_logprobs=floats(*shape))
        accumulate = make_accumulate(loss, self.tx, self.config, self.train)
        return _lower(accumulate, self.state.params, self.state.params, rollouts)

    def grpo_update(self) -> jax.stages.Lowered:
        """Lower the update of GRPO's parameters."""
        return _lower(make_apply(self.tx, self.config, self.train), self.state, self.state.params)

    def reshard(self) -> jax.stages.Lowered:
        """Lower the copy of the trained parameters into the sampler's sharding and dtype."""
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
    """Check that a mesh divides the parameters and the batches, and that the attention kernel supports the lengths.

    Raises:
      AstroError: when it does not. The message names the parameter or the config key.
    """
    for path, spec in jax.tree_util.tree_leaves_with_path(llama_params.declare(config)):
        for n, axis in zip(spec.shape, spec.axes, strict=True):
            mesh_axes = dict(sharding.rules).get(axis, ())
            shards = math.prod(sharding.mesh.shape[name] for name in mesh_axes)
            if n % shards:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise AstroError(f"mesh: {name} has {n} {axis}, which {'x'.join(mesh_axes)}={shards} does not divide")
    for length in (c.sft.max_length, c.grpo.max_length, c.sampler.block_size):
        attention.kernel(sharding, length, config.head_dim)
    if c.sft.batch_size % sharding.batch_size:
        raise AstroError(
            f"sft.batch_size={c.sft.batch_size} cannot be split over data x fsdp = {sharding.batch_size} devices"
        )


def _lower(function: Any, *args: Any) -> jax.stages.Lowered:
    """Lower a jitted function. The types of training and sampling do not say that their functions are jitted."""
    return function.lower(*args)


def size(tree: ArrayTree) -> int:
    """Return the bytes of a tree of sharded arrays on one chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def ints(*shape: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
    """Return an abstract integer array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Return an abstract float32 array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def batch(*shape: int) -> Batch:
    """Return an abstract training batch: rows x tokens."""
    return Batch(tokens=ints(*shape), segments=ints(*shape), positions=ints(*shape), weights=floats(*shape))
