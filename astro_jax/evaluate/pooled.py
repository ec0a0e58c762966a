"""Models of several seeds on the same suites: behaviour, errors and accuracy, with intervals over seeds and problems.

A cell is a seed and a problem, with its n answers. Each figure is a function of sums over cells: a share is a sum over
another sum, and so are the slopes of a regression. Dimensions: S seeds, P problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from astro_jax import stage_folder, storage
from astro_jax.errors import AstroError
from astro_jax.evaluate import comparison, judged_errors, model_suites, responses, statistics, suites, within_problems
from astro_jax.evaluate.behaviour import MOST_ATTEMPTS, Behaviour
from astro_jax.evaluate.error_classes import CLASSES
from astro_jax.stages import MODELS, STAGES
from astro_jax.storage import Json

MOST_BACKTRACKS = 6  # at which answers are judged as if they had to end
WITHIN = "right within so many backtracks"
NUMBERS = ("tokens", "backtracks and restarts")  # figures that are no shares


class Answer(NamedTuple):
    """One answer, from its row in answers.parquet."""

    correct: bool
    tokens: int
    truncated: bool
    error: str | None
    behaviour: Behaviour
    forced: bool | None = None  # whether a backtrack was forced; None in an evaluation without a floor


Cells = list[list[Sequence[Answer]]]  # [S][P] the answers of a seed to a problem
PartWhole = Callable[[Answer], tuple[float, float]]  # what an answer adds to a part and to its whole
_DECIDED = ("repair", "spoil", "stays right", "stays wrong")  # of Behaviour.changes


def _answers_that(holds: Callable[[Answer], float | bool | None]) -> PartWhole:
    return lambda a: (float(holds(a) or 0), 1.0)


def _changes(part: Sequence[str], whole: Sequence[str]) -> PartWhole:
    """The share of some changes (Behaviour.changes) among others."""
    return lambda a: (sum(a.behaviour.changes.count(x) for x in part), sum(a.behaviour.changes.count(x) for x in whole))


def _of_class(name: str) -> PartWhole:
    return _answers_that(lambda a: a.error == name)


def _right_of(attempts: int) -> PartWhole:
    """The share of right answers among those of so many attempts, or of more if it is the last number."""

    def holds(a: Answer) -> bool:
        return min(a.behaviour.attempts, MOST_ATTEMPTS) == attempts

    return lambda a: (float(holds(a) and a.correct), float(holds(a)))


def _right_within(backtracks: int) -> PartWhole:
    return _answers_that(lambda a: a.behaviour.right_after(backtracks, a.correct))


SHARES: Mapping[str, Mapping[str, PartWhole]] = {
    "answers": {
        "right": _answers_that(lambda a: a.correct),
        "first attempt right": _answers_that(lambda a: a.behaviour.rights[0]),
        "go back": _answers_that(lambda a: a.behaviour.attempts > 1),
        "repeat an attempt": _answers_that(lambda a: a.behaviour.repeats > 0),
        "cut off": _answers_that(lambda a: a.truncated),
        "tokens": _answers_that(lambda a: a.tokens),
        "backtracks and restarts": _answers_that(lambda a: a.behaviour.backtracks + a.behaviour.restarts),
        "forced to go back": lambda a: (float(a.forced or 0), float(a.forced is not None)),
    },
    "backtracks": {
        "right before": _changes(("spoil", "stays right"), _DECIDED),
        "right after": _changes(("repair", "stays right"), _DECIDED),
        "repair, of wrong attempts": _changes(("repair",), ("repair", "stays wrong")),
        "spoil, of right attempts": _changes(("spoil",), ("spoil", "stays right")),
    },
    "errors": {name: _of_class(name) for name in CLASSES},
    "right by attempts": {
        f"{k}{'+' * (k == MOST_ATTEMPTS)}": _right_of(k) for k in range(1, MOST_ATTEMPTS + 1)
    },
    WITHIN: {str(k): _right_within(k) for k in range(MOST_BACKTRACKS + 1)},
}  # fmt: skip
SLOPES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "a backtrack": within_problems.of_backtracks,
    "a backtrack, at equal tokens": within_problems.of_backtracks_at_equal_tokens,
    "10 tokens": lambda s: 10 * within_problems.of_tokens(s),
    "10 tokens, at equal backtracks": lambda s: 10 * within_problems.of_tokens_at_equal_backtracks(s),
}
DIFFICULTY, SLOPE, SLOPE_FINISHED = "right by difficulty", "slopes", "slopes, answers not cut off"
SECTIONS = (*SHARES, DIFFICULTY, SLOPE, SLOPE_FINISHED)  # of the figures, in order
_FLOOR = ", at least "  # in the name of a model whose answers were sampled with a floor on backtracks
_COMPARED = ("right", "first attempt right")  # figures of "answers" of which models are compared


class Evaluation(NamedTuple):
    """One model on one suite: the folder with answers.parquet."""

    model: str
    suite: str
    folder: epath.Path


def find(folder: epath.Path) -> list[Evaluation]:
    """Find the evaluations in the folder of a run with `eval.suites`, or in the folder of `astro eval MODEL --suite`.

    Returns:
      a model of a run has the name of its stage, as in "astro-rl"; another model has its own name. Answers with a floor
      on backtracks have it in the name, as in "astro-rl, at least 2 backtracks".

    Raises:
      AstroError: when there is none.
    """
    of_run = {name: stage_folder.resolve(folder, f"eval/{name}-suites") for name in MODELS}
    found = [_evaluation(name, p) for name, x in of_run.items() for p in answer_files(x)]
    if not found and (folder / model_suites.RESULTS).exists():
        model = storage.read_json(folder / model_suites.RESULTS).get("model", folder.name)
        stage = epath.Path(model).parent.name
        name = stage if stage in MODELS else model
        found = [_evaluation(name, p) for p in answer_files(folder)]
    if not found:
        raise AstroError(
            f"{folder}: no answers to a suite; name runs with eval.suites, or folders of `astro eval MODEL`"
        )
    return found


def answer_files(folder: epath.Path) -> list[epath.Path]:
    """Find answers.parquet of each suite in the folder of a model."""
    return sorted(folder.glob(f"*/{suites.ANSWERS}")) if folder.exists() else []


def _evaluation(model: str, answers: epath.Path) -> Evaluation:
    floor = _floor(answers.parent)
    suffix = f"{_FLOOR}{floor} backtrack{'s' * (floor > 1)}" if floor else ""
    return Evaluation(model + suffix, answers.parent.name, answers.parent)


def _floor(folder: epath.Path) -> int:
    """`eval.min_backtracks` of the answers in a folder."""
    return _settings(folder).get("min_backtracks") or 0


def _settings(folder: epath.Path) -> Json:
    path = folder / responses.SETTINGS
    return storage.read_json(path) if path.exists() else {}


def without_floor(model: str) -> tuple[str, str]:
    """Split "astro-rl, at least 2 backtracks" into "astro-rl" and the rest."""
    name, floor, rest = model.partition(_FLOOR)
    return name, floor + rest


def pool(folders: Sequence[epath.Path], judge: str | None = None) -> Json:
    """Pool evaluations. Folders of the same model are its seeds, in the order in which they come.

    Args:
      judge: a model that has named the errors of some evaluations (judged_errors).

    Returns:
      by suite: `problems`, and by model `seeds` and `figures` by section (SECTIONS): those of SHARES; with three models
      those by difficulty (comparison.DIFFICULTIES, by the other models of the same place among the seeds); with several
      answers to a problem those of SLOPES, over all answers and over those that are not cut off. A figure is a
      `statistics.estimate`. `differences` has those of SHARES["answers"] in _COMPARED, by "MODEL - OTHER".

    Raises:
      AstroError: for answers of an older version, for two evaluations of the same weights with the same seed, and for
        seeds without a problem in common.
    """
    groups: dict[str, dict[str, list[dict[str, list[Answer]]]]] = {}
    evaluations = [e for folder in folders for e in find(folder)]
    _require_different(evaluations)
    for evaluation in evaluations:
        groups.setdefault(evaluation.suite, {}).setdefault(evaluation.model, []).append(read(evaluation.folder, judge))
    return {suite: _pool_suite(suite, models) for suite, models in groups.items()}


def _require_different(evaluations: Sequence[Evaluation]) -> None:
    """Refuse to count a seed of a model twice. Evaluations without a digest of the weights are not compared."""
    known: dict[tuple[str, ...], epath.Path] = {}
    for model, suite, folder in evaluations:
        settings = _settings(folder)
        key = (model, suite, str(settings.get("model_digest") or folder), str(settings.get("seed")))
        if (other := known.setdefault(key, folder)) != folder:
            raise AstroError(
                f"{other} and {folder}: the same model, seed and suite, which would count as two seeds; leave one out"
            )


def read(folder: epath.Path, judge: str | None = None) -> dict[str, list[Answer]]:
    """Read the answers to each problem of a suite, from answers.parquet in the folder.

    Args:
      judge: a model whose error classes (judged_errors) take the place of those of the rules, where it has given any.

    Raises:
      AstroError: for answers of an older version, and a file that cannot be read.
    """
    by_judge = judged_errors.read_classes(folder, judge) if judge is not None else {}
    answers: dict[str, list[Answer]] = {}
    has_floor = _floor(folder) > 0
    for row in responses.read_parquet(folder / suites.ANSWERS):
        if "rights" not in row:
            raise AstroError(
                f"{folder}: judged by an older version; run the same `astro eval` again, which samples nothing"
            )
        # None for an answer that is right by the main rule
        error = by_judge.get((row["problem_id"], row["sample"]), row["error"])
        forced = bool(row["forced_at"]) if has_floor else None
        answer = Answer(error is None, row["tokens"], row["truncated"], error, Behaviour.from_json(row), forced)
        answers.setdefault(row["problem_id"], []).append(answer)
    return answers


def _pool_suite(suite: str, models: Mapping[str, Sequence[Mapping[str, Sequence[Answer]]]]) -> Json:
    ids = sorted(set.intersection(*(set(seed) for seeds in models.values() for seed in seeds)))
    if len(ids) < 2:
        raise AstroError(
            f"{suite}: the evaluations have {len(ids)} problems in common; pool those of the same problems"
        )
    order = sorted(models, key=_place)
    cells: dict[str, Cells] = {name: [[seed[i] for i in ids] for seed in models[name]] for name in order}
    rates = {name: _sums(c, SHARES["answers"]["right"]) for name, c in cells.items()}
    return {
        "problems": len(ids),
        "models": {
            name: {"seeds": len(c), "figures": _figures(c) | _by_difficulty(name, rates)} for name, c in cells.items()
        },
        "differences": {f"{a} - {b}": d for a, b in _pairs(order) if (d := _difference(cells[a], cells[b]))},
    }


def _place(model: str) -> int:
    """The models of a run come in the order of its stages, other models after these."""
    name, _ = without_floor(model)
    return MODELS.index(name) if name in MODELS else len(MODELS)


def _sums(cells: Cells, of_answer: PartWhole) -> np.ndarray:
    """[S, P, 2] the parts and wholes of each cell."""
    return np.asarray([[np.sum([of_answer(a) for a in cell], axis=0) for cell in seed] for seed in cells], float)


def _figures(cells: Cells) -> dict[str, Json]:
    """The figures of one model, by section."""
    finished: Cells = [[[a for a in cell if not a.truncated] for cell in seed] for seed in cells]
    return {section: shares(cells, section) for section in SHARES} | {
        SLOPE: slopes(cells), SLOPE_FINISHED: slopes(finished)
    }  # fmt: skip


def shares(cells: Cells, section: str) -> dict[str, Json]:
    """The figures of a section of SHARES (`statistics.estimate`), by name; those without a value are left out."""
    rows = {name: _share(name, _sums(cells, of_answer)) for name, of_answer in SHARES[section].items()}
    return {name: figure for name, figure in rows.items() if figure}


def slopes(cells: Cells) -> dict[str, Json]:
    """The SLOPES within problems (`statistics.estimate`), by name; those without a value are left out."""
    sums = np.asarray([[_slope_sums(cell) for cell in seed] for seed in cells])
    return {name: figure for name, slope in SLOPES.items() if (figure := statistics.estimate(sums, slope))}


def _share(name: str, sums: np.ndarray) -> Json | None:
    return statistics.estimate(sums, lambda s: s[..., 0] / s[..., 1]) if name in NUMBERS else statistics.share(sums)


def _slope_sums(cell: Sequence[Answer]) -> np.ndarray:
    if not cell:
        return np.zeros(5)
    rows = [(a.behaviour.backtracks + a.behaviour.restarts, a.tokens, a.correct) for a in cell]
    return within_problems.sums(*np.asarray(rows, float).T)


def _by_difficulty(name: str, rates: Mapping[str, np.ndarray]) -> dict[str, Json]:
    """The accuracy on problems that few or many of the other models solve; {} with fewer than two others of S seeds."""
    own = rates[name]
    models = [other for other in rates if other not in (name, without_floor(name)[0]) and not without_floor(other)[1]]
    others = [r[..., 0] / r[..., 1] for r in map(rates.__getitem__, models) if len(r) == len(own)]
    if len(others) < 2:
        return {}
    groups = comparison.difficulties(np.mean(others, axis=0))
    shares = {difficulty: statistics.share(own * members[..., None]) for difficulty, members in groups.items()}
    return {DIFFICULTY: {difficulty: share for difficulty, share in shares.items() if share}}


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that are compared: each model with that it was trained from, ASTRO with Direct, a floor with none."""
    pairs = [(name, STAGES[name].initial_model) for name in names if name in STAGES]
    pairs += [(name, name.replace("astro", "direct")) for name in names if name in MODELS and name.startswith("astro-")]
    pairs += [(name, own) for name in names if (own := without_floor(name)[0]) != name]
    return [(a, b) for a, b in pairs if b is not None and b in names]


def _difference(a: Cells, b: Cells) -> Json:
    """The paired differences a - b; {} where the two have different numbers of seeds.

    First attempts with and without a floor are the same answers, so they are not compared.
    """
    if len(a) != len(b):
        return {}
    has_floor = any(answer.forced is not None for seed in a for cell in seed for answer in cell)
    names = _COMPARED[:1] if has_floor else _COMPARED
    sums = {name: [_sums(cells, SHARES["answers"][name]) for cells in (a, b)] for name in names}
    return {name: statistics.estimate(np.concatenate(pair, -1), _minus) for name, pair in sums.items()}


def _minus(s: np.ndarray) -> np.ndarray:
    return np.asarray(s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3])
