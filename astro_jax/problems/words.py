"""Problems in words, with an answer: read from records, split by their text, and worked where no solution is given."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.types import Problem
from astro_jax.verify.answer import extract
from astro_jax.verify.number import NUMBER, calculate, parse

Task = Literal["number", "math"]
# What published sets say in the place of an answer.
NO_ANSWERS = ("none", "nan", "inf", "-inf", "notfound", "not found", "proof")
FIELDS = {"problem": "problem", "answer": "answer", "solution": "solution"}


def read(path: epath.Path, task: Task = "number", fields: Mapping[str, str] = FIELDS) -> list[Problem]:
    """All problems of a JSONL file, each text once: {"problem": text, "answer": ...} and, where the file has it,
    "solution": text, which a model can be warmed up on. `fields` names them otherwise.

    Raises:
      AstroError: naming the line, when a field is missing, or the answer cannot be read or contradicts an earlier line.
    """
    rows = ((f"{path}, line {i}", r) for i, r in enumerate(storage.read_jsonl(path), 1))
    return collect(rows, task, fields)


def collect(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    task: Task,
    fields: Mapping[str, str] = FIELDS,
    skipped: Counter[str] | None = None,
) -> list[Problem]:
    """Problems of records, each with where it stands.

    Args:
      skipped: counts what is left out by its reason; none: the first is an error.
    """
    found: dict[str, Problem] = {}
    for where, record in rows:
        problem = _problem({ours: record.get(theirs) for ours, theirs in fields.items()}, task)
        if isinstance(problem, str):
            reason = problem
        else:
            same = found.setdefault(problem.id, problem)
            agrees = same.answer == problem.answer or (task == "number" and parse(same.answer) == parse(problem.answer))
            if agrees:
                if skipped is not None and same is not problem:
                    skipped["the same text again"] += 1
                continue
            reason = f"this problem was there before, with the answer {same.answer}"
        if skipped is None:
            raise AstroError(f"{where}: {reason}")
        skipped[reason.partition(", found")[0].partition(", with the")[0]] += 1
    return list(found.values())


def _problem(record: Mapping[str, Any], task: Task) -> Problem | str:
    """A problem, or what is wrong with its record."""
    text, answer, solution = record.get("problem"), record.get("answer"), record.get("solution") or ""
    if not isinstance(text, str) or not text.strip():
        return "`problem` must be a text"
    if not isinstance(solution, str):
        return "`solution` must be a text"
    if task == "number" and parse(str(answer)) is None:
        return f"`answer` must be a number, found {answer!r}"
    if task == "math" and not _mathematics(answer):
        return f"`answer` must be mathematics, found {answer!r}"
    digest = hashlib.blake2b(_normal(text).encode(), digest_size=8).hexdigest()
    return Problem(digest, text, str(answer), {"solution": solution}, task)


def _mathematics(answer: Any) -> bool:
    """Whether a gold answer is one: a number, or a text that the verifier may see and that does not say "none"."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer != answer:
        return False
    text = str(answer).strip()
    return text.lower() not in NO_ANSWERS and extract(f"\\boxed{{{text}}}", "strict") is not None


def held_out(problem: Problem, share: float) -> bool:
    """Whether a problem is only for evaluation: a hash of its text decides."""
    return int(problem.id[-16:], 16) < share * 2**64


def draw(side: list[Problem], n: int, seed: int, *, evaluation: bool) -> list[Problem]:
    """n problems of one side of the split, in an order that `seed` names.

    Raises:
      AstroError: when there are fewer.
    """
    if n > len(side):
        kind = "held out for evaluation" if evaluation else "for search and RL"
        raise AstroError(f"problems: {n} asked for, the source has {len(side)} {kind}: lower problems.* or scale")
    return random.Random(f"{seed}/{evaluation}").sample(side, n)


def worked(problem: Problem) -> str | None:
    """A worked solution: the source's own, else one sum of two numbers of the text that gives the answer, where there
    is exactly one."""
    if problem.meta.get("solution"):
        return problem.meta["solution"]
    if problem.task != "number":
        return None
    numbers = [
        (text, value) for text in dict.fromkeys(NUMBER.findall(problem.prompt)) if (value := parse(text)) is not None
    ]
    sums = [
        f"{a} {op} {b} = {problem.answer}"
        for (i, (a, x)), (j, (b, y)) in itertools.permutations(enumerate(numbers), 2)
        for op in "+-*/"
        if (i < j or op in "-/") and calculate(x, op, y) == parse(problem.answer)
    ]
    return f"We compute {sums[0]}.\nThe answer is {problem.answer}." if len(sums) == 1 else None


def _normal(text: str) -> str:
    """What makes two problems the same: their words, whatever the spaces and capitals."""
    return " ".join(text.lower().split())
