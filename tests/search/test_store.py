"""The tree store: killed, torn, shared by processes, another run's; and what reads it."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys

import pytest
from helpers import one_device, tiny_config, tiny_params
from player import TOKENIZER, Player, killed, policy, problems, searched, slowly

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.policy import Policy
from astro_jax.sampler import Engine
from astro_jax.search import mcts
from astro_jax.search.store import Store
from astro_jax.search.tree import Tree
from astro_jax.verify import Verifier

EARLY = {"enough": {"correct": 1, "wrong": 1}}  # trees that end at different times


def trees(folder):
    """The bytes of all finished trees."""
    return {f.name: f.read_bytes() for f in sorted(folder.glob("trees-*.jsonl"))}


class Stop(Exception):
    """Where a search is cut off."""


class Stopping(Player):
    """A player that stops the search in its n-th call."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def generate(self, *args, **how):
        self.left -= 1
        if not self.left:
            raise Stop
        return super().generate(*args, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(trees, counts) of a search that nothing disturbed: 11 problems, 3 in flight."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, searched(folder, 11, EARLY | {"wave": 3})


def same(counts, others):
    """Without what depends on the clock and on how often it was started."""
    timed = {"seconds", "nodes/s", "tokens/s", "host", "occupancy", "prefix_reuse", "solved", "torn"}
    return {k: v for k, v in counts.items() if k not in timed} == {k: v for k, v in others.items() if k not in timed}


# ---- Killed


def test_a_search_that_is_stopped_at_any_call_ends_with_the_same_bytes(whole, tmp_path):
    folder, counts = whole
    again, rng = None, random.Random(0)
    stops = 0
    while again is None:
        try:
            again = searched(tmp_path, 11, EARLY | {"wave": 3}, player=Stopping(rng.randrange(2, 9)))
        except Stop:
            stops += 1
    assert stops > 4 and trees(tmp_path) == trees(folder) and same(again, counts)
    assert {f.name for f in tmp_path.iterdir()} == {*trees(folder), "cost-0-of-1.json"}


def test_after_a_kill_only_the_iteration_under_way_is_done_again(tmp_path):
    asked, after, undisturbed = problems(4, count=4), Player(), Player()
    with pytest.raises(Stop):
        searched(tmp_path, asked, {"wave": 4}, player=Stopping(6))  # the third iteration's rollouts
    searched(tmp_path, asked, {"wave": 4}, player=after)
    searched(tmp_path / "other", asked, {"wave": 4}, player=undisturbed)
    assert len(after.flights) == len(undisturbed.flights) - 4
    assert after.problems == undisturbed.problems[-len(after.problems) :]


def test_what_is_under_way_can_be_looked_at(tmp_path):
    with pytest.raises(Stop):
        searched(tmp_path, problems(5, count=4), {"wave": 3}, player=Stopping(8))
    lines = (tmp_path / "underway-0-of-1.jsonl").read_text().splitlines()
    found = [Tree.from_record(json.loads(line)) for line in lines]
    assert [(t.iterations, t.ended) for t in found] == [(3, "")] * 3
    assert found[0].tokens(1) == found[0].prompt + found[0].nodes[1].tokens and len(found[0].nodes[1].tokens) > 3
    cost = json.loads((tmp_path / "cost-0-of-1.json").read_text())
    assert cost["nodes"] == sum(len(t.nodes) - 1 for t in found)
    assert cost["tokens"] == sum(t.sampled for t in found)


def test_what_it_cost_is_summed_over_restarts(whole, tmp_path):
    with pytest.raises(Stop):
        searched(tmp_path, 11, EARLY | {"wave": 3}, player=Stopping(10))
    counts = searched(tmp_path, 11, EARLY | {"wave": 3})
    cost = json.loads((tmp_path / "cost-0-of-1.json").read_text())
    assert cost["nodes"] == counts["nodes"] - 11 and cost["tokens"] == counts["sampled_tokens"]


def test_a_store_that_lost_a_file_is_completed_with_the_same_bytes(whole, tmp_path):
    searched(tmp_path, 11, EARLY | {"wave": 3})
    (tmp_path / "trees-00001.jsonl").unlink()
    player = Player()
    assert same(searched(tmp_path, 11, EARLY | {"wave": 3}, player=player), whole[1])
    assert trees(tmp_path) == trees(whole[0])
    assert set(player.problems) == {p.id for p in problems(11)[3:6]}  # nothing else was searched again
    player = Player()
    assert same(searched(tmp_path, 11, EARLY | {"wave": 3}, player=player), whole[1]) and player.problems == []


def test_a_killed_search_and_one_in_four_processes_give_the_same_trees(tmp_path, monkeypatch):
    """Six times SIGKILL, in the middle of a file or just after; the same problems undisturbed; and four processes."""
    n, how = 40, EARLY | {"wave": 4}
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the process that the others are forked from
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["player"])

    def start(target, *args):
        process = context.Process(target=target, args=args)
        process.start()
        return process

    stopped, shared, plain = tmp_path / "stopped", tmp_path / "shared", tmp_path / "plain"
    found = []
    for write, late in ((7, False), (4, True), (12, False), (9, True), (20, False), (1, False)):
        process = start(killed, str(stopped), n, how, write, late)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found.append(len(trees(stopped)))
    assert found == sorted(found) and 0 < found[-1] < 10
    four = [start(slowly, str(shared), n, how, (i, 4)) for i in range(4)]
    searched(plain, n, how)
    searched(stopped, n, how)
    for process in four:
        process.join()
        assert process.exitcode == 0
    assert len(trees(plain)) == 10 and trees(stopped) == trees(shared) == trees(plain)
    player = Player()  # the run that joins them finds all trees done
    searched(shared, n, how, player=player)
    assert player.problems == [] and trees(shared) == trees(plain)


