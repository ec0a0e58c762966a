"""Train state, optimizer, and the one jitted step that SFT and GRPO share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from astro_jax import config as cfg
from astro_jax.llama import lora as adapters
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Array, Params
from astro_jax.mesh import Sharding, device_put_global

Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Any], tuple[jax.Array, Metrics]]  # (params, batch) -> (loss, metrics)
# (trained parameters, batch, with LoRA the frozen ones) -> ((loss, metrics), gradient)
GradientFn = Callable[..., tuple[tuple[jax.Array, Metrics], Params]]


@struct.dataclass
class TrainState:
    """All that a training run carries from step to step.

    Attributes:
      step: int32 [], optimizer steps so far.
      params: float32; with LoRA the adapters alone.
      opt_state: the state of the optimizer. Its moments are float32; the first one has the type `mu_dtype`.
    """

    step: Array
    params: Params
    opt_state: Any


def make_optimizer(c: cfg.Sft | cfg.Grpo, steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after clipping by the global norm, with a schedule of the learning rate.

    The rate rises linearly over the first `warmup_ratio` of the steps, then falls along a cosine to `min_lr_rate` times
    its peak at step `steps`.

    Args:
      steps: optimizer steps of the whole run.
    """
    warmup_steps = round(c.warmup_ratio * steps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=c.learning_rate / (warmup_steps + 1),
        peak_value=c.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=c.learning_rate * c.min_lr_rate,
    )
    b1, b2 = c.betas
    return optax.chain(
        optax.clip_by_global_norm(c.max_grad_norm),
        optax.inject_hyperparams(optax.adamw, static_args=("mask", "mu_dtype"))(
            schedule, b1=b1, b2=b2, weight_decay=c.weight_decay, mask=_decay_mask, mu_dtype=c.mu_dtype
        ),
    )


def _decay_mask(params: Params) -> Params:
    """Decay matrices only. Norms are known by name: stacked over layers they are [L, D], as a matrix is."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)


def learning_rate(state: TrainState) -> jax.Array:
    """The learning rate of the last update."""
    return state.opt_state[1].hyperparams["learning_rate"]


def new_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """A state at step 0 around parameters."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def abstract_state(
    config: LlamaConfig, tx: optax.GradientTransformation, sharding: Sharding, lora: cfg.Lora | None = None
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings.

    A moment has the sharding of its parameter; scalars are replicated.

    Args:
      lora: the state holds adapters. None: it holds all parameters.
    """
    params: Any = llama_params.abstract(config, sharding)
    if lora is not None:
        params = adapters.abstract(config, lora.rank, lora.target_modules, sharding)
    shapes = jax.eval_shape(lambda p: new_state(p, tx), params)
    replicated = sharding.named()
    opt_state = optax.tree_map_params(
        tx,
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes.opt_state,
        jax.tree.map(lambda x: x.sharding, params),
        transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(step=step, params=params, opt_state=opt_state)


def place(state: TrainState, abstract: TrainState) -> TrainState:
    """Put a state onto the shardings of its `abstract_state`."""
    return jax.tree.map(lambda x, s: device_put_global(x, s.sharding), state, abstract)


def make_step(
    gradient: GradientFn,
    tx: optax.GradientTransformation,
    config: LlamaConfig,
    sharding: Sharding,
    lora: cfg.Lora | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make the jitted, sharded train step: (state, batch) -> (state, metrics). The state is donated.

    With LoRA: (state of the adapters, batch, frozen parameters) -> (state, metrics).
    A step whose loss or gradient is not finite changes nothing: see `_update`.
    Every array of the batch is [B, ...], split over the batch axes of the mesh.
    """
    shardings = _shardings(config, tx, sharding, lora)
    frozen = () if lora is None else (llama_params.shardings(config, sharding),)

    @functools.partial(
        jax.jit,
        in_shardings=(shardings, sharding.named("batch"), *frozen),
        out_shardings=(shardings, sharding.named()),
        donate_argnums=0,
    )
    def step(state: TrainState, batch: Any, *frozen: Params) -> tuple[TrainState, Metrics]:
        (value, loss_metrics), grads = gradient(state.params, batch, *frozen)
        state, update_metrics = _update(state, grads, value, tx)
        return state, loss_metrics | update_metrics

    return step


def make_accumulate(
    loss: LossFn, tx: optax.GradientTransformation, config: LlamaConfig, sharding: Sharding
) -> Callable[[Params, Params, Any], tuple[Params, Metrics]]:
    """Make the jitted gradient accumulation over micro-batches.

    (params, sum of gradients, micro-batch) -> (the sum with the gradient of the micro-batch, metrics). The sum is
    donated. The loss must be a sum, not a mean: its weights already divide by the size of the update.
    """
    shardings = _shardings(config, tx, sharding).params

    @functools.partial(
        jax.jit,
        in_shardings=(shardings, shardings, sharding.named("batch")),
        out_shardings=(shardings, sharding.named()),
        donate_argnums=1,
    )
    def accumulate(params: Params, total: Params, batch: Any) -> tuple[Params, Metrics]:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return jax.tree.map(jnp.add, total, grads), metrics

    return accumulate


def make_apply(
    tx: optax.GradientTransformation, config: LlamaConfig, sharding: Sharding
) -> Callable[[TrainState, Params, Array], tuple[TrainState, Metrics]]:
    """Make the jitted update: (state, gradients, loss) -> (state, metrics). The state is donated.

    An update whose loss or gradient is not finite changes nothing: see `_update`.
    """
    shardings = _shardings(config, tx, sharding)

    @functools.partial(
        jax.jit,
        in_shardings=(shardings, shardings.params, sharding.named()),
        out_shardings=(shardings, sharding.named()),
        donate_argnums=0,
    )
    def apply(state: TrainState, grads: Params, loss: Array) -> tuple[TrainState, Metrics]:
        return _update(state, grads, loss, tx)

    return apply


def zero_gradients(config: LlamaConfig, sharding: Sharding) -> Params:
    """The initial value of a sum of gradients."""
    abstract = llama_params.abstract(config, sharding)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), abstract)


def _shardings(
    config: LlamaConfig, tx: optax.GradientTransformation, sharding: Sharding, lora: cfg.Lora | None = None
) -> TrainState:
    return jax.tree.map(lambda s: s.sharding, abstract_state(config, tx, sharding, lora))


def _update(
    state: TrainState, grads: Params, loss: Array, tx: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """Apply a gradient. Skip the update when the loss or the norm of the gradient is NaN or infinite.

    A skipped update leaves the whole state as it was: parameters, moments, and the step that the schedule of the
    learning rate counts. The metric `skipped_steps` is then 1.
    """
    norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def update(state: TrainState) -> TrainState:
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return TrainState(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)

    # A branch, not a selection of values: that would hold the old and the new parameters at once.
    state = jax.lax.cond(is_finite, update, lambda state: state, state)
    skipped = 1 - is_finite.astype(jnp.int32)
    return state, {"grad_norm": norm, "learning_rate": learning_rate(state), "skipped_steps": skipped}
