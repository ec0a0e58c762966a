"""Accuracy at a budget, against votes one by one and against counts by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astro_jax.budgets import figures
from astro_jax.budgets.figures import Answers, Sampling, Searching, Trees
from astro_jax.evaluate.statistics import majority_is_correct

VOTES = st.lists(st.tuples(st.sampled_from([None, "1", "2", "1.0", "3"]), st.booleans()), min_size=1, max_size=7)


@settings(max_examples=30, deadline=None)
@given(VOTES)
def test_the_expected_majority_is_the_mean_of_votes_taken_one_by_one(votes):
    answers, correct = [a for a, _ in votes], [right and a is not None for a, right in votes]
    orders = np.argsort(np.random.default_rng(0).random((figures.ORDERS, len(votes))), axis=1)
    for k, value in enumerate(figures.expected_majority(answers, correct), 1):
        outcomes = [majority_is_correct([answers[i] for i in o[:k]], [correct[i] for i in o[:k]]) for o in orders]
        assert value == pytest.approx(np.mean(outcomes))


def test_a_tie_goes_to_the_answer_that_came_first():
    # One right vote, one wrong vote and one answer without a vote: right first in half of all orders.
    expected = figures.expected_majority(["7", "5", None], [True, False, False])
    assert expected[-1] == pytest.approx(0.5, abs=0.2) and expected[0] == pytest.approx(1 / 3, abs=0.2)


def answers(correct, tokens=10):
    correct = np.asarray(correct, bool)
    texts = [["right" if c else f"wrong {i}" for i, c in enumerate(row)] for row in correct]
    return Answers(np.full(correct.shape, tokens), correct, texts, prompt_tokens=5.0)


def test_a_budget_between_two_numbers_of_answers_is_shared_among_the_problems():
    a = answers([[1, 0, 0, 0], [0, 0, 0, 0]])
    m = Sampling("m", "best of N", a.pass_at_k, a.mean_tokens)
    assert m.at(10) == pytest.approx([0.25, 0]) and m.at(20) == pytest.approx([0.5, 0])
    assert m.at(17.5) == pytest.approx([0.25 + 0.75 * 0.25, 0]) and m.at(40) == pytest.approx([1, 0])
    assert m.spent(17.5) == {"answers": 1.75, "verdicts": 1.75} and m.range == (10, 40)


def test_a_tree_has_solved_a_problem_once_its_first_solution_is_paid():
    m = Searching("m", Trees(np.asarray([0, 30, 31]), 100, 0.1, 0.0), 10.0)
    assert m.at(30).tolist() == [0, 1, 0] and m.at(100).tolist() == [0, 1, 1]
    assert m.spent(30) == {"answers": None, "verdicts": 3.0}


def test_methods_are_compared_at_the_tokens_of_one_answer_and_at_multiples():
    astro, direct = answers([[1, 1], [1, 0], [0, 0]], 20), answers([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], 10)
    trees = Trees(np.asarray([15, 40, 0]), 40, 0.5, 0.25)
    result = figures.compare({"astro": (astro, None), "direct": (direct, trees)}, budget=20.0, n=2)
    rows = {(r["model"], r["method"], r["multiple"]): r for r in result["table"]}
    assert list(rows) == [
        ("astro", "one answer", 1), ("direct", "one answer", 1),
        *(("direct", method, 1) for method in ("majority vote", "best of N", "tree search")),
        *(("astro", method, 2) for method in ("majority vote", "best of N")),
        *(("direct", method, 2) for method in ("majority vote", "best of N", "tree search")),
    ]  # fmt: skip
    assert rows["astro", "one answer", 1]["mean"] == 0.5 and "difference" not in rows["astro", "one answer", 1]
    best = rows["direct", "best of N", 1]  # two of four answers: 1 - C(3, 2) / C(4, 2) for one right answer
    assert best["answers"] == best["verdicts"] == 2 and best["mean"] == pytest.approx((0.5 + 1 + 0.5) / 3, abs=1e-4)
    assert best["difference"]["difference"] == pytest.approx((-0.5 + 0.5 + 0.5) / 3, abs=1e-4)
    tree = rows["direct", "tree search", 1]
    assert (tree["mean"], tree["verdicts"], tree["tokens"]) == (pytest.approx(1 / 3, abs=1e-4), 10, 20)
    assert rows["direct", "tree search", 2]["mean"] == pytest.approx(2 / 3, abs=1e-4)
    assert result["models"]["direct"]["search"]["median_tokens_to_solution"] == 27.5
    for curve in result["curves"]:
        tokens = [point["tokens"] for point in curve["points"]]
        assert tokens[0] == {"astro": 20, "direct": 10}[curve["model"]] and tokens[-1] == 40
        assert all(point["low"] <= point["mean"] <= point["high"] for point in curve["points"])


def test_a_model_whose_one_answer_costs_more_has_no_vote_at_the_budget():
    result = figures.compare({"a": (answers([[1], [0]], 10), None), "b": (answers([[1], [0]], 30), None)}, 10.0, 1)
    assert [(r["model"], r["method"], r["tokens"]) for r in result["table"]] == [
        ("a", "one answer", 10), ("b", "one answer", 30),
    ]  # fmt: skip
