"""Answers and trees of `astro budgets`, with a scripted engine: blocks, budgets, resuming, refusals."""

import contextlib
import dataclasses
import shutil

import pytest
from etils import epath
from player import Player, policy, problems

from astro_jax import config as cfg
from astro_jax.budgets import measure
from astro_jax.budgets.measure import HELD_OUT
from astro_jax.errors import AstroError
from astro_jax.problems.suites import Suite
from astro_jax.search.store import shards
from astro_jax.search.tree import node_rows
from astro_jax.storage import Shards
from astro_jax.types import Problem
from astro_jax.verify import Verifier

C = cfg.Config(
    eval=cfg.Eval(max_tokens=60, num_samples=3, shard_size=9),
    search=cfg.Search(num_proposals=3, num_rollouts=2, max_concurrent_trees=3, shard_size=4),
)
SUITE = Suite(HELD_OUT, problems(5), {"run": "r"}, {})


class Interrupted(Player):
    """An engine that is stopped at its call number `calls`."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def generate(self, *args, **kwargs):
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        return super().generate(*args, **kwargs)


def run(folder, engine=None, budget=None, is_searched=True, c=C):
    with contextlib.closing(Verifier()) as verifier:
        return measure.measure(
            epath.Path(folder), SUITE, c, policy(engine), verifier, {"model": "m", "seed": 0}, budget, is_searched
        )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "m"
    return folder, run(folder, budget=50.0)


def test_blocks_of_answers_follow_until_they_have_the_tokens_of_n_budgets(measured):
    folder, m = measured
    (n,) = {len(group) for group in m.answers.values()}
    assert n % 3 == 0 and n > 3
    assert n * m.mean_tokens >= 3 * 50.0 > (n - 3) * m.mean_tokens * 0.9
    assert len(list(folder.glob("answers-*-00000.jsonl"))) == n // 3
    first, second = ([row["answers"] for row in Shards(epath.Path(folder), f"answers-00{i}").read()] for i in (0, 1))
    assert first != second  # each block has draws of its own
    assert m.prompt_tokens.keys() == {p.id for p in SUITE.problems}


def test_a_model_with_long_answers_has_one_block_and_no_trees(tmp_path):
    m = run(tmp_path / "m", budget=None, is_searched=False)
    assert {len(group) for group in m.answers.values()} == {3} and m.solved_at is None
    answers, trees = m.of([p.id for p in SUITE.problems[:2]])
    assert answers.tokens.shape == (2, 3) and trees is None


def children(tree, node):
    return [other for other in node_rows(tree) if other["parent"] == node["id"]]


def test_a_tree_ends_with_a_solution_or_when_its_tokens_are_spent(measured):
    folder, m = measured
    trees = list(shards(epath.Path(folder / "search")).read())
    assert m.max_tokens == 150 and len(trees) == 5
    for tree in trees:
        solved = any(node["correct"] for node in node_rows(tree))
        assert solved == (tree["end_reason"] == "enough") and m.solved_at[tree["problem"]["id"]] == tree["solved_at"]
        assert solved == (0 < tree["solved_at"] <= tree["sampled_tokens"])
        if tree["end_reason"] == "iterations":  # every leaf is terminal, so a simulation samples nothing
            assert all(node["terminal"] or children(tree, node) for node in node_rows(tree) if node["prior"])
        else:
            assert solved or tree["sampled_tokens"] >= 150
    assert len({tree["end_reason"] for tree in trees}) > 1
    assert 0 < m.search_rates["verdicts_per_token"] < 1


@pytest.mark.parametrize("calls", [1, 4, 8])
def test_a_stopped_measurement_goes_on_and_ends_the_same(measured, tmp_path, calls):
    folder, whole = measured
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "m", Interrupted(calls), 50.0)
    again = run(tmp_path / "m", None, 50.0)
    assert (again.answers, again.solved_at) == (whole.answers, whole.solved_at)
    names = {p.name for p in folder.rglob("*.jsonl*")}
    for name in names:
        assert next((tmp_path / "m").rglob(name)).read_bytes() == next(folder.rglob(name)).read_bytes()


def test_what_is_finished_is_not_sampled_again(measured):
    folder, whole = measured
    again = run(folder, Interrupted(0), 50.0)
    assert (again.answers, again.solved_at) == (whole.answers, whole.solved_at)


def test_answers_and_trees_of_other_settings_are_refused(measured, tmp_path):
    folder = shutil.copytree(measured[0], tmp_path / "m")
    with pytest.raises(AstroError, match=r"other settings \(max_tokens was 60"):
        run(folder, budget=50.0, c=C.model_copy(update={"eval": C.eval.model_copy(update={"max_tokens": 50})}))
    searched = C.model_copy(update={"search": C.search.model_copy(update={"num_rollouts": 1})})
    with pytest.raises(AstroError, match="m/search: holds responses of other settings"):
        run(folder, budget=50.0, c=searched)
    shutil.rmtree(folder / "search")
    assert run(folder, budget=50.0, c=searched).answers == measured[1].answers


def test_rounds_grow_until_the_tokens_are_spent():
    c = measure._until_solved(cfg.Search(method="rounds", rounds=(2, 4)), 10)
    assert c.rounds == (2, 4, 4, 4, 4) and (c.max_tree_tokens, c.keep_rollouts) == (10, False)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eval": cfg.Eval(temperature=0)}, "temperature=0 makes all answers to a problem equal"),
        ({"search": cfg.Search(method="best-of-n")}, "search.method=best-of-n is measured without trees"),
    ],
)
def test_settings_with_nothing_to_compare_are_refused(changes, message, tmp_path):
    with pytest.raises(AstroError, match=message):
        measure.run([None], [C.model_copy(update=changes)], [SUITE], epath.Path(tmp_path))


def test_problems_that_only_a_judge_can_decide_on_are_refused(tmp_path):
    essays = dataclasses.replace(SUITE, problems=[Problem("why", "Why?", "", task="judged")])
    with pytest.raises(AstroError, match="task=judged has none"):
        measure.run([None], [C], [essays], epath.Path(tmp_path))
