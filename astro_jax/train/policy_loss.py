"""The loss of GRPO and its variants. Each choice stands beside its equation.

With the log-probability p_t of token t under the policy that is trained, old_t under the policy that sampled it, the
advantage A_t of its completion and the weight w_t:

    loss = -sum_t w_t c_t J_t + beta sum_t w_t KL_t

With Clip-Cov or KL-Cov the tokens that `covariance` has chosen have another J_t (see `restrained`).

    w_t   `completion_weight`               mean over tokens or completions (config key `loss_type`)
    c_t   `truncated_importance_weights`    1 unless `importance_sampling_cap` is set
    J_t   `clipped_surrogate`, or `cispo`   of the ratio of `log_ratios`
    KL_t  `k3`, from the reference          absent where `beta` is 0

The defaults are ASTRO's (section 3.2): the clipped surrogate of GRPO (arXiv 2402.03300, equation 3) without KL. All
arrays on devices are float32 [B, S].
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from astro_jax import config as cfg
from astro_jax.llama.params import Array
from astro_jax.train.losses import Batch

SHARES = ("clip_low", "clip_high", "cov_rate", "geometric_mask_rate")  # the metrics that are shares of all tokens
LARGEST_LOG_RATIO = 60.0  # exp(60) is far from the largest float32, about exp(88)
MAXIMA = ("max_ratio", "max_logp_gap")  # the metrics that are no sums


@struct.dataclass
class RolloutBatch:
    """Packed rollouts.

    Attributes:
      batch: prompts and completions. Only tokens of completions have a weight. With the loss types "dapo", "cispo"
        and "grpo" the weights of all completions of an update sum to 1, those that are left out included.
      advantages: float32 [B, S], the advantage of the completion at each of its tokens.
      sampler_logprobs: float32 [B, S], log-probabilities of the tokens as the sampler computed them.
      old_logprobs: float32 [B, S], the same of the same policy, as the trainer computes them. None: the sampler's
        stand for them.
      ref_logprobs: float32 [B, S], under the reference model. None where `beta` is 0.
      chosen: float32 [B, S], 1 at the tokens that Clip-Cov or KL-Cov has chosen. None without both.
    """

    batch: Batch
    advantages: Array
    sampler_logprobs: Array
    old_logprobs: Array | None = None
    ref_logprobs: Array | None = None
    chosen: Array | None = None


def policy_loss(logprobs: jax.Array, rollouts: RolloutBatch, c: cfg.Grpo) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a micro-batch (see the module), and the metrics of its tokens.

    Args:
      logprobs: float32 [B, S], of the policy that is trained, at the temperature of the sampler.

    Returns:
      (the loss, metrics: sums over the tokens that have a weight, and the maxima of `MAXIMA`).
    """
    weights, advantages, sampler = rollouts.batch.loss_weights, rollouts.advantages, rollouts.sampler_logprobs
    chex.assert_rank(logprobs, 2)
    chex.assert_equal_shape([logprobs, sampler, advantages, weights])
    old = sampler if rollouts.old_logprobs is None else rollouts.old_logprobs
    mask = weights > 0
    token_log_ratio = jnp.where(mask, logprobs - old, 0.0)
    ratio = jnp.exp(log_ratios(token_log_ratio, rollouts.batch, c))
    if c.loss_type == "cispo":
        assert c.epsilon_high is not None
        objective = cispo(ratio, logprobs, advantages, c.epsilon_high)
        is_low, is_high = jnp.zeros_like(mask), ratio > c.epsilon_high
    else:
        high = c.epsilon if c.epsilon_high is None else c.epsilon_high
        objective = clipped_surrogate(ratio, advantages, c.epsilon, high, c.delta)
        is_low = (ratio < 1 - c.epsilon) & (advantages < 0)
        is_high = (ratio > 1 + high) & (advantages > 0)
        if c.delta is not None:
            is_high |= (ratio > c.delta) & (advantages < 0)
    if c.importance_sampling_cap is not None:
        objective *= truncated_importance_weights(jnp.where(mask, old - sampler, 0.0), c.importance_sampling_cap)
    from_sampler = jnp.where(mask, logprobs - sampler, 0.0)
    gap = jnp.abs(from_sampler)
    of_tokens = {
        "learned_tokens": mask, "logp_gap": gap, "approx_kl": k3(token_log_ratio),
        "clip_low": is_low & mask, "clip_high": is_high & mask,
    }  # fmt: skip
    if rollouts.chosen is not None:
        is_chosen = jnp.asarray(rollouts.chosen) > 0
        objective = restrained(objective, is_chosen, token_log_ratio, c)
        of_tokens["cov_rate"] = is_chosen & mask
    if c.geometric_mask_bounds is not None:
        is_masked = mask & is_outside(from_sampler, rollouts.batch, c.geometric_mask_bounds)
        objective = jnp.where(is_masked, 0.0, objective)
        of_tokens["geometric_mask_rate"] = is_masked
    loss = -jnp.sum(weights * objective)
    if rollouts.ref_logprobs is not None:
        kl = k3(jnp.where(mask, rollouts.ref_logprobs - logprobs, 0.0))
        loss += c.beta * jnp.sum(weights * kl)
        of_tokens["kl"] = kl
    metrics = {name: jnp.sum(values, dtype=jnp.float32) for name, values in of_tokens.items()}
    largest = jnp.max(jnp.where(mask, token_log_ratio, -jnp.inf))
    return loss, {"loss": loss} | metrics | {"max_ratio": jnp.exp(largest), "max_logp_gap": jnp.max(gap)}


