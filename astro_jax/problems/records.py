"""Read problems from records, such as the lines of a JSONL file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.types import Problem
from astro_jax.verify.answer import extract
from astro_jax.verify.number import parse

RecordTask = Literal["number", "math", "judged"]  # a text and an answer, which "judged" does not need
# Texts that published data sets put in place of a missing answer.
MISSING_ANSWERS = ("none", "nan", "inf", "-inf", "notfound", "not found", "proof")
FIELDS = {"problem": "problem", "answer": "answer", "solution": "solution"}


def read_jsonl(path: epath.Path, task: RecordTask = "number", fields: Mapping[str, str] = FIELDS) -> list[Problem]:
    """Read the problems of a JSONL file, each text once.

    A line is {"problem": text, "answer": text or number}. The task "judged" needs no answer. A line may have a
    "solution", a text that a weak base model can be fine-tuned on (base_sft).

    Args:
      fields: the file's name of each of the three fields.

    Raises:
      AstroError: if a line lacks a field, has an answer that cannot be read, or contradicts an earlier line.
    """
    lines = ((f"{path}, line {i}", record) for i, record in enumerate(storage.read_jsonl(path), 1))
    return from_records(lines, task, fields)


def from_records(
    records: Iterable[tuple[str, Mapping[str, Any]]],
    task: RecordTask,
    fields: Mapping[str, str] = FIELDS,
    skipped: Counter[str] | None = None,
) -> list[Problem]:
    """Make a problem of each record. Records with the same text and answer give one problem.

    Args:
      records: pairs of (place, record). Error messages name the place.
      skipped: counts the skipped records by reason. None: a record that cannot be used is an error.

    Raises:
      AstroError: if `skipped` is None, and a record cannot be used.
    """
    problems: dict[str, Problem] = {}
    for place, record in records:
        problem = _problem({name: record.get(column) for name, column in fields.items()}, task)
        if isinstance(problem, str):
            reason = problem
        else:
            first = problems.setdefault(problem.id, problem)
            if first.answer == problem.answer or (task == "number" and parse(first.answer) == parse(problem.answer)):
                if skipped is not None and first is not problem:
                    skipped["the same text again"] += 1
                continue
            reason = f"this problem was there before, with the answer {first.answer}"
        if skipped is None:
            raise AstroError(f"{place}: {reason}")
        skipped[reason.partition(", found")[0].partition(", with the")[0]] += 1
    return list(problems.values())


def _problem(record: Mapping[str, Any], task: RecordTask) -> Problem | str:
    """Make a problem of a record, or return the reason why the record cannot be used."""
    text, answer, solution = record.get("problem"), record.get("answer"), record.get("solution") or ""
    if not isinstance(text, str) or not text.strip():
        return f"`problem` must be a text, found {_shown(text)}"
    if not isinstance(solution, str):
        return "`solution` must be a text"
    if task == "number" and parse(str(answer)) is None:
        return f"`answer` must be a number, found {_shown(answer)}"
    if task == "math" and not is_mathematics(answer):
        return f"`answer` must be mathematics, found {_shown(answer)}"
    answer = "" if str(answer).strip().lower() in MISSING_ANSWERS else str(answer)
    digest = hashlib.blake2b(normalized(text).encode(), digest_size=8).hexdigest()
    return Problem(digest, text, answer, {"solution": solution}, task)


def _shown(value: Any) -> str:
    return f"{value!r}" if value is not None else "None; problems.fields names a field of another name"


def normalized(text: str) -> str:
    """Write a text without capitals and with single spaces. Problems are the same if these forms are equal."""
    return " ".join(text.lower().split())


def is_mathematics(answer: Any) -> bool:
    """Whether a gold answer is a number, or a text that the verifier accepts and that does not say "none"."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer != answer:
        return False
    text = str(answer).strip()
    return text.lower() not in MISSING_ANSWERS and extract(f"\\boxed{{{text}}}", "strict") is not None
