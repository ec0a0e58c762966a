"""The config of a Llama model, read from and written to Hugging Face's config.json.

Dimension letters of the whole project; docstrings and comments write shapes with them, as in `[B, S, D]`:

    B  batch                  D  model width
    S  sequence               F  feed-forward width
    T  new tokens             H  query heads
    C  cache columns          K  key-value heads
    G  groups                 h  head size
    M  samples a group        V  vocabulary
    L  layers
"""

from __future__ import annotations

import dataclasses
from typing import Any

from astro_jax.errors import AstroError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """RoPE frequency scaling of Llama 3.1 (`rope_type: llama3` in Hugging Face's config.json)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Dimensions and constants of one Llama model. Hashable, so that a config can be a static argument of `jax.jit`.

    Attributes:
      vocab_size: V.
      d_model: D.
      d_ff: F.
      n_layers: L.
      n_heads: H.
      n_kv_heads: K.
      head_dim: h.
      max_positions: the longest sequence that the model was trained for, in tokens.
      rope_theta: base of the RoPE frequencies.
      rope_scaling: frequency scaling of Llama 3.1; None for none.
      norm_eps: added to the mean square in every RMS norm.
      tie_embeddings: whether the LM head is the embedding table.
      init_std: standard deviation of random initial weights.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int = 4096
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise AstroError(f"{self.n_heads} query heads do not divide into {self.n_kv_heads} key-value heads")

    @property
    def groups(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_heads // self.n_kv_heads

    def flops_per_token(self, context: int = 0) -> int:
        """Matmul FLOPs of one token in the forward pass: 2 a weight, plus attention over `context` keys."""
        attn = self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        layer = 2 * (attn + 3 * self.d_model * self.d_ff) + 4 * context * self.n_heads * self.head_dim
        return self.n_layers * layer + 2 * self.d_model * self.vocab_size


def llama3_8b(**changes: Any) -> LlamaConfig:
    """The config of Llama-3.1-8B (its published config.json), with `changes`."""
    config = LlamaConfig(
        vocab_size=128256, d_model=4096, d_ff=14336, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128,
        max_positions=131072, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def llama3_70b(**changes: Any) -> LlamaConfig:
    """The config of Llama-3.1-70B (its published config.json), with `changes`."""
    return llama3_8b(**({"d_model": 8192, "d_ff": 28672, "n_layers": 80, "n_heads": 64} | changes))


def llama3_1b(**changes: Any) -> LlamaConfig:
    """The config of Llama-3.2-1B (its published config.json), with `changes`."""
    sizes = dict(d_model=2048, d_ff=8192, n_layers=16, head_dim=64, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
    return llama3_8b(**(sizes | {"tie_embeddings": True} | changes))


def smollm2_135m(**changes: Any) -> LlamaConfig:
    """The config of SmolLM2-135M-Instruct (its published config.json), with `changes`."""
    config = LlamaConfig(
        vocab_size=49152, d_model=576, d_ff=1536, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64,
        max_positions=8192, rope_theta=100000.0, tie_embeddings=True,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


# Options of transformers' Llama and Mistral that this model lacks, each with the only value that it supports.
_SUPPORTED_VALUES = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
}
_ROPE_SCALING_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def from_hf(d: dict[str, Any]) -> LlamaConfig:
    """Read a Hugging Face config.json.

    Raises:
      AstroError: for an option that this model does not support; the message names the option.
    """
    if d.get("model_type") not in ("llama", "mistral"):  # Mistral without its window is a Llama
        raise AstroError(f"config.json: model_type {d.get('model_type')!r} is not supported; 'llama' and 'mistral' are")
    if d["model_type"] == "mistral":
        d = {"sliding_window": 4096} | d  # transformers' default where the key is left out
    for key, allowed in _SUPPORTED_VALUES.items():
        if d.get(key, allowed) != allowed:
            raise AstroError(f"config.json: {key}={d[key]!r} is not supported; only {allowed!r} is")
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters; read either.
    rope = d.get("rope_parameters") or d.get("rope_scaling") or {}
    theta = rope.get("rope_theta", d.get("rope_theta", 10000.0))
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        raise AstroError(f"config.json: rope scaling {rope_type!r} is not supported; 'default' and 'llama3' are")
    for key, value in rope.items():
        if key not in ("rope_type", "type", "rope_theta", *_ROPE_SCALING_KEYS) and value != _SUPPORTED_VALUES.get(key):
            raise AstroError(f"config.json: {key}={value!r} in rope_parameters is not supported")
    scaling = None
    if rope_type == "llama3":
        factor, low, high, original = (rope[key] for key in _ROPE_SCALING_KEYS)
        scaling = RopeScaling(float(factor), float(low), float(high), int(original))
    heads = d["num_attention_heads"]
    return LlamaConfig(
        vocab_size=d["vocab_size"],
        d_model=d["hidden_size"],
        d_ff=d["intermediate_size"],
        n_layers=d["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=d.get("num_key_value_heads") or heads,
        head_dim=d.get("head_dim") or d["hidden_size"] // heads,
        max_positions=d.get("max_position_embeddings", 2048),
        rope_theta=float(theta),
        rope_scaling=scaling,
        norm_eps=d.get("rms_norm_eps", 1e-6),
        tie_embeddings=d.get("tie_word_embeddings", False),
        init_std=d.get("initializer_range", 0.02),
    )


def to_hf(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """Make a Hugging Face config.json, the inverse of `from_hf`.

    Args:
      dtype: of the weights in the same folder, for example "bfloat16".
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (s := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_positions,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else {k: v for k, v in rope.items() if k != "rope_theta"},
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "dtype": dtype,  # the name of transformers 5
    }
