"""LoRA: low-rank adapters beside frozen weights (arXiv 2106.09685).

An adapted weight computes `x W + alpha / r (x A) B` with A [in, r] and B [r, out]. Only A and B are trained. B starts
at 0, so an adapted model starts as the base model. `merge` adds the adapters to the weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Array, Params, ParamSpec, param_specs
from astro_jax.mesh import Sharding

# The parameter of each name of `target_modules`, the names of Hugging Face and PEFT.
TARGETS = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "gate_proj": "w_gate", "up_proj": "w_up",
           "down_proj": "w_down"}  # fmt: skip
RANK = "z"  # the letter of the axis r in einsum; no other axis of the model has it


@struct.dataclass
class Adapter:
    """The adapter of a weight in all layers.

    Attributes:
      a: float32 [L, in..., r].
      b: float32 [L, r, out...].
    """

    a: Array
    b: Array


Adapters = dict[str, Adapter]  # by the name of the parameter, such as "wq"


@struct.dataclass
class AdaptedWeight:
    """A frozen weight with its adapter, as the model multiplies with it.

    Attributes:
      base: the weight [in..., out...].
      a, b: its adapter; arrays, or `mixed_precision.MixedWeight`.
      scale: alpha / r.
    """

    base: Array
    a: Array
    b: Array
    scale: float = struct.field(pytree_node=False)


def specs(config: LlamaConfig, rank: int, target_modules: Sequence[str]) -> dict[str, tuple[ParamSpec, ParamSpec]]:
    """Declare A and B of each target. A is split over the mesh as the inputs of its weight, B as the outputs."""
    layers = param_specs(config).layers
    by_name = {}
    for target in target_modules:
        weight: ParamSpec = getattr(layers, TARGETS[target])
        n = 1 + weight.n_in
        a = ParamSpec((*weight.shape[:n], rank), (*weight.axes[:n], None), 0.0, "", weight.n_in)
        b = ParamSpec((weight.shape[0], rank, *weight.shape[n:]), ("layers", None, *weight.axes[n:]), 0.0, "", 1)
        by_name[TARGETS[target]] = (a, b)
    return by_name


def abstract(config: LlamaConfig, rank: int, target_modules: Sequence[str], sharding: Sharding) -> Adapters:
    """The adapters as float32 jax.ShapeDtypeStruct with shardings."""

    def leaf(s: ParamSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=sharding.named(*s.axes))

    return {name: Adapter(leaf(a), leaf(b)) for name, (a, b) in specs(config, rank, target_modules).items()}


def init(key: jax.Array, config: LlamaConfig, rank: int, target_modules: Sequence[str]) -> Adapters:
    """Draw A uniformly from -1 / sqrt(in) to 1 / sqrt(in), as PEFT does; B is 0."""
    adapters = {}
    for i, (name, (a, b)) in enumerate(specs(config, rank, target_modules).items()):
        bound = 1 / math.sqrt(math.prod(a.shape[1:-1]))
        drawn = jax.random.uniform(jax.random.fold_in(key, i), a.shape, jnp.float32, -bound, bound)
        adapters[name] = Adapter(drawn, jnp.zeros(b.shape, jnp.float32))
    return adapters


def attach(params: Params, adapters: Adapters, scale: float) -> Params:
    """Put adapters beside the weights of a model, for `llama.model`. The weights get no gradient.

    Args:
      scale: alpha / r.
    """
    params = jax.lax.stop_gradient(params)
    adapted = {
        name: AdaptedWeight(getattr(params.layers, name), adapter.a, adapter.b, scale)
        for name, adapter in adapters.items()
    }
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, **adapted))


def merge(params: Params, adapters: Adapters, scale: float) -> Params:
    """Add the adapters to the weights: W + scale A B. The result computes what the adapted model computes."""

    def merged(weight: jax.Array, adapter: Adapter) -> jax.Array:
        a = adapter.a.reshape(weight.shape[0], -1, adapter.a.shape[-1])
        b = adapter.b.reshape(weight.shape[0], adapter.b.shape[1], -1)
        return weight + scale * jnp.einsum("lir,lro->lio", a, b).reshape(weight.shape)

    weights = {name: merged(getattr(params.layers, name), adapter) for name, adapter in adapters.items()}
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, **weights))


def split_spec(spec: str) -> tuple[str, str]:
    """Split the einsum of a weight into those of A and B: "bsd,dnh->bsnh" into "bsd,dz->bsz" and "bsz,znh->bsnh"."""
    letters, out = spec.split("->")
    of_x, of_weight = letters.split(",")
    inputs = "".join(c for c in of_weight if c not in out)
    outputs = "".join(c for c in of_weight if c in out)
    middle = "".join(c for c in of_x if c not in inputs) + RANK
    return f"{of_x},{inputs}{RANK}->{middle}", f"{middle},{RANK}{outputs}->{out}"
