"""Success rates of one answer a problem, with 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scipy.stats


def success_rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    """Share of successes over independent problems, with Wilson's 95% interval.

    With one sample a problem, the share is pass@1: the Codex paper's estimator of pass@k (arXiv 2107.03374,
    equation 1) is `1 - C(n - c, k) / C(n, k)` for c successes among n samples, which is c / n for k = 1.

    Args:
      outcomes: one outcome a problem, at least one.

    Returns:
      mean, low and high as fractions from 0 to 1, rounded to 4 digits, and n. Example: 300 successes of 1,024 give
      `{"mean": 0.293, "low": 0.2659, "high": 0.3216, "n": 1024}`.
    """
    n = len(outcomes)
    interval = scipy.stats.binomtest(sum(outcomes), n).proportion_ci(0.95, method="wilson")
    return {
        "mean": round(sum(outcomes) / n, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "n": n,
    }
