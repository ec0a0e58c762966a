"""Rates with 95% intervals, and majority votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import scipy.stats


def rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    """Share of successes over independent problems, with Wilson's 95% interval: mean, low, high, n."""
    n = len(outcomes)
    interval = scipy.stats.binomtest(sum(outcomes), n).proportion_ci(0.95, method="wilson")
    return {
        "mean": round(sum(outcomes) / n, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "n": n,
    }


def majority(answers: Sequence[str | None]) -> str | None:
    """The most common answer; the first of them in a tie. Answers that did not parse have no vote."""
    votes = Counter(a for a in answers if a is not None)
    return votes.most_common(1)[0][0] if votes else None
