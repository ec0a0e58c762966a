"""Problems of reasoning-gym."""

import json

import pytest

from astro_jax.errors import AstroError
from astro_jax.problems import gym

pytest.importorskip("reasoning_gym")
TASKS = ("chain_sum", "simple_equations", "fraction_simplification", "gcd", "leg_counting", "polynomial_equations")


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_gives_same_problems_that_survive_json(task):
    problems = gym.read(task, 5, seed=1, params={})
    assert problems == gym.read(task, 5, seed=1, params={}) != gym.read(task, 5, seed=2, params={})
    assert json.loads(json.dumps([p.meta for p in problems])) == [p.meta for p in problems]


@pytest.mark.parametrize(
    "task, params, message",
    [
        ("chain_su", {}, "no task 'chain_su'; similar names: chain_sum"),
        ("chain_sum", {"foo": 1}, "chain_sum does not take {'foo': 1}"),
        ("chain_sum", {"min_terms": -5}, "min_terms must be positive"),
        ("rearc", {}, "rearc's scorer does not accept its own answers"),
    ],
)
def test_bad_task_is_refused_in_one_line(task, params, message):
    with pytest.raises(AstroError) as e:
        gym.read(task, 3, 0, params)
    assert message in str(e.value) and "\n" not in str(e.value)
