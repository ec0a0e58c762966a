"""Clip-Cov and KL-Cov: the tokens whose updates would lower the entropy most (arXiv 2505.22617).

The entropy of a policy falls with the covariance between the log-probabilities of its tokens and their advantages
(section 3 there). A few tokens have most of it: they are likely already, and their completion was better than its
group. Clip-Cov takes the gradient of some of them away, and KL-Cov holds them near the policy that has sampled them.

The tokens are chosen before the update, from the log-probabilities of the policy that has sampled them. The paper takes
those of the policy that is trained. Both are equal in the first update of a step. The choice then costs no forward
pass, and does not depend on micro-batches, devices or rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astro_jax import config as cfg


def token_covariance(logprobs: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """The part of each token in the covariance (section 4.2).

        Cov_t = (p_t - mean(p)) (A_t - mean(A))

    Args:
      logprobs: float [N], of all tokens of an update.
      advantages: float [N], of their completions.

    Returns:
      float64 [N]. Their mean is the covariance.
    """
    p, a = np.asarray(logprobs, np.float64), np.asarray(advantages, np.float64)
    return (p - p.mean()) * (a - a.mean())


def clip_cov(covariance: np.ndarray, ratio: float, bounds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """The tokens without a gradient (Clip-Cov, section 4.2): a draw among those with a covariance inside the bounds.

        floor(ratio N) tokens, at least one, drawn from {t: low <= Cov_t <= high}

    Args:
      covariance: [N].

    Returns:
      bool [N].
    """
    candidates = np.flatnonzero((covariance >= bounds[0]) & (covariance <= bounds[1]))
    size = min(len(candidates), max(1, int(ratio * len(covariance))))
    chosen = np.zeros(len(covariance), bool)
    chosen[rng.choice(candidates, size, replace=False)] = True
    return chosen


def kl_cov(covariance: np.ndarray, ratio: float) -> np.ndarray:
    """The tokens with a KL penalty (KL-Cov, section 4.2): those with the largest covariance.

        floor(ratio N) tokens, at least one

    Args:
      covariance: [N].

    Returns:
      bool [N].
    """
    size = max(1, int(ratio * len(covariance)))
    chosen = np.zeros(len(covariance), bool)
    chosen[np.argsort(-covariance, kind="stable")[:size]] = True
    return chosen


def choose(
    c: cfg.Grpo, logprobs: list[np.ndarray], advantages: np.ndarray, rng: np.random.Generator
) -> Sequence[np.ndarray | None]:
    """Choose the tokens of an update.

    Args:
      logprobs: of the tokens of each completion, float [T].
      advantages: of the completions.

    Returns:
      for each completion bool [T], or None where neither `clip_cov_ratio` nor `kl_cov_ratio` is set.
    """
    if not c.clip_cov_ratio and not c.kl_cov_ratio:
        return [None] * len(logprobs)
    sizes = [len(x) for x in logprobs]
    covariance = token_covariance(np.concatenate(logprobs), np.repeat(advantages, sizes))
    if c.clip_cov_ratio:
        chosen = clip_cov(covariance, c.clip_cov_ratio, c.clip_cov_bounds, rng)
    else:
        chosen = kl_cov(covariance, c.kl_cov_ratio)
    return np.split(chosen, np.cumsum(sizes)[:-1])
