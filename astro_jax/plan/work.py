"""What a program computes and reads, by formulas from its shapes, and the least time that takes on a slice.

XLA's own estimate is of no use here: it counts the body of a loop once.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.sharding import Mesh

from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.plan.topology import Chip
from astro_jax.sampler.kv_cache import CacheLayout, bytes_per_sequence


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one call, a chip.

    Attributes:
      useful: FLOPs of the model: once forward and, in training, twice backward; attention to earlier tokens only.
      executed: FLOPs of what runs: also what is computed again (remat), and masked scores.
      read: bytes of HBM that it must move at least.
      tokens: of all chips together.
    """

    useful: float
    executed: float
    read: float
    tokens: int

    def seconds(self, chip: Chip) -> float:
        """The roofline: the larger of the time to compute and the time to move."""
        return max(self.executed / chip.flops, self.read / chip.bandwidth)

    def mfu(self, chip: Chip) -> float:
        """The highest possible model FLOPs utilization: useful FLOPs in that time, as a share of the chip's."""
        return self.useful / (self.seconds(chip) * chip.flops)


def train(
    config: LlamaConfig, mesh: Mesh, tokens: int, length: int, remat: bool, update: bool, scored: float = 1.0
) -> Work:
    """A gradient of rows of `length` tokens, and AdamW's update where it is in the same program.

    Forward F, backward 2 F, with remat F again. The LM head and half of attention, the scores, come in chunks and are
    computed again in the backward pass in any case. Bytes: the weights in bfloat16 as gathered, once a pass; each
    block's input, written and read; in float32 gradients and, with the update, parameters and moments.

    Args:
      scored: share of all pairs of tokens of a row whose score is computed (llama.attention.computed_share).
    """
    chips, tp = mesh.size, mesh.shape["tp"]
    matmuls = config.flops_per_token() - head(config)
    scores = scored * (config.flops_per_token(length) - config.flops_per_token())
    useful = 3 * tokens * config.flops_per_token(length // 2)
    last = 2 * config.n_layers * config.d_ff * config.d_model  # of each block: what it gives is not needed again
    executed = tokens * ((3 + remat) * matmuls - remat * last + (3.5 + remat) * scores + 4 * head(config))
    n = llama_params.count(config)
    passes = 2 + remat
    activations = 2 * 2 * config.n_layers * tokens * config.d_model / chips
    read = passes * 2 * n / tp + activations + (8 if update else 2) * 4 * n / chips
    return Work(useful / chips, executed / chips, read, tokens)


def prefill(config: LlamaConfig, mesh: Mesh, tokens: int, prefix: int, dtype: str) -> Work:
    """One chunk of each of some prefixes, in the middle of them; the LM head is not computed."""
    flops = tokens * (config.flops_per_token(prefix // 2) - head(config)) / mesh.size
    return Work(flops, flops, weight_bytes(config, mesh, dtype), tokens)


def decode(config: LlamaConfig, mesh: Mesh, layout: CacheLayout, dtype: str, steps: int) -> Work:
    """Decode steps of all rows, with full prefixes and half of the columns for new tokens filled.

    Bytes: the weights once a step, each prefix once a prefix group, each row's own columns.
    """
    prefix, own = layout.prefix_blocks * layout.block_size, layout.completion_blocks * layout.block_size // 2
    flops = steps * layout.num_seqs * config.flops_per_token(prefix + own) / mesh.size
    column = bytes_per_sequence(config, 0, 1, 1, jnp.dtype(dtype).itemsize)
    caches = column * (layout.num_groups * prefix + layout.num_seqs * own) / mesh.size
    return Work(flops, flops, steps * (weight_bytes(config, mesh, dtype) + caches), steps * layout.num_seqs)


def weight_bytes(config: LlamaConfig, mesh: Mesh, dtype: str) -> float:
    """Of a chip where weights lie over tp alone."""
    return llama_params.count(config) * jnp.dtype(dtype).itemsize / mesh.shape["tp"]


def head(config: LlamaConfig) -> int:
    """FLOPs of the LM head for one token."""
    return 2 * config.d_model * config.vocab_size
