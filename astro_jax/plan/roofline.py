"""The roofline of a program: formulas for its FLOPs and its HBM traffic, and the least time of one call.

XLA's own cost analysis counts the body of a loop once, so it is not used.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.sharding import Mesh

from astro_jax.llama import model
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.plan.topology import Chip
from astro_jax.sampler.kv_cache import CacheLayout, bytes_per_column


@dataclasses.dataclass(frozen=True)
class RooflineCost:
    """FLOPs and HBM traffic of one call of a program, on one chip.

    Attributes:
      model_flops: of the model: the forward pass and, in training, twice as many for the backward pass. Attention
        counts earlier tokens only.
      executed_flops: of the program. It also computes masked scores and, with remat, a part of the forward pass again.
      hbm_bytes: the least bytes to read and write.
      tokens: of all chips together.
    """

    model_flops: float
    executed_flops: float
    hbm_bytes: float
    tokens: int

    def seconds(self, chip: Chip) -> float:
        """Return the least seconds of one call: compute time or HBM time, whichever is longer."""
        return max(self.executed_flops / chip.flops_per_s, self.hbm_bytes / chip.hbm_bandwidth)

    def mfu(self, chip: Chip) -> float:
        """Return the highest possible model FLOPs utilization, between 0 and 1."""
        return self.model_flops / (self.seconds(chip) * chip.flops_per_s)


def train(
    config: LlamaConfig,
    mesh: Mesh,
    tokens: int,
    length: int,
    remat_policy: str,
    update: bool,
    score_share: float = 1.0,
    head_passes: int = 3,
    num_micro_batches: int = 1,
    frozen: bool = False,
) -> RooflineCost:
    """Return the cost of a gradient, and of AdamW's update when the same program makes the update.

    FLOPs: F for the forward pass, 2 F for the backward pass, and the matmuls and attention that a rematerialization
    policy does not keep again. The backward pass also computes the attention scores (half of attention) again, because
    their results are not kept.
    Bytes: the gathered bfloat16 weights, once a pass; the kept results of each block, written and read; the float32
    gradients; with the update the float32 parameters and moments.

    Args:
      config: of the model.
      mesh: of training.
      tokens: of one call, over all chips.
      length: tokens of a row.
      remat_policy: "none" or a name of llama.model.REMAT_POLICIES.
      update: whether the program updates the parameters.
      score_share: computed attention scores as a share of length x length (llama.attention.computed_share).
      head_passes: the FLOPs of the LM head, as a multiple of those of its forward pass.
      num_micro_batches: of one call, whose gradients are summed.
      frozen: the weights are frozen, and small adapters are trained (LoRA): their matmuls are left out, and a frozen
        matmul has no gradient by its weight.
    """
    chips, tp = mesh.size, mesh.shape["tp"]
    matmuls = config.flops_per_token() - head(config)
    scores = score_share * (config.flops_per_token(length) - config.flops_per_token())
    passes_of_weights = 2 if frozen else 3
    attention = config.flops_per_token(length // 2) - config.flops_per_token()
    model_flops = tokens * (passes_of_weights * config.flops_per_token() + 3 * attention)
    widths = {  # of the results of REMAT_POLICIES, and their FLOPs a token
        "qkv_proj": config.head_dim * (config.n_heads + 2 * config.n_kv_heads), "context": 0,
        "out_proj": config.d_model, "mlpwi": 2 * config.d_ff,
    }  # fmt: skip
    inputs = widths | {"out_proj": config.head_dim * config.n_heads}  # times d_model: a matmul's parameters
    kept = model.REMAT_POLICIES.get(remat_policy, tuple(widths))
    again = 2 * config.n_layers * config.d_model * sum(n for name, n in inputs.items() if name not in kept)
    attention_again = scores if "context" not in kept else 0.0
    blocks = passes_of_weights * matmuls + again + 3.5 * scores + attention_again
    executed_flops = tokens * (blocks + (head_passes - frozen) * head(config))
    n = llama_params.count(config)
    passes = num_micro_batches * (2 + again / matmuls)
    kept_widths = widths | {"context": config.head_dim * config.n_heads}
    width = config.d_model + sum(kept_widths[name] for name in kept)  # the input of a block is always kept
    activations = 2 * 2 * config.n_layers * tokens * width / chips
    sums = 2 * 4 * n / chips * (num_micro_batches if num_micro_batches > 1 else 0)
    state = 0 if frozen else (8 if update else 2) * 4 * n / chips + sums
    hbm_bytes = passes * 2 * n / tp + activations + state
    return RooflineCost(model_flops / chips, executed_flops / chips, hbm_bytes, tokens)


def prefill(config: LlamaConfig, mesh: Mesh, tokens: int, prefix: int, weight_bytes: int) -> RooflineCost:
    """One chunk of each of some prefixes, in the middle of them; the LM head is not computed.

    Args:
      weight_bytes: of the weights on one chip.
    """
    flops = tokens * (config.flops_per_token(prefix // 2) - head(config)) / mesh.size
    return RooflineCost(flops, flops, weight_bytes, tokens)


def decode(
    config: LlamaConfig, mesh: Mesh, layout: CacheLayout, dtype: str, weight_bytes: int, steps: int
) -> RooflineCost:
    """Decode steps of all rows, with full prefixes and half of the columns for new tokens filled.

    Bytes: the weights once a step, each prefix once a prefix group, each row's own columns. Matmuls of int8 numbers run
    in the type of the computation, at its FLOP/s.

    Args:
      dtype: of the computation.
      weight_bytes: of the weights on one chip.
    """
    prefix, own = layout.prefix_blocks * layout.block_size, layout.completion_blocks * layout.block_size // 2
    flops = steps * layout.num_seqs * config.flops_per_token(prefix + own) / mesh.size
    column = bytes_per_column(config, jnp.dtype(dtype).itemsize, layout.quantized)
    caches = column * (layout.num_groups * prefix + layout.num_seqs * own) / mesh.size
    return RooflineCost(flops, flops, steps * (weight_bytes + caches), steps * layout.num_seqs)


def head(config: LlamaConfig) -> int:
    """Return the FLOPs of the LM head for one token."""
    return 2 * config.d_model * config.vocab_size
