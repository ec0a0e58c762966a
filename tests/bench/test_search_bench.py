"""What `astro bench search` reports, and what the searches of the recipes reach on the synthetic policy."""

import json

import pytest

from astro_jax import config as cfg
from astro_jax.bench import search as bench
from astro_jax.bench.synthetic import World
from astro_jax.cli import main

PRESET = cfg.load("llama-instruct").search
MCTS = {"num_proposals": 3, "num_rollouts": 2, "num_simulations": 3, "max_rollout_tokens": 20, "max_step_tokens": 4}
STOP = {"correct": 1, "wrong": 2, "hopeless": 8, "trivial": 8}
METHODS = {
    "mcts": MCTS,
    "mcts with kept rollouts": MCTS | {"keep_rollouts": True, "early_stop": STOP, "rollout_rounds": (1, 1)},
    "rounds": {"method": "rounds", "rounds": (2, 4, 4), "early_stop": STOP, "max_rollout_tokens": 20},
    "best-of-n": {"method": "best-of-n", "num_samples": 4, "max_rollout_tokens": 20},
}


def test_the_command_prints_the_shares_and_the_costs(capsys):
    size = ["--lines", "4", "--distinct", "6", "--solve", "0.7", "--trees", "10", "--paper-trees", "1"]
    assert main(["bench", "search", *size, "--json", "search.rounds=[4,8]"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["world"]["lines"] == 4 and result["search"]["rounds"] == [4, 8] and result["trees"] == 10
    assert result["usable"] == round(result["tokens_per_tree"] / result["tokens_per_usable_tree"], 4)
    assert result["depth"] == 4 and sum(result["ended"].values()) == 10
    paper = result["paper"]
    assert paper["trees"] == 1 and paper["ended"] == {"iterations": 1} and paper["right"] == 1
    ratio = paper["tokens_per_usable_tree"] / result["tokens_per_usable_tree"]
    assert paper["tokens_ratio"] == pytest.approx(ratio, abs=0.06) and ratio > 30
    assert main(["bench", "search", "--lines", "2", "--trees", "2", "--paper-trees", "0"]) == 0
    assert "usable: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, message",
    [
        (["--lines", "0"], "at least 1"), (["--trees", "0"], "at least 1"), (["--distinct", "0"], "at least 1"),
        (["--solve", "1.5"], "between 0 and 1"), (["--unfinished", "-1"], "between 0 and 1"),
        (["seed=3"], "seed=3: only keys of search count"), (["search.rounds=[]"], "search.rounds"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(args, message, capsys):
    assert main(["bench", "search", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_tree_needs_no_more_wrong_answers_than_48_plain_samples_hold():
    best_of_4 = cfg.Search(method="best-of-n", num_samples=4)
    one_solution = bench.measure(World(2, 1, 0.5), best_of_4, 30)  # each problem has one solution, right or wrong
    assert 0 < one_solution["right"] < 1 and one_solution["right_and_wrong"] == 0
    assert one_solution["usable"] == one_solution["solvable"] == one_solution["right"]
    assert one_solution["usable_of_solvable"] == 1
    many = bench.measure(World(6, 8, 0.9), best_of_4, 30)  # four samples seldom hold two wrong answers, 48 mostly do
    assert many["usable"] < many["right_and_wrong"] < many["right"]


def test_the_papers_search_reaches_no_end_of_a_long_solution_without_kept_rollouts():
    """`No data`: what the tree search of version 0.2.0 gave."""
    short, long = (bench.measure(World(lines, 8, 0.9), cfg.Search(num_rollouts=4), 4) for lines in (2, 10))
    assert short["right"] == 1 and long["right"] == 0
    kept = bench.measure(World(10, 8, 0.9), cfg.Search(num_rollouts=4, num_simulations=4, keep_rollouts=True), 4)
    assert kept["right"] == 1 and kept["depth"] == 10


@pytest.mark.parametrize("lines, solve", [(8, 0.5), (8, 0.9), (16, 0.9)])
def test_the_search_of_the_recipes_gives_usable_trees_for_a_thirtieth_of_the_papers_tokens(lines, solve):
    figures = bench.measure(World(lines, 8, solve), PRESET, 40)
    assert figures["usable_of_solvable"] >= 0.95
    # The paper's budget: 32 x 8 proposals with 16 rollouts each, of at least one line each.
    assert figures["tokens_per_usable_tree"] < 32 * 8 * 16 * lines / 2 / 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "world",
    [
        World(3, 4, 0.5, unfinished=1.0), World(1, 4, 0.5), World(3, 1, 0.5), World(3, 4, 0.0), World(3, 4, 1.0),
        World(3, 4, 0.5, unfinished=0.5),
    ],
    ids=["never ends a line", "ends at once", "always the same line", "never solved", "always solved", "often cut off"],
)  # fmt: skip
def test_the_search_of_a_strange_policy_ends_and_says_why(method, world):
    figures = bench.measure(world, cfg.Search(**METHODS[method]), 6)
    assert sum(figures["ended"].values()) == 6 and "" not in figures["ended"]
    if world.solve == 0 or world.unfinished == 1:
        assert figures["right"] == figures["usable"] == 0 and figures["tokens_per_usable_tree"] is None
    if "early_stop" in METHODS[method] and world.solve in (0, 1):
        assert set(figures["ended"]) == {"hopeless" if world.solve == 0 else "trivial"}


@pytest.mark.parametrize("method", [m for m in METHODS if m != "best-of-n"])
def test_a_budget_smaller_than_a_round_ends_a_tree_after_the_round(method):
    figures = bench.measure(World(3, 4, 0.5), cfg.Search(**METHODS[method] | {"max_tree_tokens": 1}), 4)
    assert set(figures["ended"]) <= {"tokens", "enough"}
