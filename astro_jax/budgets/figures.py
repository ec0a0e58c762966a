"""Accuracy of a method as a function of its budget of generated tokens, from n answers and a tree for each problem.

The problems are the unit, as in `evaluate.statistics`. Dimensions: P problems, N answers to each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from astro_jax.evaluate import statistics
from astro_jax.verify.same_answer import value_key

MethodName = Literal["one answer", "majority vote", "best of N", "tree search"]
ORDERS = 64  # random orders of the N answers to a problem, over which majority votes are averaged
CURVE_POINTS = 32  # of each curve
_SEED = 0  # of the orders


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of one model.

    Attributes:
      tokens: [P, N] generated tokens of each answer, its end token included.
      correct: [P, N].
      answers: [P][N] the answers as text; None where none could be read.
      prompt_tokens: mean length of a prompt.
    """

    tokens: np.ndarray
    correct: np.ndarray
    answers: Sequence[Sequence[str | None]]
    prompt_tokens: float

    @property
    def n(self) -> int:
        """N, the answers to each problem."""
        return int(self.tokens.shape[1])

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of one answer."""
        return float(self.tokens.mean())

    @functools.cached_property
    def pass_at_k(self) -> np.ndarray:
        """[N, P] the expected pass@k of each problem, for k = 1 to N."""
        counts = self.correct.sum(1)
        return np.stack([statistics.pass_at_k(counts, self.n, k) for k in range(1, self.n + 1)])

    @functools.cached_property
    def majority_at_k(self) -> np.ndarray:
        """[N, P] the expected maj@k of each problem, for k = 1 to N."""
        rows = zip(self.answers, self.correct, strict=True)
        return np.stack([expected_majority(answers, correct) for answers, correct in rows], axis=1)


@dataclasses.dataclass(frozen=True)
class Trees:
    """The trees of one model.

    Attributes:
      solved_at: [P] the tokens of each tree at the end of its first correct solution; 0 without one.
      max_tokens: the budget up to which the trees without a correct solution were searched.
      verdicts_per_token: verdicts of the verifier for each generated token.
      prefilled_per_token: prompt tokens that were computed for each generated token. A node's prompt is its path.
    """

    solved_at: np.ndarray
    max_tokens: int
    verdicts_per_token: float
    prefilled_per_token: float


def expected_majority(answers: Sequence[str | None], correct: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Estimate maj@k of one problem for k = 1 to N: the mean over random subsets of k of its N answers.

    A subset is the first k answers of one of ORDERS random orders. Votes are those of
    `statistics.majority_is_correct`: by value, and in a tie the answer that came first wins.

    Returns:
      [N]
    """
    n, right = len(answers), np.asarray(correct, bool)
    keys = [None if answer is None else value_key(answer) for answer in answers]
    values = list(dict.fromkeys(key for key in keys if key is not None))
    if not values or not right.any():
        return np.zeros(n)
    rng = np.random.default_rng(_SEED)
    orders = np.argsort(rng.random((ORDERS, n)), axis=1)
    votes = np.asarray([[key == value for value in values] for key in keys])[orders]  # [orders, N, values]
    counts = votes.cumsum(1)
    first = np.where(votes.any(1), votes.argmax(1), n)  # [orders, values] the place of the first vote for a value
    winner = (counts * (n + 1) - first[:, None]).argmax(2)[..., None]  # most votes, then the earliest
    has_votes = np.take_along_axis(counts, winner, 2)[..., 0] > 0
    any_right = (votes & right[orders][..., None]).cumsum(1) > 0
    return (np.take_along_axis(any_right, winner, 2)[..., 0] & has_votes).mean(0)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A method that samples k answers to a problem.

    Attributes:
      model: the name of the model that generates.
      name: of the method.
      table: [N, P] the accuracy of each problem with k = 1 to N answers.
      answer_tokens: mean tokens of one answer.
    """

    model: str
    name: MethodName
    table: np.ndarray
    answer_tokens: float

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest budget that the answers allow."""
        return self.answer_tokens, self.answer_tokens * len(self.table)

    def at(self, budget: float) -> np.ndarray:
        """Compute the accuracy of each problem at a mean budget of tokens a problem.

        k = budget / answer_tokens answers cost the budget. k need not be whole: k = 6.25 stands for 6 answers to three
        quarters of the problems and 7 to the others, so the accuracy is interpolated.

        Returns:
          [P] from 0 to 1.
        """
        k = min(max(budget / self.answer_tokens, 1.0), float(len(self.table)))
        low = int(k)
        high = min(low + 1, len(self.table))
        return self.table[low - 1] + (k - low) * (self.table[high - 1] - self.table[low - 1])

    def spent(self, budget: float) -> dict[str, Any]:
        """The `answers` of a budget, and the `verdicts` that choose among them: one each for best-of-N."""
        k = round(budget / self.answer_tokens, 2)
        return {"answers": k, "verdicts": k if self.name == "best of N" else 0}


