"""The cost of a search: time, tokens and verdicts, summed over all processes and restarts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping

from etils import epath

from astro_jax import storage
from astro_jax.sampler import EngineStats
from astro_jax.search.tree_sampler import TreeSampler

_ENGINE_FIELDS = tuple(field.name for field in dataclasses.fields(EngineStats))
# The sums of a cost file. Work that a kill has lost is in none of them.
FIELDS = ("seconds", "sampler_seconds", "nodes", "verdicts", "right", "torn", *_ENGINE_FIELDS)


class CostMeter:
    """Counts the cost of one process, and adds it to a file that earlier starts of the process may have written.

    Args:
      path: the file, search/cost-i-of-n.json.
      torn: trees that were lost because a file was cut short.

    Attributes:
      nodes: nodes that this process has added to trees.
    """

    def __init__(self, path: epath.Path, sampler: TreeSampler, torn: int = 0):
        self.path, self.sampler, self.torn = path, sampler, torn
        self.nodes = 0
        self._earlier = storage.read_json(path) if path.exists() else {}
        self._stats_at_start = dataclasses.replace(sampler.policy.engine.stats)
        self._start = time.monotonic()

    def sums(self) -> dict[str, float]:
        """The sums of this process since its start."""
        sampler, stats = self.sampler, self.sampler.policy.engine.stats
        return {
            "seconds": time.monotonic() - self._start, "sampler_seconds": sampler.seconds, "nodes": self.nodes,
            "verdicts": sampler.verdicts, "right": sampler.correct_verdicts, "torn": self.torn,
        } | {name: getattr(stats, name) - getattr(self._stats_at_start, name) for name in _ENGINE_FIELDS}  # fmt: skip

    def save(self) -> None:
        """Write the sums of all starts of this process to the file."""
        storage.write_json(self.path, add_up([self._earlier, self.sums()]))


def add_up(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sums of several processes or starts."""
    terms = list(costs)
    return {name: round(sum(term.get(name, 0) for term in terms), 3) for name in FIELDS}


def rates(sums: Mapping[str, float]) -> dict[str, float]:
    """The rates and shares that people read.

    Returns:
      nodes/s and tokens/s; the engine's occupancy and prefix_reuse; solved, the share of correct verdicts, those on
      rollouts included; host, the share of the time outside the sampler (selection, verdicts, files).
    """
    seconds = max(sums["seconds"], 1e-9)
    stats = EngineStats(**{name: int(sums[name]) for name in _ENGINE_FIELDS})
    return {
        "nodes/s": sums["nodes"] / seconds,
        "tokens/s": sums["tokens"] / seconds,
        "occupancy": stats.occupancy,
        "prefix_reuse": stats.prefix_reuse,
        "solved": sums["right"] / max(sums["verdicts"], 1),
        "host": 1 - sums["sampler_seconds"] / seconds,
    }
