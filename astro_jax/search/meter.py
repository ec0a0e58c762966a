"""What a search costs, over all the processes and restarts that it takes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from etils import epath

from astro_jax import storage
from astro_jax.sampler import EngineStats
from astro_jax.search.mcts import Driver

# Sums, of which `shares` makes what people read. Work that a kill has lost is in none of them.
NAMES = ("seconds", "sampler_seconds", "nodes", "verdicts", "right", "torn", *EngineStats.__dataclass_fields__)


class Meter:
    """The sums of one process, in a file that it goes on with after a restart.

    Attributes:
      nodes: grown here. torn: trees that were lost with the end of a file.
    """

    def __init__(self, path: epath.Path, driver: Driver):
        self.path, self.driver = path, driver
        self.nodes = self.torn = 0
        self._before = storage.read_json(path) if path.exists() else {}
        self._stats = dataclasses.replace(driver.policy.engine.stats)
        self._start = time.monotonic()

    def here(self) -> dict[str, float]:
        """The sums of this process since it started."""
        driver, stats = self.driver, self.driver.policy.engine.stats
        return {
            "seconds": time.monotonic() - self._start, "sampler_seconds": driver.sampling, "nodes": self.nodes,
            "verdicts": driver.judged, "right": driver.right, "torn": self.torn,
        } | {name: value - getattr(self._stats, name) for name, value in vars(stats).items()}  # fmt: skip

    def save(self) -> None:
        """Write the file, with what it held before."""
        storage.write_json(self.path, total([self._before, self.here()]))


def total(sums: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The sums of several processes."""
    each = list(sums)
    return {name: round(sum(s.get(name, 0) for s in each), 3) for name in NAMES}


def shares(sums: dict[str, float]) -> dict[str, float]:
    """What the sums mean.

    Returns:
      nodes and tokens a second; the sampler's occupancy and prefix_reuse; solved, the share of right verdicts, those of
      rollouts included; host, the share of the time that is not spent in the sampler (choosing, judging, writing).
    """
    seconds = max(sums["seconds"], 1e-9)
    stats = EngineStats(**{name: int(sums[name]) for name in EngineStats.__dataclass_fields__})
    return {
        "nodes/s": sums["nodes"] / seconds,
        "tokens/s": sums["tokens"] / seconds,
        "occupancy": stats.occupancy,
        "prefix_reuse": stats.prefix_reuse,
        "solved": sums["right"] / max(sums["verdicts"], 1),
        "host": 1 - sums["sampler_seconds"] / seconds,
    }
