"""The search stage: many problems with a limited number of active trees, problems that do not fit, and the figures."""

import pathlib

import pytest
from etils import epath
from player import SMALL_SEARCH, TOKENIZER, Player, completion, policy, problems, search_problems

from astro_jax import config as cfg
from astro_jax import progress
from astro_jax.errors import AstroError
from astro_jax.search.run import search
from astro_jax.search.store import shards
from astro_jax.verify import Verifier

EARLY = {"early_stop": {"correct": 1, "wrong": 1}}  # trees that end at different times


def search_first(n, **changes):
    return search(problems(n), cfg.Search(**SMALL_SEARCH | changes), policy(), Verifier())


def records(folder):
    """The records of the store, without the digest of the run's configuration."""
    return [{k: v for k, v in record.items() if k != "config"} for record in shards(epath.Path(folder)).read()]


# ---- Active trees


@pytest.fixture(scope="module")
def eleven_trees():
    trees = search_first(11, **EARLY, max_tree_tokens=200)
    assert len({t.simulations for t in trees}) > 3  # they end at different times
    return [t.record() for t in trees]


@pytest.mark.parametrize("max_concurrent_trees, shard_size", [(1, 2), (3, 3), (5, 1), (20, 20)])
def test_trees_depend_neither_on_max_concurrent_trees_nor_on_shard_size(
    tmp_path, eleven_trees, max_concurrent_trees, shard_size
):
    sizes = {"max_concurrent_trees": max_concurrent_trees, "shard_size": shard_size}
    search_problems(tmp_path, 11, EARLY | {"max_tree_tokens": 200} | sizes)
    assert records(tmp_path) == eleven_trees


def test_the_next_problem_starts_when_a_tree_ends(tmp_path):
    engine = Player()
    search_problems(tmp_path, 12, EARLY | {"max_concurrent_trees": 4, "shard_size": 4}, engine=engine)
    proposals = engine.problems_per_call[::2]  # each step makes two calls: proposals, then rollouts
    assert max(proposals) == 4
    simulations = [t["simulations"] for t in records(tmp_path)]
    assert len(set(simulations)) > 1
    # Fixed batches of four would wait for the slowest tree of each batch.
    slowest = sum(max(simulations[i : i + 4]) for i in (0, 4, 8))
    assert max(simulations) <= len(proposals) < slowest


# ---- Bad input


def test_nodes_without_a_complete_step_are_counted(tmp_path):
    class EndlessEngine(Player):
        def one(self, request, j, to_the_end):
            return completion(" 1 = 2.\n" * 3, stopped=False)

    counts = search_problems(tmp_path, 4, engine=EndlessEngine())
    assert counts["unfinished"] == 4 == counts["trees"] and counts["valid_trees"] == 0 and counts["nodes"] == 4
    counts = search_problems(tmp_path / "usual", 4)
    assert counts["unfinished"] == 0 < counts["valid_trees"]


def test_a_problem_longer_than_the_context_is_skipped_and_named(tmp_path, capsys):
    long, short = problems(2, count=4), problems(4)
    engine = Player(max_positions=len(TOKENIZER.encode(short[0].prompt)) + 64)
    counts = search_problems(tmp_path, [long[0], *short, long[1]], engine=engine)
    assert counts["skipped"] == sorted(p.id for p in long) and counts["trees"] == 4
    assert f"skipped: {', '.join(counts['skipped'])}" in capsys.readouterr().err
    assert set(engine.problem_ids) == {p.id for p in short}
    with pytest.raises(AstroError, match="no problem fits the model's context"):
        search_problems(tmp_path / "none", 6, engine=Player(max_positions=65))


# ---- Figures


def test_counts_agree_with_the_store_and_the_engine(tmp_path):
    engine = Player(seconds=0.002)
    counts = search_problems(tmp_path, 5, engine=engine)
    trees = search_first(5)
    solved = [any(n.correct for n in t.nodes) for t in trees]
    assert {k: counts[k] for k in ("trees", "nodes", "valid_trees", "yield", "sampled_tokens", "ended", "torn")} == {
        "trees": 5, "nodes": sum(len(t.nodes) for t in trees), "valid_trees": sum(solved), "yield": sum(solved) / 5,
        "sampled_tokens": sum(t.sampled_tokens for t in trees), "ended": {"iterations": 5}, "torn": 0,
    }  # fmt: skip
    assert 0 < sum(solved) and counts["sampled_tokens"] == engine.stats.tokens
    assert counts["occupancy"] == 0.5 and 0 < counts["host"] < 1 and 0 < counts["solved"] < 1
    assert counts["tokens/s"] == pytest.approx(engine.stats.tokens / counts["seconds"], rel=0.05)
    assert counts["nodes/s"] == pytest.approx((counts["nodes"] - 5) / counts["seconds"], rel=0.05)


def test_host_is_the_share_of_the_time_outside_the_sampler(tmp_path):
    slow = search_problems(tmp_path / "slow", 3, {"num_simulations": 4}, engine=Player(seconds=0.05))
    fast = search_problems(tmp_path / "fast", 3, {"num_simulations": 4})
    assert slow["host"] < 0.5 and slow["seconds"] > 0.4 > fast["seconds"]


def test_the_bar_shows_the_figures_during_the_search(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    search_problems(tmp_path, 4, engine=Player(seconds=0.05))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 8 and lines[-1].split()[:2] == ["search", "4/4"]
    for name in ("problems/s", "nodes/s", "tokens/s", "occupancy 0.5", "prefix reuse", "solved", "yield", "s left"):
        assert name in lines[3], name
    assert lines[3].split()[1] == "0/4" and not lines[3].endswith(" 0 s left")  # active trees count for the time left


# ---- The recipe


def test_the_recipe_for_instruct_models_ends_trees_that_are_usable_and_asks_for_lines():
    c = cfg.load(str(pathlib.Path(__file__).parents[2] / "configs/llama-instruct.yaml"), ["problems.path=p.jsonl"])
    s = c.search
    assert (s.method, s.focus, s.max_depth) == ("rounds", "uncertain", 50) and sum(s.rounds) == 96
    assert s.early_stop == cfg.EarlyStop(correct=1, wrong=2, hopeless=64, trivial=64)
    assert c.chat.template and r"\boxed{answer}" in c.chat.system and "\n" not in c.chat.system
    assert s.step_end == "\n" and "line of its own" in c.chat.system
