"""Problems of an evaluation suite from its records, with the fields that the authors of the suites chose.

The rules of inspect-ai and lm-evaluation-harness are kept where they have one: the answer of GSM8K is the text after
the last "####", that of MATH the last box of the solution, and names of fields may have capitals ("Problem"). Two rules
are ours: a gold answer of 27.0 is 27 (AMC's file has floats), and a text that stands twice is two problems.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from astro_jax.errors import AstroError
from astro_jax.problems.records import is_mathematics, normalized
from astro_jax.types import Problem
from astro_jax.verify.answer import extract

# The names that published sets have for each field, in the order of preference.
NAMES: Mapping[str, tuple[str, ...]] = {
    "problem": ("problem", "question", "prompt"),
    "answer": ("answer", "final_answer", "expected_answer"),
    "solution": ("solution",),
    "level": ("level", "difficulty"),
    "subject": ("subject", "type", "category"),
    "id": ("unique_id", "id", "problem_idx", "problem_id"),
}
FIELDS = ("problem", "answer", "solution")  # that a user may name
_HASHES = "####"


@dataclasses.dataclass(frozen=True)
class Records:
    """The problems of the records of a suite.

    Attributes:
      problems: in the order of the records. `meta` has `source_id`, and `level` and `subject` if the record has.
      skipped: the records without a problem or an answer, by reason.
    """

    problems: list[Problem]
    skipped: Mapping[str, int]


def read(records: Iterable[tuple[str, Mapping[str, Any]]], fields: Mapping[str, str] | None = None) -> Records:
    """Make a problem of each record.

    Args:
      records: pairs of (place, record). Error messages name the place.
      fields: the names of some of the fields `problem`, `answer` and `solution`, where they are not those of NAMES.

    Raises:
      AstroError: when a record has no field of a problem, or none of an answer. The message lists the fields.
    """
    problems: list[Problem] = []
    skipped: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for place, record in records:
        columns = _columns(place, record, fields or {})
        text, answer = record[columns["problem"]], _answer(record, columns)
        if not isinstance(text, str) or not text.strip():
            skipped["no text of a problem"] += 1
        elif answer is None or not is_mathematics(answer):
            skipped["no answer that can be checked"] += 1
        else:
            digest = hashlib.blake2b(normalized(text).encode(), digest_size=8).hexdigest()
            seen[digest] += 1
            name = digest if seen[digest] == 1 else f"{seen[digest]}-{digest}"
            problems.append(Problem(name, text, answer, _meta(record, columns, len(problems)), "math"))
    return Records(problems, dict(skipped))


def _columns(place: str, record: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, str]:
    """Find the record's name of each field."""
    if missing := [name for name in fields.values() if name not in record]:
        raise AstroError(f"{place}: no field `{missing[0]}`; the record has {', '.join(record) or 'no field'}")
    by_lower = {name.lower(): name for name in record}
    columns = {
        field: next((by_lower[name] for name in names if name in by_lower), None) for field, names in NAMES.items()
    }
    columns |= fields
    lacks = "problem" if columns["problem"] is None else "answer"
    if columns["problem"] is None or (columns["answer"] is None and columns["solution"] is None):
        raise AstroError(
            f"{place}: no field of the {lacks}; the record has {', '.join(record) or 'no field'}: name it with "
            f":{lacks}=FIELD after the file, as in mine.jsonl:problem=text,answer=result"
        )
    return {field: name for field, name in columns.items() if name is not None}


def _answer(record: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """The gold answer of a record as text; None if it has none."""
    value = record[columns["answer"]] if "answer" in columns else None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return str(value)
    is_answer = isinstance(value, str)
    text = value if is_answer else record.get(columns.get("solution", ""))
    if not isinstance(text, str):
        return None
    if _HASHES in text:
        return text.rpartition(_HASHES)[2].strip() or None
    if "boxed" in text or not is_answer:  # a solution without a box is no answer
        return extract(text, "strict")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text.strip()) or None  # a float as text


def _meta(record: Mapping[str, Any], columns: Mapping[str, str], index: int) -> dict[str, Any]:
    meta: dict[str, Any] = {"source_id": str(record[columns["id"]] if "id" in columns else index)}
    level = record.get(columns.get("level", ""))
    if level is not None:
        meta["level"] = str(level).removeprefix("Level ")  # "Level 5" in MATH, 5 in MATH-500
    subject = record.get(columns.get("subject", ""))
    return meta | ({"subject": str(subject)} if subject is not None else {})
