"""A model as a judge of wrong answers: it names the error where the rules (error_classes) only guess.

The rules leave the texts of the classes copying and planning open: they see no calculation in words. The judge gives N
judgements of each, and the class that most of them name wins. In a tie, and without a class, that of the rules stays.

OUT/judgements-*.jsonl  the votes of each open answer; resumable
OUT/errors-00000.jsonl  the class of each open answer
OUT/result.json         the figures (`measure`)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.evaluate import error_classes, judged, model_suites, responses, statistics, suites
from astro_jax.evaluate.error_classes import CLASSES, JUDGED, ErrorClass
from astro_jax.judge import Judge, read_verdict
from astro_jax.storage import Json, Shards
from astro_jax.types import Problem, Response

VERDICTS = {f"Error: {name}": name for name in JUDGED}  # by the last line of a judgement, as `prompts.classify` asks
_ERRORS = "errors"

Key = tuple[str, int]  # the problem and the sample of an answer


class WrongAnswer(NamedTuple):
    """A wrong answer to a problem of a suite.

    Attributes:
      sample: from 0 to n - 1.
      response: the answer; its problem has the right answer.
      by_rules: the error class by the rules.
      is_open: whether the rules only guess it.
    """

    sample: int
    response: Response
    by_rules: ErrorClass
    is_open: bool

    @property
    def key(self) -> Key:
        """The problem and the sample."""
        return self.response.problem.id, self.sample


def read(folder: epath.Path, limit: int | None = None) -> tuple[list[WrongAnswer], int]:
    """Read the wrong answers of a model to a suite, and the number of all its answers.

    Args:
      limit: only so many answers, right ones too.

    Raises:
      AstroError: when the folder holds none, or answers of an older version, and when no class is open.
    """
    if not (folder / suites.ANSWERS).exists():
        raise AstroError(
            f"{folder}: no answers to a suite; give runs/eval/MODEL/SUITE of `astro eval MODEL --suite SUITE`"
        )
    rows = responses.read_parquet(folder / suites.ANSWERS)[:limit]
    if any("error_is_open" not in row for row in rows):
        raise AstroError(
            f"{folder}: judged by an older version; run the same `astro eval` again, which samples nothing"
        )
    wrong = [_wrong_answer(row) for row in rows if row["error"] is not None]
    if not any(answer.is_open for answer in wrong):
        raise AstroError(f"{folder}: {len(wrong)} answers are wrong, and the rules leave none of their classes open")
    return wrong, len(rows)


def _wrong_answer(row: Json) -> WrongAnswer:
    problem = Problem(row["problem_id"], row["prompt"], row["gold"])
    return WrongAnswer(row["sample"], Response(problem, row["response"], not row["truncated"]), row["error"],
                       row["error_is_open"])  # fmt: skip


def read_labels(path: epath.Path, wrong: Sequence[WrongAnswer]) -> dict[Key, ErrorClass]:
    """Read error classes by hand: JSONL of `problem_id`, `sample` (else 0) and `error`. Other fields are ignored.

    Raises:
      AstroError: for a file without a label, a class that is not known, and an answer that is not among the wrong ones.
    """
    keys, labels = {answer.key for answer in wrong}, {}
    for number, row in enumerate(storage.read_jsonl(path), 1):
        key, label = (row.get("problem_id"), row.get("sample", 0)), row.get("error")
        if label not in CLASSES:
            raise AstroError(f"{path}, line {number}: error is {label!r}; the classes are {', '.join(CLASSES)}")
        if key not in keys:
            raise AstroError(
                f"{path}, line {number}: problem_id {key[0]!r}, sample {key[1]!r} is not among the wrong answers read"
            )
        labels[key] = label
    if not labels:
        raise AstroError(f"{path}: no labels; a line needs problem_id, sample and error")
    return labels


def measure(
    out: epath.Path,
    wrong: Sequence[WrongAnswer],
    answers: int,
    judge: Judge,
    settings: Json,
    labels: Mapping[Key, ErrorClass],
) -> Json:
    """Judge the open answers, and write the shares of the classes. What an earlier call has judged is kept.

    Args:
      answers: how many, with the right ones.
      judge: with the verdicts VERDICTS.
      settings: what the judgements depend on.
      labels: classes by hand.

    Returns:
      `answers`, `wrong` and `open`, counts; `unread`, the share of judgements that name no class, were cut off, or were
      not sampled because the prompt was too long; `changed`, the share
      of the open answers whose class the judge changes; `by_rules` and `errors`, the shares of all answers by class,
      without and with the judge (error_classes.summarize); with labels `agreement` (`agreement`), of all labelled
      answers and of the open ones among them.

    Raises:
      AstroError: when the folder holds judgements of other settings.
    """

    def rows_of(shard: Sequence[Response], progress: Callable[[int], None]) -> list[Json]:
        return [{"votes": count(texts), "texts": texts} for texts in judge.ask(shard, progress)]

    asked = [answer for answer in wrong if answer.is_open]
    settings, rows = judged.collect(out, [a.response for a in asked], rows_of, judge.n, settings)
    by_judge = {a.key: elect(row["votes"], a.by_rules) for a, row in zip(asked, rows, strict=True)}
    Shards(out, _ERRORS).write(0, [
        {"problem_id": a.key[0], "sample": a.sample, "error": by_judge[a.key], "by_rules": a.by_rules} for a in asked
    ])  # fmt: skip
    classes = [by_judge.get(a.key, a.by_rules) for a in wrong]
    votes = sum(sum(row["votes"].values()) for row in rows)
    result = {
        "answers": answers, "wrong": len(wrong), "open": len(asked),
        "unread": round(1 - votes / (judge.n * len(asked)), 4),
        "changed": round(float(np.mean([by_judge[a.key] != a.by_rules for a in asked])), 4),
        "by_rules": error_classes.summarize([a.by_rules for a in wrong], answers),
        "errors": error_classes.summarize(classes, answers),
        **({"agreement": agreement(wrong, classes, labels)} if labels else {}), "settings": settings,
    }  # fmt: skip
    storage.write_json(out / judged.RESULT, result)
    return result


def count(texts: Sequence[str | None]) -> dict[ErrorClass, int]:
    """Count the judgements that name each class."""
    return Counter(VERDICTS[verdict] for text in texts if (verdict := read_verdict(text, [*VERDICTS])) is not None)


def elect(votes: Mapping[ErrorClass, int], by_rules: ErrorClass) -> ErrorClass:
    """Choose the class with most votes. Without one, and in a tie for the first place, it is that of the rules."""
    most = max(votes.values(), default=0)
    first = [name for name, number in votes.items() if number == most]
    return first[0] if len(first) == 1 else by_rules


def agreement(
    wrong: Sequence[WrongAnswer], classes: Sequence[ErrorClass], labels: Mapping[Key, ErrorClass]
) -> dict[str, Any]:
    """Compare the classes of the rules, and those with the judge, with classes by hand.

    Returns:
      by "all" and "open" (None without such labels): `labelled`, the number of answers, and `rules` and `judge`, the
      shares that agree, means over problems with intervals (statistics.summarize).
    """
    labelled = [(a, name) for a, name in zip(wrong, classes, strict=True) if a.key in labels]
    ids = [a.key[0] for a, _ in labelled]
    right = {
        "rules": np.asarray([a.by_rules == labels[a.key] for a, _ in labelled]),
        "judge": np.asarray([name == labels[a.key] for a, name in labelled]),
    }
    is_open = np.asarray([a.is_open for a, _ in labelled])
    return {
        group: {"labelled": int(among.sum())} | {
            name: statistics.mean_over_problems(ids, holds, among) for name, holds in right.items()
        } if among.any() else None
        for group, among in (("all", np.ones(len(ids), bool)), ("open", is_open))
    }  # fmt: skip


def folder_of(answers: epath.Path, judge: str) -> epath.Path:
    """The folder OUT for the errors of a judge, beside the answers."""
    return answers / f"errors-{model_suites.folder_name(judge)}"


def read_classes(answers: epath.Path, judge: str) -> dict[Key, ErrorClass]:
    """Read the classes that a judge has given to answers. There are none where all classes are decided by rules.

    Raises:
      AstroError: when the judge has not read all answers whose class the rules leave open.
    """
    folder = folder_of(answers, judge)
    result = folder / judged.RESULT
    if result.exists() and storage.read_json(result)["settings"].get("limit") is None:
        return {(row["problem_id"], row["sample"]): row["error"] for row in Shards(folder, _ERRORS).read()}
    if any(row.get("error_is_open") for row in responses.read_parquet(answers / suites.ANSWERS)):
        raise AstroError(
            f"{answers}: errors not judged; run `astro errors {judge} {answers}` to its end, without --limit"
        )
    return {}
