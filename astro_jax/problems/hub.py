"""Problems from data sets of the Hugging Face hub, or a folder of their files, through `datasets` (extra `hub`).

DATASETS describes the columns of published data sets, as the pages of the data sets do.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from astro_jax.errors import AstroError
from astro_jax.problems.records import FIELDS, RecordTask, from_records
from astro_jax.types import Problem
from astro_jax.verify.answer import extract

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """How to read a data set.

    Attributes:
      task: how the answers are judged.
      subsets: the subsets (configurations) that are read by default, one after the other.
      fields: the data set's column for each of our fields.
      answer: extracts the answer from a record. None: a column holds the answer.
      keep: whether a record can be used for a task: most tasks need an answer that can be checked.
    """

    task: RecordTask = "math"
    subsets: tuple[str | None, ...] = (None,)
    fields: Mapping[str, str] = dataclasses.field(default_factory=lambda: FIELDS)
    answer: Callable[[Record], str | None] | None = None
    keep: Callable[[Record, RecordTask], bool] = lambda record, task: True


def _boxed(record: Record) -> str | None:
    """MATH: the answer is in the last box of the solution."""
    return extract(str(record.get("solution")), "strict")


def _after_hashes(record: Record) -> str | None:
    """GSM8K: the answer is after #### at the end of the solution."""
    _, marker, answer = str(record.get("answer")).rpartition("####")
    return answer.strip() if marker else None


def _is_usable(record: Record, task: RecordTask) -> bool:
    """NuminaMath-1.5: the problem and the solution are marked valid. Only a judge takes proofs and multiple choice."""
    return (
        (record.get("question_type") == "math-word-problem" or task == "judged")
        and record.get("problem_is_valid") == "Yes"
        and record.get("solution_is_valid") == "Yes"
    )


SUBJECTS = (  # the subsets of MATH
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
DATASETS = {
    "openai/gsm8k": DatasetSpec(
        "number", ("main",), FIELDS | {"problem": "question", "solution": "answer"}, _after_hashes
    ),
    "hendrycks/competition_math": DatasetSpec(answer=_boxed),
    "EleutherAI/hendrycks_math": DatasetSpec(subsets=SUBJECTS, answer=_boxed),
    "nlile/hendrycks-MATH-benchmark": DatasetSpec(),
    "HuggingFaceH4/MATH-500": DatasetSpec(),
    "AI-MO/NuminaMath-1.5": DatasetSpec(keep=_is_usable),
}


def read(
    name: str,
    subset: str | None = None,
    split: str = "train",
    filters: Mapping[str, list[Any]] | None = None,
    task: RecordTask | None = None,
    fields: Mapping[str, str] | None = None,
) -> tuple[list[Problem], Counter[str]]:
    """Read all usable problems of a data set.

    Args:
      name: the data set's name on the hub (DATASETS describes some), or a folder.
      subset: the subset to read. None: the default subsets of the data set.
      filters: allowed values of columns, such as {"source": ["amc_aime", "aops_forum"]}.
      task: overrides the task of the data set's entry in DATASETS. Data sets without an entry have the task "number".
      fields: overrides the columns of the entry.

    Returns:
      The problems, and how many records were skipped, by reason.

    Raises:
      AstroError: if the data set cannot be loaded, or if no problem is left.
    """
    spec = DATASETS.get(name, DatasetSpec("number"))
    task = task or spec.task
    columns = fields or spec.fields
    skipped: Counter[str] = Counter()

    def records() -> Iterator[tuple[str, Record]]:
        for i, record in enumerate(_load(name, (subset,) if subset else spec.subsets, split, filters, skipped)):
            if not spec.keep(record, task):
                skipped["no answer that can be checked"] += 1
            else:
                answer = {} if spec.answer is None else {"answer": spec.answer(record)}
                values = {field: record.get(column) for field, column in columns.items()}
                yield f"{name}, record {i}", values | answer

    problems = from_records(records(), task, skipped=skipped)
    if not problems:
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped.items()) or "it is empty"
        raise AstroError(
            f"{name}: no problem is left ({reasons}); see problems.fields, problems.filters and problems.task"
        )
    return problems, skipped


def problem_texts(name: str, split: str) -> list[str]:
    """Read the texts of all problems of a data set, also of problems without an answer.

    Raises:
      AstroError: if the data set cannot be loaded, or has no column of problem texts.
    """
    spec = DATASETS.get(name, DatasetSpec())
    column = spec.fields["problem"]
    values = [record.get(column) or record.get("question") for record in _load(name, spec.subsets, split)]
    texts = [value for value in values if isinstance(value, str)]
    if not texts or len(texts) < len(values):
        raise AstroError(f"{name}, split {split}: no column `{column}` or `question` of texts")
    return texts


def _load(
    name: str,
    subsets: Sequence[str | None],
    split: str,
    filters: Mapping[str, list[Any]] | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Record]:
    """Load the records of some subsets, one subset after the other.

    Args:
      filters: allowed values of columns.
      skipped: counts the records with other values.
    """
    for subset in subsets:
        data = load_subset(name, subset, split)
        if filters and skipped is not None:
            selected = _with_values(data, filters)
            skipped["not asked for (problems.filters)"] += len(data) - len(selected)
            data = selected
        yield from data


def _with_values(data: Any, filters: Mapping[str, list[Any]]) -> Any:
    """Select the records whose columns have allowed values. Only these columns are read, since texts are long."""
    columns = [data[name][:] if name in data.column_names else [None] * len(data) for name in filters]
    allowed = list(filters.values())
    rows = enumerate(zip(*columns, strict=True))
    return data.select([i for i, row in rows if all(v in a for v, a in zip(row, allowed, strict=True))])


def load_subset(name: str, subset: str | None, split: str) -> Any:
    """Load one subset and split of a data set, or of a folder of its files.

    Raises:
      AstroError: if `datasets` is missing, or if the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as e:
        raise AstroError(f"{name}: reading a data set needs the extra `hub`: pip install datasets") from e
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception as e:  # datasets raises exceptions of many kinds
        reason = " ".join(str(e).split())[:200]
        raise AstroError(f"{name}: cannot be loaded (subset {subset}, split {split}: {reason})") from e
