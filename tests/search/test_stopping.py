"""Why a tree ends, by hand."""

import math

import pytest

from astro_jax import config as cfg
from astro_jax.search import stopping
from astro_jax.search.tree import Step, Tree
from astro_jax.types import Problem


def make_tree(rollouts, *verdicts):
    """A tree with a terminal for each (correct, answer)."""
    tree = Tree(Problem("p", "Solve.\n", "1"))
    tree.rollouts = rollouts
    for i, (correct, answer) in enumerate(verdicts):
        tree.add_chain(0, [Step((i,), "")])[0].end(correct, answer)
    return tree


RIGHT, SEVEN, EIGHT, NONE = (True, "1"), (False, "7"), (False, "8"), (False, None)
C = cfg.Search(early_stop={"correct": 1, "wrong": 2, "hopeless": 9, "trivial": 12})


@pytest.mark.parametrize(
    "tree, reason",
    [
        (make_tree(1, RIGHT, SEVEN, EIGHT), "enough"),
        (make_tree(99, RIGHT, SEVEN, SEVEN), ""),
        (make_tree(99, RIGHT, (False, r"\sqrt{8}"), (False, r"2\sqrt{2}")), ""),  # one value, so one wrong answer
        (make_tree(8, SEVEN, EIGHT), ""),
        (make_tree(9, SEVEN, EIGHT), "hopeless"),
        (make_tree(11, RIGHT), ""),
        (make_tree(12, RIGHT, NONE), "trivial"),
        (make_tree(9), "hopeless"),
    ],
)
def test_early_stop(tree, reason):
    assert stopping.end_reason(tree, C, math.inf) == reason
    assert stopping.end_reason(tree, cfg.Search(), math.inf) == ""
    tree.sampled_tokens = 50
    assert stopping.end_reason(tree, C, 50) == (reason or "tokens") and stopping.end_reason(tree, C, 51) == reason


def test_the_token_budget_is_the_smaller_of_two():
    assert stopping.token_budget(cfg.Search(), 3) == math.inf
    assert stopping.token_budget(cfg.Search(max_total_tokens=100), 3) == 33
    assert stopping.token_budget(cfg.Search(max_total_tokens=100, max_tree_tokens=9), 3) == 9
    assert stopping.token_budget(cfg.Search(max_total_tokens=1), 3) == 1
