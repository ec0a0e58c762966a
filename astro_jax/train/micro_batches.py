"""The completions of one optimizer step of GRPO, packed into micro-batches, and the metrics of such steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from astro_jax import config as cfg
from astro_jax.mesh import Sharding
from astro_jax.train import covariance, data, policy_loss
from astro_jax.train.policy_loss import RolloutBatch
from astro_jax.train.rollouts import Rollout

COUNTS = ("skipped_steps", "no_gradient_steps", "guard_skips")
OF_FIRST_UPDATE = ("logp_gap", "max_logp_gap")


class Update(NamedTuple):
    """The rollouts of one optimizer step.

    Attributes:
      micro_batches: RolloutBatches of NumPy arrays [rows, max_length]. Empty if nothing can be learned.
      tokens: of all completions of the update, also of those without an advantage.
    """

    micro_batches: list[RolloutBatch]
    tokens: int


def pack(
    c: cfg.Grpo, members: Sequence[Rollout], advantages: np.ndarray, sharding: Sharding, rng: np.random.Generator
) -> Update:
    """Pack the rollouts of an update into micro-batches, the longest first, which leaves the least padding.

    A rollout with advantage 0 has no gradient, unless `beta` is above 0: it is left out, but its tokens count in the
    weights (`policy_loss.completion_weight`).

    Args:
      advantages: [number of rollouts].
      rng: draws the tokens of Clip-Cov.
    """
    if not members:
        return Update([], 0)
    sizes = [len(r.completion_ids) for r in members]
    weights = [policy_loss.completion_weight(c, size, sum(sizes), len(sizes)) for size in sizes]
    chosen = covariance.choose(c, [r.logprobs for r in members], advantages, rng)
    columns = zip(members, advantages, weights, chosen, strict=True)
    documents = [_document(*column) for column in columns if column[1] or c.beta]
    if not documents:
        return Update([], sum(sizes))
    documents.sort(key=lambda document: -len(document.tokens))
    batch, extras = data.pack(documents, c.max_length)
    row_counts = micro_batch_sizes(len(batch.tokens), c, sharding)
    packed = RolloutBatch(batch, extras["advantages"], extras["sampler_logprobs"], chosen=extras.get("chosen"))
    packed = jax.tree.map(lambda x: np.pad(x, [(0, sum(row_counts) - len(x)), (0, 0)]), packed)
    bounds = [0, *np.cumsum(row_counts)]
    slices = [slice(*pair) for pair in itertools.pairwise(bounds)]
    return Update([jax.tree.map(lambda x, rows=rows: x[rows], packed) for rows in slices], sum(sizes))


def _document(r: Rollout, advantage: float, weight: float, chosen: np.ndarray | None = None) -> data.Document:
    """Prompt and completion as one document. Only the completion is learned."""
    zeros, size = np.zeros(len(r.prompt_ids), np.float32), len(r.completion_ids)
    tokens = np.concatenate([np.asarray(r.prompt_ids, np.int32), r.completion_ids])
    extras = {
        "advantages": np.concatenate([zeros, np.full(size, advantage, np.float32)]),
        "sampler_logprobs": np.concatenate([zeros, r.logprobs]),
    }
    if chosen is not None:
        extras["chosen"] = np.concatenate([zeros, chosen.astype(np.float32)])
    return data.Document(tokens, np.concatenate([zeros, np.full(size, weight, np.float32)]), extras)


def micro_batch_size(c: cfg.Grpo, sharding: Sharding) -> int:
    """Rows of a micro-batch: grpo.micro_batch_size, rounded up to a multiple of the devices of the batch axis."""
    n = sharding.batch_size
    return -(-c.micro_batch_size // n) * n


def micro_batch_sizes(rows: int, c: cfg.Grpo, sharding: Sharding) -> list[int]:
    """Return the rows of each micro-batch: as many whole ones as `rows` fill, then smaller ones.

    There are two sizes, so that two programs are compiled: `micro_batch_size`, and an eighth of that, rounded up to a
    multiple of the devices. Example: 41 rows with a size of 32 are 32 + 4 + 4 + 4. A whole one takes the place of
    smaller ones that would have as many rows, so 31 rows are 32. A size below 8 is not split.
    """
    whole, devices = micro_batch_size(c, sharding), sharding.batch_size
    part = -(-(whole // 8) // devices) * devices or whole
    full, rest = divmod(rows, whole)
    parts = -(-rest // part)
    return [whole] * (full + 1) if parts * part >= whole else [whole] * full + [part] * parts


def padding_rate(update: Update) -> float:
    """Return the share of padding among the tokens of an update with at least one micro-batch."""
    is_token = [(m.batch.segment_ids > 0).reshape(-1) for m in update.micro_batches]
    return 1 - float(np.concatenate(is_token).mean())


def token_metrics(parts: Sequence[dict[str, Any]], tokens: int) -> dict[str, float]:
    """Join the metrics of the micro-batches of an update: the sum of `loss`, maxima, and means over tokens.

    Args:
      parts: of `make_loss`, one a micro-batch.
      tokens: of all completions of the update. The clipped and the chosen shares are shares of these; the other means
        are over the tokens that are learned.
    """
    joined = {k: max(float(m[k]) for m in parts) for k in policy_loss.MAXIMA}
    sums = {k: float(sum(m[k] for m in parts)) for k in parts[0] if k not in joined}
    learned_tokens = sums.pop("learned_tokens")
    joined["loss"] = sums.pop("loss")
    for name, value in sums.items():
        joined[name] = value / (tokens if name in policy_loss.SHARES else learned_tokens)
    return joined | {"clip_fraction": joined["clip_low"] + joined["clip_high"]}


def mean_metrics(updates: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Average the metrics of the optimizer steps of one step. The steps that were not applied are counted.

    Steps without a gradient count in nothing else, unless there are no others. A metric that is not finite in some
    steps is the mean over the others. A maximum stays one. The gap between sampler and trainer is that of the first
    step: later ones have another policy.
    """
    means: dict[str, float] = {
        k: sum(float(m.get(k, 0)) for m in updates) for k in COUNTS if any(k in m for m in updates)
    }
    applied = [m for m in updates if not m.get("no_gradient_steps")] or updates
    for k in dict.fromkeys(k for m in applied for k in m if k not in COUNTS):
        values = [float(m[k]) for m in (applied[:1] if k in OF_FIRST_UPDATE else applied) if k in m]
        finite = [x for x in values if math.isfinite(x)] or values
        means[k] = max(finite) if k in policy_loss.MAXIMA else sum(finite) / len(finite)
    return means
