"""What a stage's verdicts come to, over all the processes and restarts that it takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from etils import epath

from astro_jax import storage

LISTED = 1000  # disagreements of graders that are kept
SAVE_SECONDS = 15.0


class Tally:
    """Verdicts by status, and the answers on which the graders disagree, in a file that a restart goes on with.

    What a kill has lost and is judged again counts as often as it was judged.

    Attributes:
      counts: verdicts by status. disagreed: answers of mathematics on which math-verify and the second grader differ;
        disagreements: the first of them: gold, answer, correct (math-verify's verdict, which counts).
    """

    def __init__(self, path: epath.Path | None = None):
        found = storage.read_json(path) if path is not None and path.exists() else {}
        self.path = path
        self.counts: Counter[str] = Counter(found.get("verdicts", {}))
        self.disagreed: int = found.get("disagreed", 0)
        self.disagreements: list[dict[str, Any]] = found.get("disagreements", [])
        self._saved = time.monotonic()

    def add(self, statuses: Iterable[str]) -> None:
        self.counts.update(statuses)
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def disagree(self, gold: str, answer: str | None, correct: bool) -> None:
        self.disagreed += 1
        if len(self.disagreements) < LISTED:
            self.disagreements.append({"gold": gold, "answer": answer, "correct": correct})

    def save(self) -> None:
        """Write the file, where there is one and anything was judged."""
        self._saved = time.monotonic()
        if self.path is not None and self.counts:
            record = {"verdicts": dict(self.counts), "disagreed": self.disagreed}
            storage.write_json(self.path, record | {"disagreements": self.disagreements})


def summary(folder: epath.Path) -> dict[str, Any]:
    """For a stage's manifest: the verdicts of all its processes, and how many graders disagreed on, where any were."""
    each = [storage.read_json(path) for path in sorted(folder.glob("verdicts-*.json"))]
    verdicts = sum((Counter(e["verdicts"]) for e in each), Counter[str]())
    disagreed = sum(e["disagreed"] for e in each)
    return ({"verdicts": dict(verdicts)} if verdicts else {}) | ({"disagreements": disagreed} if disagreed else {})
