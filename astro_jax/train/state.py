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
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.mesh import Sharding, device_put_global

Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Any], tuple[jax.Array, Metrics]]


@struct.dataclass
class TrainState:
    """All that a training run carries from step to step; parameters and moments are float32."""

    step: Any  # int32 []
    params: Params
    opt_state: Any


def make_optimizer(c: cfg.Sft | cfg.Grpo, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; warm-up, then a cosine to min_lr_rate x the peak over `steps`."""
    warmup = round(c.warmup_ratio * steps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=c.learning_rate / (warmup + 1),
        peak_value=c.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=c.learning_rate * c.min_lr_rate,
    )
    b1, b2 = c.betas
    return optax.chain(
        optax.clip_by_global_norm(c.max_grad_norm),
        optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
            schedule, b1=b1, b2=b2, weight_decay=c.weight_decay, mask=_decayed
        ),
    )


def _decayed(params: Params) -> Params:
    """Weight decay for matrices only: norms keep their scale. Stacked norms are [L, D], told by their spec's name."""
    flags = jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)
    return flags


def learning_rate(state: TrainState) -> jax.Array:
    """The learning rate of the last update."""
    return state.opt_state[1].hyperparams["learning_rate"]


def new_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """A fresh state around parameters."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def abstract_state(config: LlamaConfig, tx: optax.GradientTransformation, sharding: Sharding) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: moments lie as their parameters do, scalars everywhere."""
    params = llama_params.abstract(config, sharding)
    shapes = jax.eval_shape(lambda p: new_state(p, tx), params)
    where = llama_params.shardings(config, sharding)
    everywhere = sharding.named()
    opt = optax.tree_map_params(
        tx,
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes.opt_state,
        where,
        transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    )
    return TrainState(step=jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere), params=params, opt_state=opt)


def place(state: TrainState, like: TrainState) -> TrainState:
    """Put a state onto the shardings of `abstract_state`."""
    return jax.tree.map(lambda x, s: device_put_global(x, s.sharding), state, like)


def make_step(
    loss: Loss, tx: optax.GradientTransformation, config: LlamaConfig, sharding: Sharding
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The jitted, sharded step: (state, batch) -> (state, metrics). The state is donated.

    Every array of the batch is [B, ...] and split over the batch axes.
    """
    where = _shardings(config, tx, sharding)

    @functools.partial(
        jax.jit,
        in_shardings=(where, sharding.named("batch")),
        out_shardings=(where, sharding.named()),
        donate_argnums=0,
    )
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        state, more = _update(state, grads, tx)
        return state, metrics | more

    return step


def make_accumulate(
    loss: Loss, tx: optax.GradientTransformation, config: LlamaConfig, sharding: Sharding
) -> Callable[[Params, Params, Any], tuple[Params, Metrics]]:
    """(params, sum of gradients, batch) -> (the sum with this batch's gradient, its metrics). The sum is donated.

    For a loss whose weights sum to 1 over all batches of one update.
    """
    where = _shardings(config, tx, sharding).params

    @functools.partial(
        jax.jit,
        in_shardings=(where, where, sharding.named("batch")),
        out_shardings=(where, sharding.named()),
        donate_argnums=1,
    )
    def accumulate(params: Params, total: Params, batch: Any) -> tuple[Params, Metrics]:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return jax.tree.map(jnp.add, total, grads), metrics

    return accumulate


def make_apply(
    tx: optax.GradientTransformation, config: LlamaConfig, sharding: Sharding
) -> Callable[[TrainState, Params], tuple[TrainState, Metrics]]:
    """(state, gradients) -> (the updated state, metrics). The state is donated."""
    where = _shardings(config, tx, sharding)

    @functools.partial(
        jax.jit,
        in_shardings=(where, where.params),
        out_shardings=(where, sharding.named()),
        donate_argnums=0,
    )
    def apply(state: TrainState, grads: Params) -> tuple[TrainState, Metrics]:
        return _update(state, grads, tx)

    return apply


def zero_gradients(config: LlamaConfig, sharding: Sharding) -> Params:
    """Where a sum of gradients starts."""
    like = llama_params.abstract(config, sharding)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), like)


def _shardings(config: LlamaConfig, tx: optax.GradientTransformation, sharding: Sharding) -> TrainState:
    return jax.tree.map(lambda s: s.sharding, abstract_state(config, tx, sharding))


def _update(state: TrainState, grads: Params, tx: optax.GradientTransformation) -> tuple[TrainState, Metrics]:
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
    return state, {"grad_norm": optax.tree.norm(grads), "lr": learning_rate(state)}