def log_ratios(token_log_ratio: jax.Array, batch: Batch, c: cfg.Grpo) -> jax.Array:
    """The logarithm of the ratio at each token.

        token:     p_t - old_t                                  (GRPO, arXiv 2402.03300, equation 3)
        sequence:  mean over the completion of p_t - old_t      (GSPO, arXiv 2507.18071, equation 7)

    The logarithm is bounded on both sides, by `max_log_ratio` (ours) or far from any ratio that is met. A token beyond
    the bound has no gradient. An infinite ratio would have the gradient NaN, also where it is clipped or masked.

    Args:
      token_log_ratio: p_t - old_t; 0 at tokens without a weight.
    """
    log_ratio = token_log_ratio
    if c.importance_sampling_level == "sequence":
        log_ratio = completion_means(log_ratio, batch)
    bound = LARGEST_LOG_RATIO if c.max_log_ratio is None else c.max_log_ratio
    return jnp.clip(log_ratio, -bound, bound)


def completion_means(values: jax.Array, batch: Batch) -> jax.Array:
    """The mean over the completion of each token.

    Args:
      values: float32 [B, S]; 0 at tokens without a weight.

    Returns:
      float32 [B, S].
    """
    segments = batch.segment_ids.shape[1] + 1
    per_segment = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, segments))
    ids = jnp.asarray(batch.segment_ids)
    sizes = per_segment((batch.loss_weights > 0).astype(jnp.float32), ids)
    return jnp.take_along_axis(per_segment(values, ids) / jnp.maximum(sizes, 1.0), ids, axis=1)


def is_outside(from_sampler: jax.Array, batch: Batch, bounds: tuple[float, float]) -> jax.Array:
    """Return which tokens belong to a completion whose geometric mean ratio leaves the bounds.

        exp(mean over the completion of p_t - sampler_t) < low, or > high

    The ratio is to the policy that has sampled, so it holds the gap between sampler and trainer and the updates since.
    SkyRL masks such completions, with bounds of 0.99 and 1.01. There the ratio is that of the policy before the update.
    Here it is that of the update itself, so that later updates of a step are masked too (ours).

    Args:
      from_sampler: p_t - sampler_t; 0 at tokens without a weight.

    Returns:
      bool [B, S].
    """
    ratio = jnp.exp(completion_means(from_sampler, batch))
    return (ratio < bounds[0]) | (ratio > bounds[1])


