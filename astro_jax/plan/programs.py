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
from astro_jax import prompts as prompt_files
from astro_jax import stage_inputs
from astro_jax.errors import AstroError
from astro_jax.llama import attention, quantized
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.mesh import Sharding, decode_sharding, train_sharding
from astro_jax.plan import roofline
from astro_jax.plan.roofline import RooflineCost
from astro_jax.sampler import Engine, kv_cache, programs
from astro_jax.sampler.engine import batch_sizes
from astro_jax.sampler.kv_cache import CacheLayout, KVCache
from astro_jax.sampler.programs import DecodeInputs
from astro_jax.sampler.sample import SamplingInputs
from astro_jax.traces import rewriting
from astro_jax.train import grpo, losses, micro_batches, sft
from astro_jax.train.losses import Batch
from astro_jax.train.policy_loss import RolloutBatch
from astro_jax.train.state import TrainState, abstract_state, make_accumulate, make_apply, make_optimizer, make_step

CHARACTERS_PER_TOKEN = 3  # of a rubric whose tokenizer a plan does not read; English has four or more
ArrayTree = Any  # a pytree of jax.Array or jax.ShapeDtypeStruct, with shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function of a run, or the arrays that a run loads.

    Attributes:
      stage: one of stages.PLANNED.
      name: of the function, such as "decode"; "load", "resume" or "judge" for arrays.
      lower: lowers the function. None: `resident` lies on the devices, and no function is compiled.
      resident: arrays of the run that stay on the devices beside the program's arguments and results.
      cost: of one call; None for a program that only moves arrays.
      trip_count: of the program's loop when its limit is not a constant.
      layout: for decoding, the rows and their cache.
      row_bytes: for decoding, the bytes of a row's cache on one chip.
      unshared_cost: for decoding, the cost of as many rows as fit the same memory when each row has its own prefix.
    """

    stage: str
    name: str
    lower: Callable[[], jax.stages.Lowered] | None
    resident: ArrayTree = ()
    cost: RooflineCost | None = None
    trip_count: int = 1
    layout: CacheLayout | None = None
    row_bytes: float = 0.0
    unshared_cost: RooflineCost | None = None


class Plan:
    """The abstract arrays (shape, dtype, sharding) and the programs of a run on a mesh.

    Args:
      c: config of the run.
      config: of the model.
      mesh: of training and sampling.
      prompt: tokens of a problem's prompt, the chat template included.
      steps: optimizer steps of a training stage, a constant of the learning rate's schedule.
      judge: the model of `verify.judge`; None without one.

    Raises:
      AstroError: as `check`.
    """

    def __init__(
        self, c: cfg.Config, config: LlamaConfig, mesh: Mesh, prompt: int = 512, steps: int = 100,
        judge: LlamaConfig | None = None,
    ):  # fmt: skip
        self.c, self.config, self.mesh, self.prompt, self.steps, self.judge = c, config, mesh, prompt, steps, judge
        self.train, self.sample = train_sharding(mesh, c.attention), decode_sharding(mesh, c.attention)
        check(c, config, self.train, judge)
        self.tx = make_optimizer(c.grpo, steps)
        self.state = abstract_state(config, self.tx, self.train)

    def weights(self, dtype: str, c: cfg.Sampler | None = None) -> llama_params.Params:
        """Return the abstract weights of the sampler, in its sharding and a dtype, or as int8 numbers.

        Args:
          dtype: in which the model computes.
          c: settings of the sampler; default those of the config.
        """
        make = llama_params.abstract if (c or self.c.sampler).quantization is None else quantized.abstract
        return make(self.config, self.sample, jnp.dtype(dtype))

    def kv_cache(self, layout: CacheLayout, dtype: str) -> KVCache:
        """The key-value cache of a layout, in the type of the computation unless the layout is quantized."""
        return kv_cache.abstract(self.config, self.sample, jnp.dtype(dtype), layout)

    def engine(self, c: cfg.Sampler | None = None) -> Engine:
        return Engine.from_config(c or self.c.sampler, self.config, self.sample, seed=0)

    # ---- Programs

    def programs(self, stage: str) -> list[Program]:
        """Return the programs of one of stages.PLANNED; none for a stage that the run does not have.

        In a stage whose answers a judge judges, its weights lie beside all programs. The row "judge" has the arrays of
        its sampling, and the cost of its decoding.
        """
        programs = self._programs(stage)
        is_judged = stage_inputs.asks_judge(self.c, stage)
        if self.judge is None or not is_judged or not programs:
            return programs
        judge = llama_params.abstract(self.judge, self.sample, jnp.dtype(self.c.sampler.dtype))
        programs = [dataclasses.replace(p, resident=(p.resident, judge)) for p in programs]
        sampling = next(p.resident for p in programs if p.name == "decode")
        rl, c = stage == "grpo", self.c
        policy = self.weights(c.grpo.dtype if rl else c.sampler.dtype, c.rollout_sampler if rl else c.sampler)
        layout, steps = self._judge_layout(stage), c.sampler.num_scheduler_steps
        cache = kv_cache.abstract(self.judge, self.sample, jnp.dtype(c.sampler.dtype), layout)
        cost = roofline.decode(self.judge, self.mesh, layout, c.sampler.dtype, size(judge), steps)
        return [*programs, Program(stage, "judge", None, (sampling, policy, cache), cost)]

    def _programs(self, stage: str) -> list[Program]:
        c, s = self.c, self.c.search
        sampled = c.sampler.dtype
        if stage == "base":
            return self._base()
        if stage == "sft":
            return self._fine_tuning("sft", c.sft)
        if stage == "search":
            # A rollout begins behind the steps of its node, which are at most as long as a rollout from the root.
            group = {"mcts": s.num_rollouts, "rounds": s.rounds[0], "best-of-n": s.num_samples}[s.method]
            steps = 0 if s.method == "best-of-n" else s.max_rollout_tokens
            layout = self.layout(group, self.prompt + steps, s.max_rollout_tokens, sampled)
            return self._sampling("search", layout, sampled, ())
        if stage == "traces":
            return self._traces()
        if stage == "difficulty":
            if not (n := c.problems.difficulty_samples):
                return []
            return self._sampling(stage, self.layout(n, self.prompt, c.eval.max_tokens, sampled), sampled, ())
        if stage == "eval":
            return self._sampling(stage, self.layout(1, self.prompt, c.eval.max_tokens, sampled), sampled, ())
        return self._grpo()

    def _judge_layout(self, stage: str) -> CacheLayout:
        """The layout that the judge decodes with: prompts of the rubric, the problem and the stage's longest answer."""
        settings = self.c.verify.judge
        assert self.judge is not None and settings is not None
        rubric = len(prompt_files.load(self.c.prompts)["evaluate"].source) // CHARACTERS_PER_TOKEN
        steps, evaluated = 2 * self.c.search.max_rollout_tokens, self.c.eval.max_tokens
        answer = {"grpo": self.c.grpo.max_completion_length, "difficulty": evaluated, "eval": evaluated}
        longest = rubric + self.prompt + answer.get(stage, steps)
        longest = min(longest, self.judge.max_positions - settings.max_tokens)
        engine = Engine.from_config(self.c.sampler.unquantized(), self.judge, self.sample, seed=0)
        return _full_layout(engine, settings.num_samples, longest, settings.max_tokens, self.c.sampler.dtype)

    def _base(self) -> list[Program]:
        """The base model is copied, or trained by SFT's step."""
        c = self.c
        settings = c.pretrain if c.model == "scratch" else c.base_sft
        if settings is not None:
            return self._fine_tuning("base", settings)
        return [Program("base", "load", None, self.state.params)]

    def _traces(self) -> list[Program]:
        """The model that judges and writes traces, and samples Direct's: of these calls, the one with the longest rows.

        The prompts of a judgement and of a rewriting hold a problem and a solution.
        """
        t, sampled = self.c.traces, self.c.sampler.dtype
        with_solution = self.prompt + self.c.search.max_rollout_tokens
        calls = [(t.self_evaluation, with_solution, t.self_evaluation_tokens)] if t.self_evaluation else []
        calls += [(1, with_solution, t.clone_tokens)] if rewriting.model_kinds(t) else []
        calls += [(t.direct_samples, self.prompt, t.direct_tokens)] if t.direct == "best-of-n" else []
        if not calls:
            return []
        group, prompt, new = max(calls, key=lambda call: call[1] / call[0] + call[2])  # a group shares its prompt
        return self._sampling("traces", self.layout(group, prompt, new, sampled), sampled, ())

    def _grpo(self) -> list[Program]:
        c = self.c.grpo
        sampler = self.c.rollout_sampler
        layout = self.layout(c.num_generations, self.prompt, c.max_completion_length, c.dtype, sampler)
        cost = self._train_cost(c, micro_batches.micro_batch_size(c, self.train), update=False)
        # The reference model of the KL term stays on the devices.
        reference = llama_params.abstract(self.config, self.train, jnp.dtype(c.dtype)) if c.beta else ()
        return [
            Program("grpo", "resume", None, (self.state, reference)),
            Program("grpo", "reshard", self.reshard, (self.state.opt_state, reference)),
            *self._sampling("grpo", layout, c.dtype, (self.state, reference), sampler),
            Program("grpo", "gradient", self.grpo_gradient, (self.state.opt_state, reference), cost),
            Program("grpo", "update", self.grpo_update, reference),
        ]

    def _state(self, c: cfg.Sft) -> TrainState:
        """The abstract train state of SFT with these settings."""
        return abstract_state(self.config, make_optimizer(c, self.steps), self.train, c.lora)

    def _frozen(self, c: cfg.Sft) -> tuple[llama_params.Params, ...]:
        """The parameters that LoRA does not train; empty without LoRA."""
        return () if c.lora is None else (self.state.params,)

    def _fine_tuning(self, stage: str, c: cfg.Sft) -> list[Program]:
        """The arrays of a resume, and SFT's step."""
        cost = self._train_cost(c, c.batch_size, update=True)
        return [
            Program(stage, "resume", None, (self._state(c), self._frozen(c))),
            Program(stage, "step", functools.partial(self.sft_step, c), (), cost),
        ]

    def _train_cost(self, c: cfg.Sft | cfg.Grpo, rows: int, update: bool) -> RooflineCost:
        kernel = attention.choose_kernel(self.train, c.max_length, self.config.head_dim)
        score_share, tokens = attention.computed_share(kernel, c.max_length), rows * c.max_length
        # GRPO's loss is not linear in the log-probabilities: chunks of logits are computed again in the backward pass.
        n_chunks = losses.num_chunks(tokens, self.config.vocab_size, self.train)
        head_passes = 4 if n_chunks > 1 and isinstance(c, cfg.Grpo) else 3
        n = 1 if isinstance(c, cfg.Grpo) else c.num_micro_batches
        frozen = isinstance(c, cfg.Sft) and c.lora is not None
        return roofline.train(
            self.config, self.mesh, tokens, c.max_length, c.remat_policy, update, score_share, head_passes, n, frozen
        )

    def _sampling(
        self, stage: str, layout: CacheLayout, dtype: str, resident: ArrayTree, c: cfg.Sampler | None = None
    ) -> list[Program]:
        c = c or self.c.sampler
        completion, weights = self.kv_cache(layout, dtype).completion, self.weights(dtype, c)
        (rows, columns), steps = self.chunk(layout), c.num_scheduler_steps
        cost = functools.partial(
            roofline.decode, self.config, self.mesh, dtype=dtype, weight_bytes=size(weights), steps=steps
        )
        rounding = [Program(stage, "quantize", functools.partial(self.quantize, dtype), resident)]
        packing = [Program(stage, "pack", functools.partial(self.pack, layout, dtype), (resident, weights))]
        return [
            *(rounding if c.quantization and stage != "grpo" else ()),  # GRPO's `reshard` rounds the weights
            Program(
                stage, "prefill", functools.partial(self.prefill, layout, dtype, c),
                (resident, weights.lm_head, completion),  # prefill does not read the LM head
                roofline.prefill(
                    self.config, self.mesh, rows * columns, layout.prefix_blocks * layout.block_size, size(weights)
                ),
            ),
            Program(
                stage, "decode", functools.partial(self.decode, layout, dtype, c), resident, cost(layout=layout),
                steps, layout, size(self.kv_cache(layout, dtype)) / layout.num_seqs,
                cost(layout=self.unshared(layout)),
            ),
            *(packing if self.packed(layout) else ()),
        ]  # fmt: skip

    def layout(self, group: int, prompt: int, new: int, dtype: str, c: cfg.Sampler | None = None) -> CacheLayout:
        """The layout that the engine decodes with when all its rows hold a sequence.

        Args:
          group: completions of each prompt.
          prompt: tokens of the longest prompt.
          new: tokens of the longest completion.
          dtype: of the computation.
          c: settings of the sampler; default those of the config.
        """
        return _full_layout(self.engine(c), group, prompt, new, dtype)

    def packed(self, layout: CacheLayout) -> int:
        """Rows of the largest batch that a batch of this layout can shrink to; 0 if it cannot shrink."""
        return max(filter(layout.shrinks_to, batch_sizes(layout.num_seqs, self.sample.batch_size)), default=0)

    def unshared(self, layout: CacheLayout) -> CacheLayout:
        """The layout in the same memory of rows that each have a prefix of their own."""
        columns = (layout.prefix_blocks * layout.block_size, layout.completion_blocks * layout.block_size)
        column = kv_cache.bytes_per_column(self.config, 2, layout.quantized)
        shared, own = (kv_cache.bytes_per_sequence(column, *columns, m) for m in (layout.group_size, 1))
        unit = self.sample.batch_size
        return layout.ungrouped(max(1, layout.num_seqs * shared // (own * unit)) * unit)

    def chunk(self, layout: CacheLayout) -> tuple[int, int]:
        """The most prompts that one call of prefill computes, and the columns of each."""
        batches = self.engine().prefill_batches
        rows = {blocks: max(n) for blocks, n in batches.items() if blocks <= layout.prefix_blocks}
        blocks = max(rows, key=lambda blocks: rows[blocks] * blocks)
        return rows[blocks], blocks * layout.block_size

    def sft_step(self, c: cfg.Sft | None = None) -> jax.stages.Lowered:
        """Lower the step of SFT: gradient and update.

        Args:
          c: the settings; default those of the config's `sft`.
        """
        c = c or self.c.sft
        tx = make_optimizer(c, self.steps)
        step = make_step(sft.make_gradient(c, self.config, self.train), tx, self.config, self.train, c.lora)
        return _lower(step, self._state(c), batch(c.batch_size, c.max_length), *self._frozen(c))

    def grpo_gradient(self) -> jax.stages.Lowered:
        """Lower the gradient of one micro-batch of GRPO."""
        shape = (micro_batches.micro_batch_size(self.c.grpo, self.train), self.c.grpo.max_length)
        loss = grpo.make_loss(self.c.grpo, self.config, self.train)
        c, scores = self.c.grpo, floats(*shape)
        rollouts = RolloutBatch(
            batch(*shape), advantages=scores, sampler_logprobs=scores,
            old_logprobs=None if c.importance_sampling_cap is None else scores, ref_logprobs=scores if c.beta else None,
            chosen=scores if c.clip_cov_ratio or c.kl_cov_ratio else None,
        )  # fmt: skip
        accumulate = make_accumulate(loss, self.tx, self.config, self.train)
        return _lower(accumulate, self.state.params, self.state.params, rollouts)

    def grpo_update(self) -> jax.stages.Lowered:
        """Lower the update of GRPO's parameters."""
        return _lower(make_apply(self.tx, self.config, self.train), self.state, self.state.params, floats())

    def reshard(self) -> jax.stages.Lowered:
        """Lower the copy of the trained parameters into the sampler's sharding and dtype."""
        quantization = self.c.rollout_sampler.quantization
        return _lower(grpo.make_reshard(self.c.grpo, self.config, self.sample, quantization), self.state.params)

    def quantize(self, dtype: str) -> jax.stages.Lowered:
        """Lower the rounding of the weights that have been loaded."""
        weights = llama_params.abstract(self.config, self.sample, jnp.dtype(dtype))
        return _lower(quantized.make_quantize(self.config, self.sample), weights)

    def prefill(self, layout: CacheLayout, dtype: str, c: cfg.Sampler | None = None) -> jax.stages.Lowered:
        """Lower one chunk of prefill."""
        (n, columns), cache = self.chunk(layout), self.kv_cache(layout, dtype)
        program = programs.make_prefill(self.config, self.sample)
        return _lower(program, self.weights(dtype, c), cache.prefix, ints(n, columns), ints(n), ints(n))

    def pack(self, layout: CacheLayout, dtype: str) -> jax.stages.Lowered:
        """Lower the copy of the remaining rows into a smaller batch."""
        n, cache = self.packed(layout), self.kv_cache(layout, dtype)
        program = programs.make_pack(self.sample)
        return _lower(program, cache.prefix, cache.completion, ints(n), ints(n), layout.ungrouped(n))

    def decode(self, layout: CacheLayout, dtype: str, c: cfg.Sampler | None = None) -> jax.stages.Lowered:
        """Lower `num_scheduler_steps` decode steps."""
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
        return _lower(program, self.weights(dtype, c), cache.prefix, cache.completion, inputs, sampling, stop_tokens)


def check(c: cfg.Config, config: LlamaConfig | None, sharding: Sharding, judge: LlamaConfig | None = None) -> None:
    """Check that a mesh divides the parameters and the batches, and that the attention kernel supports the lengths.

    Args:
      config: of the model; None for a model that is trained from scratch, whose parameters are not checked.
      judge: the model of `verify.judge`; None without one.

    Raises:
      AstroError: when it does not. The message names the parameter or the config key.
    """
    if config is not None:
        check_model(config, sharding)
    if judge is not None:
        check_model(judge, sharding, "the judge's ")
    names = ("pretrain", "sft") if config is None else ("sft", *(("base_sft",) if c.base_sft else ()))
    head_dim = attention.HEAD_DIM_MULTIPLE if config is None else config.head_dim
    for length in (*(getattr(c, name).max_length for name in (*names, "grpo")), c.sampler.block_size):
        attention.choose_kernel(sharding, length, head_dim)
    for name in names:
        part = getattr(c, name)
        for key, rows in (("batch_size", part.batch_size), ("micro_batch_size", part.micro_batch_size)):
            if rows is not None and rows % sharding.batch_size:
                raise AstroError(
                    f"{name}.{key}={rows} cannot be split over data x fsdp = {sharding.batch_size} devices"
                )


def check_model(config: LlamaConfig, sharding: Sharding, whose: str = "") -> None:
    """Check that a mesh divides the parameters of a model.

    Args:
      whose: says in the message whose parameters do not divide.

    Raises:
      AstroError: when it does not.
    """
    for path, spec in jax.tree_util.tree_leaves_with_path(llama_params.param_specs(config)):
        for n, axis in zip(spec.shape, spec.axes, strict=True):
            mesh_axes = sharding.mesh_axes(axis)
            shards = math.prod(sharding.mesh.shape[name] for name in mesh_axes)
            if n % shards:
                name = whose + jax.tree_util.keystr(path, simple=True, separator=".")
                raise AstroError(f"mesh: {name} has {n} {axis}, which {'x'.join(mesh_axes)}={shards} does not divide")


def _full_layout(engine: Engine, group: int, prompt: int, new: int, dtype: str) -> CacheLayout:
    """The layout that an engine decodes with when all its rows hold a sequence. The arguments are Plan.layout's."""
    engine.reserve(prompt, new)
    num_seqs = engine.max_num_seqs
    return engine.choose_layout(num_seqs, max(num_seqs // group, 1), prompt, new, jnp.dtype(dtype))[0]


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
    return Batch(tokens=ints(*shape), segment_ids=ints(*shape), positions=ints(*shape), loss_weights=floats(*shape))