@dataclasses.dataclass(frozen=True)
class Searching:
    """A tree search. It ends with the first solution that the verifier finds right.

    Attributes:
      model: the name of the model that generates.
      trees: its trees.
      answer_tokens: mean tokens of one answer of the model, where its curve begins.
    """

    model: str
    trees: Trees
    answer_tokens: float
    name: MethodName = "tree search"

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest budget that the trees allow."""
        return 1.0, float(self.trees.max_tokens)

    def at(self, budget: float) -> np.ndarray:
        """[P] whether the tree of a problem has a correct solution within the budget, as 0 or 1."""
        solved_at = self.trees.solved_at
        return ((solved_at > 0) & (solved_at <= budget)).astype(float)

    def spent(self, budget: float) -> dict[str, Any]:
        """`answers` is None; about how many `verdicts` the budget needs."""
        return {"answers": None, "verdicts": round(budget * self.trees.verdicts_per_token, 2)}


Method = Sampling | Searching


def row(method: Method, budget: float, reference: np.ndarray | None = None) -> dict[str, Any]:
    """The figures of a method at a budget.

    Args:
      reference: [P] the accuracy of each problem that the method is compared with.

    Returns:
      `model`, `method`, `tokens`, `answers`, `verdicts`, the fields of `statistics.summarize` and, with a reference,
      the paired `difference` from it.
    """
    values = method.at(budget)
    figures = {
        "model": method.model, "method": method.name, "tokens": round(budget, 1), **method.spent(budget),
        **statistics.summarize(values),
    }  # fmt: skip
    return figures if reference is None else figures | {"difference": statistics.paired_difference(reference, values)}


def methods_of(model: str, answers: Answers, trees: Trees | None) -> list[Method]:
    """The methods of one model: majority vote, best-of-N and, with trees, tree search."""
    tokens = answers.mean_tokens
    methods: list[Method] = [
        Sampling(model, "majority vote", answers.majority_at_k, tokens),
        Sampling(model, "best of N", answers.pass_at_k, tokens),
    ]
    return methods if trees is None else [*methods, Searching(model, trees, tokens)]


def compare(measured: Mapping[str, tuple[Answers, Trees | None]], budget: float, n: int) -> dict[str, Any]:
    """Compare all methods at the tokens of one answer of the first model, and at multiples of them.

    Args:
      measured: by model. All have the same problems in the same order.
      budget: tokens of one answer of the first model.
      n: the largest multiple of the budget.

    Returns:
      `problems`, `budget`, `n`; `models`: of each its tokens, prompts and accuracy with one answer; `table`: a row
      (`row`) for one answer of each model and for each method and multiple of the budget, with its difference
      from one answer of the first model; `curves`: for each method its points over the budget.
    """
    first, *_ = measured
    reference = measured[first][0].pass_at_k[0]
    singles = [
        Sampling(name, "one answer", answers.pass_at_k[:1], answers.mean_tokens)
        for name, (answers, _) in measured.items()
    ]
    table = [row(m, m.answer_tokens, None if m.model == first else reference) | {"multiple": 1} for m in singles]
    methods = [m for name, (answers, trees) in measured.items() for m in methods_of(name, answers, trees)]
    for multiple in statistics.powers_of_two(n):
        for m in methods:
            (low, high), tokens = m.range, multiple * budget
            is_one_answer = m.model == first and multiple == 1 and isinstance(m, Sampling)  # stands in the table
            if low <= tokens <= high * (1 + 1e-9) and not is_one_answer:
                table.append(row(m, tokens, reference) | {"multiple": multiple})
    models = {name: _model_figures(answers, trees) for name, (answers, trees) in measured.items()}
    curves = [_curve(m, n * budget) for m in methods]
    return {
        "problems": len(reference), "budget": round(budget, 2), "n": n, "models": models, "table": table,
        "curves": [curve for curve in curves if curve["points"]],
    }  # fmt: skip


def _model_figures(answers: Answers, trees: Trees | None) -> dict[str, Any]:
    figures = {
        "pass@1": statistics.summarize(answers.pass_at_k[0]), "answers": answers.n,
        "tokens": round(answers.mean_tokens, 2), "prompt_tokens": round(answers.prompt_tokens, 2),
    }  # fmt: skip
    if trees is None:
        return figures
    solved = trees.solved_at[trees.solved_at > 0]
    return figures | {
        "search": {
            "max_tokens": trees.max_tokens, "solved": round(len(solved) / max(len(trees.solved_at), 1), 4),
            "median_tokens_to_solution": float(np.median(solved)) if len(solved) else None,
            "verdicts_per_token": round(trees.verdicts_per_token, 4),
            "prefilled_per_token": round(trees.prefilled_per_token, 4),
        }
    }  # fmt: skip


def _curve(m: Method, largest: float) -> dict[str, Any]:
    """The accuracy of a method from one answer up to the largest budget, at budgets of equal ratios."""
    low, high = max(m.range[0], m.answer_tokens), min(m.range[1], largest)
    budgets: list[float] = np.geomspace(low, high, CURVE_POINTS).tolist() if low < high else []
    points = [{"tokens": round(b, 1), **statistics.summarize(m.at(b))} for b in budgets]
    return {"model": m.model, "method": m.name, "points": points}