# ---- Shared by processes


def test_each_process_has_blocks_of_its_own(whole, tmp_path):
    names = []
    for i in (2, 0, 1):
        folder = tmp_path / str(i)
        searched(folder, 11, EARLY | {"wave": 3}, part=(i, 3))
        names += [(i, name) for name in trees(folder)]
        for name, found in trees(folder).items():
            assert found == trees(whole[0])[name]
    assert sorted(names) == [(b % 3, f"trees-0000{b}.jsonl") for b in (0, 3, 1, 2)]


def test_what_a_killed_process_has_left_is_taken_over_by_the_run_that_joins(whole, tmp_path):
    with pytest.raises(Stop):
        searched(tmp_path, 11, EARLY | {"wave": 3}, part=(1, 2), player=Stopping(8))
    searched(tmp_path, 11, EARLY | {"wave": 3}, part=(0, 2))
    assert (tmp_path / "underway-1-of-2.jsonl").exists()
    player = Player()
    counts = searched(tmp_path, 11, EARLY | {"wave": 3}, player=player)
    assert trees(tmp_path) == trees(whole[0]) and same(counts, whole[1])
    assert not list(tmp_path.glob("underway-*"))
    alone = Player()
    mcts.search(
        problems(11)[3:6],
        cfg.Search(num_proposals=4, num_rollouts=3, num_simulations=8, **EARLY),
        policy(alone),
        Verifier(),
    )
    assert 0 < len(player.flights) < len(alone.flights) + 10 and len(list(tmp_path.glob("cost-*"))) == 3
    assert sum(json.loads(f.read_text())["nodes"] for f in tmp_path.glob("cost-*")) == counts["nodes"] - 11


def test_more_processes_than_blocks_are_refused(tmp_path):
    with pytest.raises(AstroError, match=r"--shard 4/5: search\.wave=3 cuts the problems into 4 parts"):
        searched(tmp_path, 11, {"wave": 3}, part=(4, 5))


# ---- Torn, or another's


@pytest.mark.parametrize("kept, lost", [(0.5, 2), (0.999, 1), (0.0, 3)])
def test_a_torn_file_is_named_and_counted_and_its_lost_trees_grown_again(whole, tmp_path, capsys, kept, lost):
    searched(tmp_path, 11, EARLY | {"wave": 3})
    path = tmp_path / "trees-00002.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    capsys.readouterr()
    player = Player()
    counts = searched(tmp_path, 11, EARLY | {"wave": 3}, player=player)
    assert f"trees-00002.jsonl: cut short, {lost} of its 3 trees are grown again" in capsys.readouterr().err
    assert counts["torn"] == lost and trees(tmp_path) == trees(whole[0])
    assert len(set(player.problems)) == lost


def test_a_torn_file_of_trees_under_way_costs_the_trees_that_it_lost(whole, tmp_path):
    with pytest.raises(Stop):
        searched(tmp_path, 11, EARLY | {"wave": 3}, player=Stopping(6))
    path = tmp_path / "underway-0-of-1.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    assert same(searched(tmp_path, 11, EARLY | {"wave": 3}), whole[1]) and trees(tmp_path) == trees(whole[0])


