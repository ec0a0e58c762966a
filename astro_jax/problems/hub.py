"""Problems from data sets on the Hugging Face hub, or a folder of their files, through `datasets` (extra `hub`).

The columns of the data sets in KNOWN are as their pages describe them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from astro_jax.errors import AstroError
from astro_jax.problems import words
from astro_jax.problems.words import FIELDS, Task
from astro_jax.types import Problem
from astro_jax.verify.answer import extract

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Known:
    """How a published data set is read.

    Attributes:
      subsets: its usual configurations, which are read one after the other.
      fields: our names of its columns.
      answer: takes the answer from a record, where no column holds it.
      keep: which records have an answer that can be checked.
    """

    task: Task = "math"
    subsets: tuple[str | None, ...] = (None,)
    fields: Mapping[str, str] = dataclasses.field(default_factory=lambda: FIELDS)
    answer: Callable[[Record], str | None] | None = None
    keep: Callable[[Record], bool] = lambda record: True


def _boxed(record: Record) -> str | None:
    """MATH: the answer stands in the solution's last box."""
    return extract(str(record.get("solution")), "strict")


def _after_hashes(record: Record) -> str | None:
    """GSM8K: the answer stands after #### at the end of the solution."""
    _, found, answer = str(record.get("answer")).rpartition("####")
    return answer.strip() if found else None


def _checkable(record: Record) -> bool:
    """NuminaMath-1.5: no proofs and no multiple choice, and both parts were found valid."""
    return (
        record.get("question_type") == "math-word-problem"
        and record.get("problem_is_valid") == "Yes"
        and record.get("solution_is_valid") == "Yes"
    )


_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
KNOWN = {
    "openai/gsm8k": Known("number", ("main",), FIELDS | {"problem": "question", "solution": "answer"}, _after_hashes),
    "hendrycks/competition_math": Known(answer=_boxed),
    "EleutherAI/hendrycks_math": Known(subsets=_SUBJECTS, answer=_boxed),
    "nlile/hendrycks-MATH-benchmark": Known(),
    "HuggingFaceH4/MATH-500": Known(),
    "AI-MO/NuminaMath-1.5": Known(keep=_checkable),
}


def read(
    name: str,
    subset: str | None = None,
    split: str = "train",
    where: Mapping[str, list[Any]] | None = None,
    task: Task | None = None,
    fields: Mapping[str, str] | None = None,
) -> tuple[list[Problem], Counter[str]]:
    """All usable problems of a data set, and how many records were left out, by reason.

    Args:
      name: of the hub (KNOWN holds how some are read), or a folder.
      where: allowed values of columns, as in {"source": ["amc_aime", "aops_forum"]}.
      task, fields: in place of what KNOWN says; default number.

    Raises:
      AstroError: when it cannot be loaded, or nothing is left.
    """
    known = KNOWN.get(name, Known("number"))
    task, fields = task or known.task, fields or known.fields
    skipped: Counter[str] = Counter()
    data = itertools.chain.from_iterable(_load(name, s, split) for s in ((subset,) if subset else known.subsets))

    def rows() -> Iterator[tuple[str, Record]]:
        for i, record in enumerate(data):
            if any(record.get(column) not in values for column, values in (where or {}).items()):
                skipped["not asked for (problems.filters)"] += 1
            elif not known.keep(record):
                skipped["no answer that can be checked"] += 1
            else:
                answer = {} if known.answer is None else {"answer": known.answer(record)}
                theirs = {ours: record.get(column) for ours, column in fields.items()}
                yield f"{name}, record {i}", theirs | answer

    found = words.collect(rows(), task, skipped=skipped)
    if not found:
        told = ", ".join(f"{n} {reason}" for reason, n in skipped.items()) or "it is empty"
        raise AstroError(
            f"{name}: no problem is left ({told}); see problems.fields, problems.filters and problems.task"
        )
    return found, skipped


def texts(name: str, split: str) -> list[str]:
    """The texts of all problems of a data set, with an answer or without.

    Raises:
      AstroError: when it cannot be loaded, or its column has no texts.
    """
    known = KNOWN.get(name, Known())
    records = itertools.chain.from_iterable(_load(name, s, split) for s in known.subsets)
    found = [r.get(known.fields["problem"]) or r.get("question") for r in records]
    if not found or not all(isinstance(text, str) for text in found):
        raise AstroError(f"{name}, split {split}: no column `{known.fields['problem']}` or `question` of texts")
    return found


def _load(name: str, subset: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as e:
        raise AstroError(f"{name}: reading a data set needs the extra `hub`: pip install datasets") from e
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as e:  # it raises many kinds, from several libraries
        reason = " ".join(str(e).split())[:200]
        raise AstroError(f"{name}: cannot be loaded (subset {subset}, split {split}: {reason})") from e
