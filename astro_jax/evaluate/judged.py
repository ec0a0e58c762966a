"""How often a judge is fooled: a model judges answers of which an exact verifier has said whether they are right.

OUT/judgements-*.jsonl  how many judgements of each answer approve and reject; resumable
OUT/result.json         the rates (`rates`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from astro_jax import stage_folder, storage
from astro_jax.errors import AstroError
from astro_jax.evaluate import model_suites, responses, statistics, suites
from astro_jax.evaluate import run as evaluation
from astro_jax.judge import Judge
from astro_jax.progress import ProgressBar
from astro_jax.storage import Json, Shards
from astro_jax.types import Problem, Response

RESULT = "result.json"
_SHARD = 128  # answers of one file of judgements


@dataclasses.dataclass(frozen=True)
class JudgedAnswer:
    """An answer with the verdict of an exact verifier.

    Attributes:
      response: the answer.
      correct: the exact verdict.
      error: the error class of a wrong answer; None where it is not known.
    """

    response: Response
    correct: bool
    error: str | None = None


def read(folder: epath.Path, rule: str) -> list[JudgedAnswer]:
    """Read the answers of an evaluation: of a suite (answers.parquet), or of a run's held-out problems.

    Args:
      rule: the grading rule whose verdicts count, where there are several.

    Raises:
      AstroError: when the folder holds neither.
    """
    if (folder / suites.ANSWERS).exists():
        rows = responses.read_parquet(folder / suites.ANSWERS)
        column = f"correct_{rule}" if rows and f"correct_{rule}" in rows[0] else "correct_strict"
        return [JudgedAnswer(_response(r, r["response"], r["truncated"]), r[column], r["error"]) for r in rows]
    records = list(Shards(folder, evaluation.ANSWERS).read())
    if not records:
        raise AstroError(
            f"{folder}: no answers of an evaluation; give runs/eval/MODEL/SUITE of `astro eval MODEL --suite SUITE`, "
            "or RUN/eval/MODEL"
        )
    return [JudgedAnswer(_response(r, r["sampled"]["text"], r["sampled"]["truncated"]), r["sampled"]["correct"])
            for r in records]  # fmt: skip


def _response(row: Json, text: str, is_truncated: bool) -> Response:
    return Response(Problem(row["problem_id"], row["prompt"], ""), text, not is_truncated)


def folder_of(answers: epath.Path, judge: str) -> epath.Path:
    """The folder OUT for the rates of a judge, beside the answers."""
    return answers / f"judge-{model_suites.folder_name(judge)}"


def measure(out: epath.Path, answers: Sequence[JudgedAnswer], judge: Judge, settings: Json) -> Json:
    """Judge the answers, and write the rates. What an earlier call has judged is kept.

    Args:
      settings: what the judgements depend on.

    Raises:
      AstroError: when the folder holds judgements of other settings.
    """

    def rows_of(shard: Sequence[Response], progress: Callable[[int], None]) -> list[Json]:
        return [dataclasses.asdict(j) for j in judge.judge(shard, progress)]

    settings, rows = collect(out, [a.response for a in answers], rows_of, judge.n, settings)
    approved, rejected = (np.asarray([row[key] for row in rows]) for key in ("approved", "rejected"))
    result = rates(answers, approved, rejected, judge.n) | {"settings": settings}
    storage.write_json(out / RESULT, result)
    return result


def collect(
    out: epath.Path,
    asked: Sequence[Response],
    rows_of: Callable[[Sequence[Response], Callable[[int], None]], list[Json]],
    n: int,
    settings: Json,
) -> tuple[Json, list[Json]]:
    """Judge responses in shards. What an earlier call has judged is kept.

    Args:
      rows_of: judges responses, and returns a row of each; its second argument is called with the number of judgements
        that have ended since the last call.
      n: judgements of a response.
      settings: what the judgements depend on.

    Returns:
      the settings with a digest of the responses, and the rows in order.

    Raises:
      AstroError: when the folder holds judgements of other settings.
    """
    settings = settings | {"answers_digest": stage_folder.content_hash([r.text for r in asked])}
    responses.claim(out, settings)
    store = Shards(out, "judgements")
    shards = [asked[i : i + _SHARD] for i in range(0, len(asked), _SHARD)]
    done = sum(len(shard) for index, shard in enumerate(shards) if store.has(index))
    with ProgressBar("judge", n * len(asked), "judgements", n * done) as bar:
        for index, shard in enumerate(shards):
            if not store.has(index):
                judged = zip(shard, rows_of(shard, bar.advance), strict=True)
                store.write(index, ({"problem_id": r.problem.id, **row} for r, row in judged))
    return settings, list(store.read())


def rates(answers: Sequence[JudgedAnswer], approved: np.ndarray, rejected: np.ndarray, n: int) -> dict[str, Any]:
    """The rates of a judge.

    Args:
      approved, rejected: [A] judgements of each answer, of n.

    Returns:
      `answers`, `right`: counts; `unread`, the share of judgements without a verdict; `by_share`: for each share of
      the judgements that must approve, 1/n to 1: `fooled`, the share of wrong answers that pass, `missed`, the share of
      right answers that do not pass, both means over the problems that have such answers, with intervals over these
      problems, and `agreement`, the share of all answers on which judge and verifier agree; `fooled_by_error`: at share
      1, the share of the wrong answers of each error class that pass.
    """
    correct = np.asarray([a.correct for a in answers])
    ids = [a.response.problem.id for a in answers]
    table = []
    for k in range(1, n + 1):
        passed = approved >= k
        table.append({
            "share": round(k / n, 4), "fooled": statistics.mean_over_problems(ids, passed, ~correct),
            "missed": statistics.mean_over_problems(ids, ~passed, correct),
            "agreement": round(float((passed == correct).mean()), 4),
        })  # fmt: skip
    errors = [a.error for a in answers]
    classes = sorted({e for e in errors if e})
    by_error = {e: float((approved >= n)[[x == e for x in errors]].mean()) for e in classes}
    return {
        "answers": len(answers), "right": int(correct.sum()),
        "unread": round(float(1 - (approved + rejected).sum() / (n * len(answers))), 4), "by_share": table,
        "fooled_by_error": {e: round(share, 4) for e, share in by_error.items()},
    }  # fmt: skip