def clipped_surrogate(
    ratio: jax.Array, advantages: jax.Array, epsilon: float, epsilon_high: float, delta: float | None = None
) -> jax.Array:
    """The clipped surrogate, which is maximized.

        J = min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A)

    GRPO has epsilon_high = epsilon (arXiv 2402.03300, equation 3). Clip-higher has a larger one, so that unlikely
    tokens can gain probability (DAPO, arXiv 2503.14476, equation 10). The dual clip bounds the loss of a token with a
    negative advantage, which else grows with its ratio without a limit (arXiv 1912.09729, equation 5):

        J = max(min(r A, clip(r, ...) A), delta A)    where A < 0
    """
    surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high) * advantages)
    if delta is not None:
        surrogate = jnp.where(advantages < 0, jnp.maximum(surrogate, delta * advantages), surrogate)
    return surrogate


def cispo(ratio: jax.Array, logprobs: jax.Array, advantages: jax.Array, epsilon_high: float) -> jax.Array:
    """The objective of CISPO (arXiv 2506.13585, equations 4 and 5): a clipped weight, which has no gradient.

        J = stop_gradient(min(r, epsilon_high)) A p

    No token loses its gradient, however far its ratio is. The weight has no lower bound, as in the paper's
    experiments. `epsilon_high` is the bound itself, as in TRL and in ScaleRL (arXiv 2510.13786); the paper writes
    1 + epsilon_high.
    """
    return jax.lax.stop_gradient(jnp.minimum(ratio, epsilon_high)) * advantages * logprobs


def restrained(objective: jax.Array, chosen: jax.Array, token_log_ratio: jax.Array, c: cfg.Grpo) -> jax.Array:
    """The objective with another one at the tokens that would lower the entropy most (arXiv 2505.22617, section 4.2).

        Clip-Cov:  J = 0                          at the chosen tokens
        KL-Cov:    J = J - kl_cov_coef KL_t       at the chosen tokens

    KL_t = r - 1 - log r is an estimate of the KL divergence from the policy that has sampled to the policy that is
    trained. The code of the authors takes |log r| for it.

    Args:
      objective: J of the other tokens. The paper's KL-Cov has no clipped ratio there.
      chosen: bool [B, S].
      token_log_ratio: log r = p_t - old_t; 0 at tokens without a weight.
    """
    if c.clip_cov_ratio:
        return jnp.where(chosen, 0.0, objective)
    kl = k3(token_log_ratio)
    return objective - jnp.where(chosen, c.kl_cov_coef * kl, 0.0)


def k3(log_ratio: jax.Array) -> jax.Array:
    """An estimate of the KL divergence of a policy q from p at each token (arXiv 2402.03300, equation 4; "k3").

        KL = exp(q - p) - (q - p) - 1

    It is never negative, and without bias where p has sampled the tokens.

    Args:
      log_ratio: q - p, of log-probabilities.
    """
    log_ratio = jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return jnp.exp(log_ratio) - log_ratio - 1


def truncated_importance_weights(log_gap: jax.Array, cap: float) -> jax.Array:
    """Weights that correct for a sampler whose probabilities differ from the trainer's, such as by bfloat16.

        c_t = min(exp(old_t of the trainer - old_t of the sampler), cap)

    The truncation bounds the variance (E. Ionides, "Truncated Importance Sampling", 2008, section 2). For the gap to a
    sampler it is recommended by Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    2025, with a cap of 2.
    """
    return jnp.minimum(jnp.exp(log_gap), cap)


def completion_weight(c: cfg.Grpo, length: int, total_tokens: int, completions: int) -> float:
    """The weight of each token of a completion in the loss of an update.

        dapo, cispo:  1 / (all tokens of the update)            (DAPO, arXiv 2503.14476, equation 12)
        grpo:         1 / (completions x tokens of this one)    (GRPO, arXiv 2402.03300, equation 3)
        dr_grpo:      1 / (completions x max_completion_length) (Dr. GRPO, arXiv 2503.20783, section 3.2)

    With "grpo" a token of a long completion weighs less, so a long wrong completion is punished less for each token.
    "dr_grpo" has the same weight for all tokens of the run, and "dapo" for all tokens of an update.

    Args:
      length: tokens of the completion.
      total_tokens: of all completions of the update.
      completions: of the update.
    """
    if c.loss_type == "grpo":
        return 1.0 / (completions * length)
    return 1.0 / (completions * c.max_completion_length if c.loss_type == "dr_grpo" else total_tokens)
