"""The parameters of a Llama, declared once.

Shape, logical axes, initial scale and Hugging Face name stand together in one `Spec` a tensor. Initialization,
sharding, ahead-of-time compilation, import, export and restore are views of that declaration.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from astro_jax.llama.config import LlamaConfig
from astro_jax.mesh import Sharding


@struct.dataclass
class Layers:
    """All transformer blocks, stacked on a leading axis L so that they can be scanned."""

    attn_norm: Any  # [L, D]
    wq: Any  # [L, D, H, h]
    wk: Any  # [L, D, K, h]
    wv: Any  # [L, D, K, h]
    wo: Any  # [L, H, h, D]
    mlp_norm: Any  # [L, D]
    w_gate: Any  # [L, D, F]
    w_up: Any  # [L, D, F]
    w_down: Any  # [L, F, D]


@struct.dataclass
class Params:
    """One Llama. `lm_head` is None where it is tied to the embedding."""

    embed: Any  # [V, D]
    layers: Layers
    final_norm: Any  # [D]
    lm_head: Any  # [D, V] or None


@dataclasses.dataclass(frozen=True)
class Spec:
    """One tensor: its shape, logical axes, initial standard deviation (0: ones) and Hugging Face name.

    Hugging Face stores a linear layer as [out, in]; ours is [in..., out...] with `n_in` input axes (0: stored alike).
    A name with {} stands for one tensor a layer.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    hf_name: str
    n_in: int = 0

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layers"


def declare(c: LlamaConfig) -> Params:
    """The Params pytree with a Spec for each tensor. The residual outputs start smaller by sqrt(2 L) (GPT-2)."""
    dims = {"layers": c.n_layers, "embed": c.d_model, "heads": c.n_heads, "kv_heads": c.n_kv_heads,
            "head": c.head_dim, "mlp": c.d_ff, "vocab": c.vocab_size}  # fmt: skip

    def spec(axes: str, std: float, hf_name: str, n_in: int = 0) -> Spec:
        names = tuple(axes.split())
        return Spec(tuple(dims[n] for n in names), names, std, hf_name, n_in)

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


def shardings(config: LlamaConfig, sharding: Sharding) -> Params:
    """The NamedSharding of every parameter."""
    return jax.tree.map(lambda s: sharding.named(*s.axes), declare(config))


def abstract(config: LlamaConfig, sharding: Sharding | None = None, dtype: Any = jnp.float32) -> Params:
    """ShapeDtypeStructs of the parameters, for restoring and for ahead-of-time compilation."""

    def leaf(s: Spec) -> jax.ShapeDtypeStruct:
        where = sharding.named(*s.axes) if sharding else None
        return jax.ShapeDtypeStruct(s.shape, dtype, sharding=where)

    return jax.tree.map(leaf, declare(config))


def init(key: jax.Array, config: LlamaConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters; each tensor's key is folded from its Hugging Face name's place in the declaration."""
    specs, treedef = jax.tree.flatten(declare(config))

    def leaf(i: int, s: Spec) -> jax.Array:
        if s.std == 0:
            return jnp.ones(s.shape, dtype)
        return (s.std * jax.random.normal(jax.random.fold_in(key, i), s.shape)).astype(dtype)

    return jax.tree.unflatten(treedef, [leaf(i, s) for i, s in enumerate(specs)])


def count(config: LlamaConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(declare(config)))
