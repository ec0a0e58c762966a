"""The parameters of a Llama model, declared once.

One `ParamSpec` a parameter holds its shape, logical axes, initial scale and Hugging Face name (`param_specs`).
Initialization, sharding, ahead-of-time compilation, import, export and restore read these specs.
Dimension letters: see `astro_jax.llama.config`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from astro_jax.llama.config import LlamaConfig
from astro_jax.mesh import Sharding

# A leaf of `Params`: jax.Array, or in a view of the parameters a ParamSpec, jax.ShapeDtypeStruct or NamedSharding.
Array = Any


@struct.dataclass
class Layers:
    """The weights of all transformer blocks, stacked on a leading axis L for `jax.lax.scan`."""

    attn_norm: Array  # [L, D]
    wq: Array  # [L, D, H, h]
    wk: Array  # [L, D, K, h]
    wv: Array  # [L, D, K, h]
    wo: Array  # [L, H, h, D]
    mlp_norm: Array  # [L, D]
    w_gate: Array  # [L, D, F]
    w_up: Array  # [L, D, F]
    w_down: Array  # [L, F, D]


@struct.dataclass
class Params:
    """The parameters of one Llama model. `lm_head` is None where the LM head is the embedding table."""

    embed: Array  # [V, D]
    layers: Layers
    final_norm: Array  # [D]
    lm_head: Array | None  # [D, V]


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """The declaration of one parameter.

    Hugging Face stores a linear layer as `[out, in]`. A parameter here is `[in..., out...]`: `wq` is `[L, D, H, h]`
    for L tensors `[H h, D]`.

    Attributes:
      shape: for example (L, D, H, h).
      axes: the logical axis of each dimension, for example ("layers", "embed", "heads", "head").
      std: standard deviation of the initial values; 0 for ones.
      hf_name: Hugging Face's name of the tensor; with {} the names of one tensor a layer.
      n_in: number of input axes of a linear layer; 0 for a tensor that Hugging Face stores in the same layout.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    hf_name: str
    n_in: int = 0

    @property
    def stacked(self) -> bool:
        """Whether the first axis is the layers."""
        return self.axes[0] == "layers"

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """The shape without the axis of the layers."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def hf_names(self) -> list[str]:
        """The names of Hugging Face's tensors, one a layer if stacked."""
        return [self.hf_name.format(i) for i in range(self.shape[0])] if self.stacked else [self.hf_name]

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The shape of one of Hugging Face's tensors."""
        if not self.n_in:
            return self.layer_shape
        return math.prod(self.layer_shape[self.n_in :]), math.prod(self.layer_shape[: self.n_in])


def param_specs(c: LlamaConfig) -> Params:
    """Declare a model: a `Params` pytree with a ParamSpec for each parameter.

    The projections that add to the residual stream start smaller by sqrt(2 L) (GPT-2, section 2.3).
    """
    dims = {"layers": c.n_layers, "embed": c.d_model, "heads": c.n_heads, "kv_heads": c.n_kv_heads,
            "head": c.head_dim, "mlp": c.d_ff, "vocab": c.vocab_size}  # fmt: skip

    def spec(axes: str, std: float, hf_name: str, n_in: int = 0) -> ParamSpec:
        names = tuple(axes.split())
        return ParamSpec(tuple(dims[n] for n in names), names, std, hf_name, n_in)

    std = c.init_std
    out_std = std / math.sqrt(2 * c.n_layers)
    block = "model.layers.{}."
    layers = Layers(
        attn_norm=spec("layers embed", 0, block + "input_layernorm.weight"),
        wq=spec("layers embed heads head", std, block + "self_attn.q_proj.weight", 1),
        wk=spec("layers embed kv_heads head", std, block + "self_attn.k_proj.weight", 1),
        wv=spec("layers embed kv_heads head", std, block + "self_attn.v_proj.weight", 1),
        wo=spec("layers heads head embed", out_std, block + "self_attn.o_proj.weight", 2),
        mlp_norm=spec("layers embed", 0, block + "post_attention_layernorm.weight"),
        w_gate=spec("layers embed mlp", std, block + "mlp.gate_proj.weight", 1),
        w_up=spec("layers embed mlp", std, block + "mlp.up_proj.weight", 1),
        w_down=spec("layers mlp embed", out_std, block + "mlp.down_proj.weight", 1),
    )
    lm_head = None if c.tie_embeddings else spec("embed vocab", std, "lm_head.weight", 1)
    return Params(
        embed=spec("vocab embed", std, "model.embed_tokens.weight"),
        layers=layers,
        final_norm=spec("embed", 0, "model.norm.weight"),
        lm_head=lm_head,
    )


def hf_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensors of a model, {name: shape}: first those outside the layers, then layer by layer."""
    specs = jax.tree.leaves(param_specs(config))
    outside = {s.hf_name: s.hf_shape for s in specs if not s.stacked}
    layers = range(config.n_layers)
    return outside | {s.hf_name.format(i): s.hf_shape for i in layers for s in specs if s.stacked}


def shardings(config: LlamaConfig, sharding: Sharding) -> Params:
    """A `Params` pytree with the NamedSharding of each parameter."""
    return jax.tree.map(lambda s: sharding.named(*s.axes), param_specs(config))


def abstract(config: LlamaConfig, sharding: Sharding | None = None, dtype: DTypeLike = jnp.float32) -> Params:
    """A `Params` pytree of jax.ShapeDtypeStruct, for restoring and for ahead-of-time compilation."""

    def leaf(s: ParamSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(s.shape, dtype, sharding=sharding.named(*s.axes) if sharding else None)

    return jax.tree.map(leaf, param_specs(config))


def init(key: jax.Array, config: LlamaConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """Draw random parameters. The key of a parameter is `key`, folded with its index among the leaves of `Params`."""
    specs, treedef = jax.tree.flatten(param_specs(config))

    def leaf(i: int, s: ParamSpec) -> jax.Array:
        if s.std == 0:
            return jnp.ones(s.shape, dtype)
        return (s.std * jax.random.normal(jax.random.fold_in(key, i), s.shape)).astype(dtype)

    return jax.tree.unflatten(treedef, [leaf(i, s) for i, s in enumerate(specs)])


def count(config: LlamaConfig) -> int:
    """Count the parameters of a model."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(param_specs(config)))
