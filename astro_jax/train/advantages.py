"""From rewards to advantages: groups, their comparison, and the penalties of length and of repeated attempts."""

from __future__ import annotations

import chex
import numpy as np


def comparable(rewards: np.ndarray) -> np.ndarray:
    """Return which completions can be compared with their group: those with a reward, if the group has two of them.

    Args:
      rewards: float [G, M]. NaN: no reward.

    Returns:
      bool [G, M].
    """
    rewarded = ~np.isnan(rewards)
    return rewarded & (rewarded.sum(axis=1, keepdims=True) >= 2)


def has_variance(rewards: np.ndarray) -> np.ndarray:
    """Return which groups have different rewards: the groups that dynamic sampling keeps.

    DAPO keeps a group whose number of correct completions is neither 0 nor M (arXiv 2503.14476, equation 11), which is
    the same for rewards of +1 and -1.

    Args:
      rewards: float [G, M]. NaN: no reward.

    Returns:
      bool [G].
    """
    lowest, highest = np.fmin.reduce(rewards, axis=1), np.fmax.reduce(rewards, axis=1)  # NaN only where all are NaN
    return lowest < highest


def group_advantages(rewards: np.ndarray, scale_rewards: bool) -> np.ndarray:
    """Advantages A_i = (r_i - mean(r)) / std(r) over each group (arXiv 2402.03300, section 4.1.2).

    Without the division by the standard deviation they are those of Dr. GRPO (arXiv 2503.20783, section 3.2). A group
    whose rewards are all equal has advantages of 0. Example: rewards `[1, -1, -1, -1]` give
    `[1.73, -0.58, -0.58, -0.58]` scaled, and `[1.5, -0.5, -0.5, -0.5]` unscaled. A completion without a reward is left
    out of its group (ours): `[1, -1, NaN]` gives `[1, -1, 0]`.

    Args:
      rewards: float [G, M]. NaN: no reward.
      scale_rewards: divide by the standard deviation of the group.

    Returns:
      float [G, M]. 0 for completions that cannot be compared.
    """
    chex.assert_rank(rewards, 2)
    advantages = np.zeros_like(rewards)
    for group, is_varied, out in zip(rewards, has_variance(rewards), advantages, strict=True):
        if not is_varied:  # the mean of equal rewards may be rounded, and differ from them
            continue
        mask = ~np.isnan(group)
        r = group[mask]
        centered = r - r.mean()
        out[mask] = centered / (r.std() + 1e-6) if scale_rewards else centered
    return advantages


def length_penalty(lengths: np.ndarray, max_completion_length: int, soft_punish_cache: int) -> np.ndarray:
    """The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), which is added to the reward.

        0                                                     up to max_completion_length - soft_punish_cache tokens
        (max_completion_length - soft_punish_cache - length) / soft_punish_cache     beyond; -1 at the limit

    Args:
      lengths: int [...], tokens of the completions.
      soft_punish_cache: tokens over which the penalty rises. 0: no penalty.

    Returns:
      float64 [...], from -1 to 0.
    """
    if soft_punish_cache == 0:
        return np.zeros(lengths.shape)
    return np.clip((max_completion_length - soft_punish_cache - lengths) / soft_punish_cache, -1.0, 0.0)


def repeat_penalty(repeats: np.ndarray, penalty: float) -> np.ndarray:
    """The penalty of repeated attempts, which is added to the reward: ours, not in the paper.

    Args:
      repeats: int [...], attempts of each completion that repeat an earlier one.
      penalty: of one such attempt. 0: no penalty.

    Returns:
      float64 [...], from -1 to 0.
    """
    return -np.minimum(penalty * repeats, 1.0)
