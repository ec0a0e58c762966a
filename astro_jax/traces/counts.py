"""The counts of the traces stage: what each filter left. Each tree is counted as it passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from astro_jax.storage import Json
from astro_jax.traces.linearize import Terminals
from astro_jax.traces.pool import PooledExample

_TERMINALS = ("correct", "wrong", "without an answer")
_JUDGEMENTS = ("approved", "rejected", "unread")


def count_terminals(terminals: Terminals) -> Json:
    """Count the terminals of one tree."""
    unread = sum(node.answer is None for node in terminals.wrong)
    counts = (len(terminals.correct), len(terminals.wrong) - unread, unread)
    return dict(zip(_TERMINALS, counts, strict=True))


class TraceCounts:
    """Counts trees. No tree is kept."""

    def __init__(self) -> None:
        self._trees = self._valid = 0
        self._terminals: Counter[str] = Counter()
        self._evaluation: Counter[str] | None = None  # None without self-evaluation
        self._rewrites: Counter[str] = Counter()

    def add_tree(self, record: Json) -> None:
        """Count a record of `dataset.make_records`."""
        self._trees += 1
        self._valid += bool(record["terminals"]["correct"])
        self._terminals.update(record["terminals"])
        if record["evaluation"] is not None:
            self._evaluation = _add_evaluation(self._evaluation or Counter(), record["evaluation"]["terminals"])
        for example in (*record["astro"], *record["direct"]):
            self._rewrites.update(example.get("rewrites", {}))

    def figures(self, astro: Sequence[PooledExample], direct: Sequence[PooledExample]) -> dict[str, Any]:
        """The counts of all trees so far and of the two sets, as in counts.json."""
        figures: dict[str, Any] = {
            "trees": self._trees, "valid trees": self._valid, "yield": _share(self._valid, self._trees),
            "terminals": {kind: self._terminals[kind] for kind in _TERMINALS},
        }  # fmt: skip
        if self._evaluation is not None:
            figures["self-evaluation"] = _evaluation_figures(self._evaluation)
        if self._rewrites:
            figures["rewrites"] = _rewrite_figures(self._rewrites)
        return figures | {"ASTRO": _example_figures(astro), "Direct": _example_figures(direct)}


def _example_figures(examples: Sequence[PooledExample]) -> Json:
    ks = [example.k for example in examples if example.k]
    return {
        "examples": len(examples),
        "direct solutions": len(examples) - len(ks),
        "search solutions": len(ks),
        "mean k": round(sum(ks) / max(len(ks), 1), 3),
        "mean backtracks": round(sum(ks) / max(len(examples), 1), 3),
        "distinct": len({example.digest for example in examples}),
    }


def _add_evaluation(counts: Counter[str], terminals: list[Json]) -> Counter[str]:
    """Add the judged terminals of one tree."""
    counts["judged"] += len(terminals)
    counts["passed"] += sum(terminal["passed"] for terminal in terminals)
    counts["trees"] += bool(terminals) and not any(terminal["passed"] for terminal in terminals)
    for key in _JUDGEMENTS:
        counts[key] += sum(terminal[key] for terminal in terminals)
    return counts


def _evaluation_figures(counts: Counter[str]) -> Json:
    return {
        "judged": counts["judged"], "passed": counts["passed"],
        "share passed": _share(counts["passed"], counts["judged"]),
        **{f"judgements {key}": counts[key] for key in _JUDGEMENTS},
        "trees without any left": counts["trees"],
    }  # fmt: skip


def _rewrite_figures(counts: Counter[str]) -> Json:
    segments, accepted = counts["segments"], counts["accepted"]
    reasons = sorted(counts.keys() - {"segments", "accepted"})
    return {
        "segments": segments, "accepted": accepted, "share accepted": _share(accepted, segments),
        "by the template": segments - accepted, **{f"rejected: {reason}": counts[reason] for reason in reasons},
    }  # fmt: skip


def _share(count: int, total: int) -> float:
    return round(count / max(total, 1), 4)
