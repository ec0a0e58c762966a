"""How a model searches in its answers: attempts, backtracks, and whether a backtrack repairs or spoils.

An attempt is the text between two backtracks (or restarts). Each attempt has an answer of its own, which is right,
wrong or missing: so the measures say what was right before and after each backtrack, and whether the first attempt was
right already.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astro_jax import attempts
from astro_jax.attempts import detector
from astro_jax.evaluate import statistics
from astro_jax.evaluate.metrics import success_rate
from astro_jax.phrases import count_backtracks
from astro_jax.types import Problem
from astro_jax.verify import countdown
from astro_jax.verify.answer import extract, until_end_token
from astro_jax.verify.number import NUMBER, SIGNED
from astro_jax.verify.same_answer import value_key

# Bounded: the pattern needs time with the square of a run of spaces.
_RESULT = re.compile(r"=\s{0,8}\$?([-\d.,/\\a-z{}()^*+ ]{0,200}\d[})]*|[a-z])\$?(?=[\s,.;]|$)", re.IGNORECASE)
_WITH_UNIT = re.compile(rf"\$?({SIGNED})\s+[a-zA-Z].*")  # "15 dollars"
MOST_ATTEMPTS = 5  # in the table of accuracy by attempts, "5+" stands for more


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """The search in one answer.

    Attributes:
      reflections, backtracks, restarts: events in any words (detector). Restarts are not among the backtracks.
      phrase_backtracks: backtracks and restarts in our fixed phrases.
      rights: for each attempt whether its answer is right; None for an attempt without an answer.
      repeats: attempts that repeat an earlier attempt (attempts.count_repeats).
    """

    reflections: int
    backtracks: int
    restarts: int
    phrase_backtracks: int
    rights: tuple[bool | None, ...]
    repeats: int

    @property
    def attempts(self) -> int:
        """The number of attempts, at least 1."""
        return len(self.rights)

    @property
    def changes(self) -> list[str]:
        """What each backtrack did: "repair", "spoil", "stays right", "stays wrong", or "undecided"."""
        names = {
            (False, True): "repair",
            (True, False): "spoil",
            (True, True): "stays right",
            (False, False): "stays wrong",
        }
        return [names.get((a, b), "undecided") for a, b in zip(self.rights, self.rights[1:], strict=False)]  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Behaviour:
        """The behaviour that `dataclasses.asdict` and JSON have turned into `value`, or `row` into columns."""
        fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        return cls(**fields | {"rights": tuple(fields["rights"])})

    def right_after(self, max_backtracks: int, correct: bool) -> bool:
        """Whether the answer is right if it ends at the backtrack after `max_backtracks`.

        A sample depends on the text before it alone, so a model that must end there would have written the same text.

        Args:
          correct: whether the whole answer is right.
        """
        return self.rights[max_backtracks] is True if self.attempts > max_backtracks + 1 else correct

    def row(self) -> dict[str, Any]:
        """The columns of answers.parquet."""
        changes = self.changes
        return {
            "reflections": self.reflections, "backtracks": self.backtracks, "restarts": self.restarts,
            "phrase_backtracks": self.phrase_backtracks, "attempts": self.attempts, "rights": list(self.rights),
            "repeats": self.repeats, "first_attempt_right": self.rights[0],
            "repairs": changes.count("repair"), "spoils": changes.count("spoil"),
        }  # fmt: skip


def measure(problem: Problem, response: str) -> Behaviour:
    """Measure the search in one answer."""
    response = until_end_token(response)
    events = detector.find(response)
    segments = attempts.split(response, events)
    positions = itertools.accumulate(map(len, segments))
    rights = tuple(_is_right(problem, s, response[:end]) for s, end in zip(segments, positions, strict=True))
    return Behaviour(
        detector.count(events, "reflection"), detector.count(events, "backtrack"), detector.count(events, "restart"),
        count_backtracks(response), rights, attempts.count_repeats(segments),
    )  # fmt: skip


def _is_right(problem: Problem, segment: str, response: str) -> bool | None:
    """Whether the answer of an attempt is right; None if the attempt or the problem has none.

    Args:
      segment: the attempt.
      response: the response up to the end of the attempt.
    """
    if problem.task == "countdown":
        verdict = countdown.verify(problem, response, stopped=True)
        return None if verdict.answer is None and "which" not in segment else verdict.correct
    answer = attempt_answer(segment)
    return None if answer is None or not problem.answer else value_key(answer) == value_key(problem.answer)


def attempt_answer(segment: str) -> str | None:
    """The answer of an attempt: a box, "the answer is" or a tag, else the last result of an equation, or number."""
    before, tag, _ = segment.rpartition("</answer>")
    if tag and "<answer>" in before:
        return before.rpartition("<answer>")[2].strip()
    if (marked := extract(segment, "lenient")) is not None:
        return number[1] if (number := _WITH_UNIT.fullmatch(marked)) else marked
    if results := _RESULT.findall(segment):
        return results[-1].strip(" .,")
    numbers = NUMBER.findall(segment)
    return numbers[-1] if numbers else None


def summarize(
    behaviours: Sequence[Behaviour], correct: Sequence[bool], ids: Sequence[str] | None = None
) -> dict[str, Any]:
    """The figures of many answers.

    Args:
      correct: whether each answer as a whole is right.
      ids: the problem of each answer, where a problem has several. Answers to one problem are not independent.

    Returns:
      mean events and `attempts` of an answer; the shares of answers that reflect, go back, restart, `repeat` an
      attempt, and whose `first_attempt_right`; `changes`, the number of backtracks by what they did; `repair_rate`,
      repairs among the backtracks from a wrong attempt, and `spoil_rate`, spoils among those from a right one (None if
      there are none); and `by_attempts`, the share of right answers by the number of attempts, with an interval over
      problems (metrics.success_rate, or with `ids` statistics.mean_over_problems).
    """
    changes = Counter(change for b in behaviours for change in b.changes)
    numbers, right = np.minimum([b.attempts for b in behaviours], MOST_ATTEMPTS), np.asarray(correct)
    by_attempts = {}
    for n in np.unique(numbers).tolist():
        name, among = str(n) if n < MOST_ATTEMPTS else f"{n}+", numbers == n
        by_attempts[name] = (
            success_rate(right[among].tolist()) if ids is None else statistics.mean_over_problems(ids, right, among)
        )
    events = ("reflections", "backtracks", "restarts")
    return {
        **{name: _mean([getattr(b, name) for b in behaviours]) for name in (*events, "phrase_backtracks", "attempts")},
        **{f"with_{name}": _mean([getattr(b, name) > 0 for b in behaviours]) for name in events},
        "repeat": _mean([b.repeats > 0 for b in behaviours]),
        "first_attempt_right": _mean([b.rights[0] is True for b in behaviours]),
        "changes": dict(sorted(changes.items())),
        "repair_rate": _rate(changes["repair"], changes["stays wrong"]),
        "spoil_rate": _rate(changes["spoil"], changes["stays right"]),
        "by_attempts": by_attempts,
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _rate(part: int, rest: int) -> float | None:
    return round(part / (part + rest), 4) if part + rest else None