@pytest.mark.parametrize("stopped", [False, True])
def test_a_store_of_another_config_is_refused_and_left_alone(tmp_path, stopped):
    if stopped:
        with pytest.raises(Stop):
            searched(tmp_path, 11, {"wave": 11}, player=Stopping(6))
    else:
        searched(tmp_path, 11)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(AstroError, match=r"jsonl: holds trees of another config \(mine there, yours here\)"):
        searched(tmp_path, 11, {"wave": 11}, digest="yours")
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_store_of_other_problems_is_refused(tmp_path):
    searched(tmp_path, problems(4))
    with pytest.raises(AstroError, match=r"trees-00000\.jsonl: holds trees of other problems"):
        searched(tmp_path, problems(6)[2:])


@pytest.mark.parametrize(
    "damage", [b"{}\n", b'{"config": "mine"}\n', b"nonsense\n", b'{"config": "mine", "problem": 3}\n']
)
def test_a_file_that_holds_no_trees_is_refused_in_one_line(tmp_path, damage):
    searched(tmp_path, 4)
    (tmp_path / "trees-00001.jsonl").write_bytes(damage)
    with pytest.raises(AstroError, match=r"trees-00001\.jsonl"):
        searched(tmp_path, 4)


# ---- Read


def test_datasets_reads_the_store(whole, tmp_path, monkeypatch):
    """Blocks of one, so that there are files in which no tree has an answer, and problems with `meta` of many kinds."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the extra `hub`")
    asked = [*problems(4, count=4), *problems(4)]
    for i, p in enumerate(asked):
        p.meta["kind"] = [None, "algebra", 3, {"level": 5}, [1, "a"]][i % 5]
    counts = searched(tmp_path, asked, {"wave": 1, "iterations": 2})
    paths = sorted(map(str, tmp_path.glob("trees-*.jsonl")))
    found = datasets.load_dataset("json", data_files=paths, cache_dir=str(tmp_path / "cache"))["train"]
    assert len(found) == 8 and sum(len(row["nodes"]) for row in found) == counts["nodes"]
    assert [json.loads(row["problem"]["meta"]) for row in found] == [p.meta for p in asked]
    answers = [{n["answer"] for n in row["nodes"]} for row in found]
    assert any(len(a) > 1 for a in answers) and answers[0] == {""}
    assert found[0]["nodes"][1]["visits"] == Tree.from_record(found[0]).nodes[1].visits == 1


def test_the_store_reads_back_what_was_grown(tmp_path):
    searched(tmp_path, 5, {"wave": 2})
    grown = mcts.search(
        problems(5), cfg.Search(num_proposals=4, num_rollouts=3, num_simulations=8), policy(), Verifier()
    )
    store = Store(tmp_path, problems(5), 2, "mine")
    assert store.left == 0 and store.total == 5
    for mine, theirs in zip(store.read(), grown, strict=True):
        assert mine.record() == theirs.record() and mine.problem == theirs.problem


# ---- With a model


def test_with_a_model_too_a_search_that_is_stopped_ends_with_the_same_bytes(tmp_path):
    """Its logits depend in their last digits on what decodes beside it: the same trees are in flight again."""
    config = tiny_config(vocab_size=len(TOKENIZER), n_layers=1)
    changes = {"wave": 2, "proposals": 2, "rollouts": 1, "iterations": 3, "max_step_tokens": 16, "max_tokens": 16}
    how = changes | {"step_end": "", "enough": {"correct": 0, "wrong": 1}, "depth": 3}
    calls = 0

    def search(folder, stop_at):
        sampler = Engine(config, one_device(), 0, max_num_seqs=2)
        generate = sampler.generate

        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Stop
            return generate(*args, **kwargs)

        sampler.generate = counted
        searched(folder, 3, how, player=Policy(sampler, tiny_params(config), TOKENIZER))

    search(tmp_path / "whole", 0)
    every = calls
    assert every > 5
    for stop_at in (3, 4, 4, 0):
        calls = 0
        with pytest.raises(Stop) if stop_at else contextlib.nullcontext():
            search(tmp_path / "stopped", stop_at)
    assert trees(tmp_path / "stopped") == trees(tmp_path / "whole") and len(trees(tmp_path / "whole")) == 2
