"""Problems from a JSONL file, one a line: {"problem": text, "answer": number}, as text or as a number; and, where the
file has it, "solution": text, which a model can be warmed up on."""

from __future__ import annotations

import hashlib
import itertools
import random

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.problems import Problem
from astro_jax.verify.number import NUMBER, calculate, parse


def read(path: epath.Path) -> list[Problem]:
    """All problems of a file, each text once.

    Raises:
      AstroError: naming the line, when a field is missing or the answer is not a number.
    """
    found: dict[str, Problem] = {}
    for number, record in enumerate(storage.read_jsonl(path), 1):
        text, answer = record.get("problem"), str(record.get("answer"))
        if not isinstance(text, str) or not text.strip():
            raise AstroError(f"{path}, line {number}: `problem` must be a text")
        if parse(answer) is None:
            raise AstroError(f"{path}, line {number}: `answer` must be a number, found {record.get('answer')!r}")
        solution = record.get("solution", "")
        if not isinstance(solution, str):
            raise AstroError(f"{path}, line {number}: `solution` must be a text")
        digest = hashlib.blake2b(_normal(text).encode(), digest_size=8).hexdigest()
        same = found.setdefault(digest, Problem(digest, text, answer, {"solution": solution}, "number"))
        if parse(same.answer) != parse(answer):
            raise AstroError(f"{path}, line {number}: this problem was there before, with the answer {same.answer}")
    return list(found.values())


def draw(every: list[Problem], n: int, seed: int, held_out: float, *, evaluation: bool) -> list[Problem]:
    """n problems of one side of the split, which a hash of the problem's text decides, in an order that `seed` names.

    Raises:
      AstroError: when there are fewer.
    """
    side = [p for p in every if (int(p.id, 16) < held_out * 2**64) == evaluation]
    if n > len(side):
        kind = "held out for evaluation" if evaluation else "for search and RL"
        raise AstroError(f"problems: {n} asked for, the file has {len(side)} {kind}: lower problems.* or scale")
    return random.Random(f"{seed}/{evaluation}").sample(side, n)


def worked(problem: Problem) -> str | None:
    """A worked solution: the file's own, else one sum of two numbers of the text that gives the answer, where there is
    exactly one."""
    if problem.meta["solution"]:
        return problem.meta["solution"]
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
