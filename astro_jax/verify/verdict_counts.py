"""The verdicts of a stage, counted by status over all processes and restarts of the stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from etils import epath

from astro_jax import storage
from astro_jax.types import Status

MAX_LISTED = 1000  # disagreements of the graders that the file lists
SAVE_SECONDS = 15.0


class VerdictCounts:
    """Verdicts by status, and the answers on which the two graders disagree, in a file that a restart continues.

    Responses whose verdicts a kill has lost are judged again. They count as often as they were judged.

    Attributes:
      path: the JSON file. None: the counts are only in memory.
      by_status: the number of verdicts of each status.
      disagreed: the number of answers of mathematics on which math-verify and the second grader disagree.
      disagreements: the first disagreements, as {"gold", "answer", "correct"}. "correct" is math-verify's verdict, and
        the verdict that counts.
      judged: with a judge (`verify.judge`), the responses by what the rules and the judge say: "right approved",
        "right rejected", "wrong approved" (the judge was fooled) and "wrong rejected".
    """

    def __init__(self, path: epath.Path | None = None):
        saved = storage.read_json(path) if path is not None and path.exists() else {}
        self.path = path
        self.by_status: Counter[str] = Counter(saved.get("verdicts", {}))
        self.disagreed: int = saved.get("disagreed", 0)
        self.disagreements: list[dict[str, Any]] = saved.get("disagreements", [])
        self.judged: Counter[str] = Counter(saved.get("judged", {}))
        self._last_save = time.monotonic()

    def add(self, statuses: Iterable[Status]) -> None:
        """Count verdicts, and save the file if the last save is long ago."""
        self.by_status.update(statuses)
        if time.monotonic() - self._last_save >= SAVE_SECONDS:
            self.save()

    def add_disagreement(self, gold: str, answer: str | None, correct: bool) -> None:
        """Count an answer on which the graders disagree, and list it if the list is not full."""
        self.disagreed += 1
        if len(self.disagreements) < MAX_LISTED:
            self.disagreements.append({"gold": gold, "answer": answer, "correct": correct})

    def add_judged(self, correct: bool, approved: bool) -> None:
        """Count a response by what the rules and the judge say."""
        self.judged[f"{'right' if correct else 'wrong'} {'approved' if approved else 'rejected'}"] += 1

    def save(self) -> None:
        """Write the file, if the counts have a path and are not empty."""
        self._last_save = time.monotonic()
        if self.path is not None and self.by_status:
            record = {"verdicts": dict(self.by_status), "disagreed": self.disagreed}
            judged = {"judged": dict(self.judged)} if self.judged else {}
            storage.write_json(self.path, record | {"disagreements": self.disagreements} | judged)


def summary(folder: epath.Path) -> dict[str, Any]:
    """Sum the counts of all processes of a stage, for the stage's manifest: `verdicts`, `disagreements`, `judged`.

    An entry without counts is left out.
    """
    records = [storage.read_json(path) for path in sorted(folder.glob("verdicts-*.json"))]
    verdicts = sum((Counter(record["verdicts"]) for record in records), Counter[str]())
    disagreed = sum(record["disagreed"] for record in records)
    judged = sum((Counter(record.get("judged", {})) for record in records), Counter[str]())
    counts = {"verdicts": dict(verdicts), "disagreements": disagreed, "judged": dict(judged)}
    return {name: count for name, count in counts.items() if count}
