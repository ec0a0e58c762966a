"""The tree store: interrupted, cut short, shared by processes, or of another run; and its readers."""

import contextlib
import gzip
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest
from etils import epath
from helpers import one_device, tiny_config, tiny_params
from player import (
    SMALL_SEARCH,
    TOKENIZER,
    Player,
    policy,
    problems,
    search_problems,
    search_slowly,
    search_until_killed,
)  # fmt: skip

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.policy import Policy
from astro_jax.sampler import Engine
from astro_jax.search.run import search
from astro_jax.search.store import TreeStore, shards
from astro_jax.search.tree import Tree, node_rows
from astro_jax.verify import Verifier

EARLY = {"early_stop": {"correct": 1, "wrong": 1}}  # trees that end at different times


def sizes(n):
    """n active trees, and n trees a file."""
    return {"max_concurrent_trees": n, "shard_size": n}


THREE = EARLY | sizes(3)


def tree_files(folder):
    """The bytes of all finished trees."""
    return {f.name: f.read_bytes() for f in sorted(folder.glob("trees-*"))}


class Interrupted(Exception):
    """Ends a search in the middle."""


class InterruptedEngine(Player):
    """A player that interrupts the search in its n-th call."""

    def __init__(self, calls):
        super().__init__()
        self.remaining_calls = calls

    def generate(self, *args, **kwargs):
        self.remaining_calls -= 1
        if not self.remaining_calls:
            raise Interrupted
        return super().generate(*args, **kwargs)


def search_interrupted(folder, problems_or_count, changes, calls, **kwargs):
    with pytest.raises(Interrupted):
        search_problems(folder, problems_or_count, changes, engine=InterruptedEngine(calls), **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, counts) of a search that nothing interrupted: 11 problems, 3 active trees."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, search_problems(folder, 11, THREE)


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the whole search that a test may damage."""
    return shutil.copytree(whole[0], tmp_path / "copy")


def stable(counts):
    """The counts that depend neither on the clock nor on the number of restarts."""
    unstable = {"seconds", "nodes/s", "tokens/s", "host", "occupancy", "prefix_reuse", "solved", "torn"}
    return {k: v for k, v in counts.items() if k not in unstable}


# ---- Interrupted


def test_a_search_interrupted_at_any_call_ends_with_the_same_bytes(whole, tmp_path):
    folder, counts = whole
    resumed, rng, interruptions = None, random.Random(0), 0
    while resumed is None:
        try:
            resumed = search_problems(tmp_path, 11, THREE, engine=InterruptedEngine(rng.randrange(2, 9)))
        except Interrupted:
            interruptions += 1
    assert interruptions > 4 and tree_files(tmp_path) == tree_files(folder) and stable(resumed) == stable(counts)
    assert {f.name for f in tmp_path.iterdir()} == {*tree_files(folder), "cost-0-of-1.json"}


def test_after_an_interruption_only_the_last_simulation_is_repeated(tmp_path):
    chosen, resumed, undisturbed = problems(4, count=4), Player(), Player()
    search_interrupted(tmp_path, chosen, sizes(4), 6)  # the rollouts of the third simulation
    search_problems(tmp_path, chosen, sizes(4), engine=resumed)
    search_problems(tmp_path / "other", chosen, sizes(4), engine=undisturbed)
    assert len(resumed.problems_per_call) == len(undisturbed.problems_per_call) - 4
    assert resumed.problem_ids == undisturbed.problem_ids[-len(resumed.problem_ids) :]


def test_a_save_that_takes_long_is_not_made_after_each_simulation(tmp_path, monkeypatch):
    """With SAVE_SHARE = 0.05 a save of 50 ms is followed by a second without a save."""
    saves, save = [], TreeStore.save

    def slow_save(store, active):
        saves.append(len(active))
        time.sleep(0.05)
        save(store, active)

    monkeypatch.setattr(TreeStore, "save", slow_save)
    search_problems(tmp_path / "all", 4, sizes(4))
    always, saves[:] = len(saves), []
    search_problems(tmp_path / "few", 4, sizes(4), save_share=0.05)
    assert len(saves) == 1 < 6 < always and tree_files(tmp_path / "all") == tree_files(tmp_path / "few")


def test_active_trees_can_be_read(tmp_path):
    search_interrupted(tmp_path, problems(5, count=4), sizes(3), 8)
    lines = (tmp_path / "active-0-of-1.jsonl").read_text().splitlines()
    trees = [Tree.from_record(json.loads(line)) for line in lines]
    assert [(t.simulations, t.end_reason) for t in trees] == [(3, "")] * 3
    first = trees[0]
    assert first.prefix_tokens(1) == first.prompt_tokens + first.nodes[1].tokens and len(first.nodes[1].tokens) > 3
    cost = json.loads((tmp_path / "cost-0-of-1.json").read_text())
    assert cost["nodes"] == sum(len(t.nodes) - 1 for t in trees)
    assert cost["tokens"] == sum(t.sampled_tokens for t in trees)


def test_the_cost_is_summed_over_restarts(tmp_path):
    search_interrupted(tmp_path, 11, THREE, 10)
    counts = search_problems(tmp_path, 11, THREE)
    cost = json.loads((tmp_path / "cost-0-of-1.json").read_text())
    assert cost["nodes"] == counts["nodes"] - 11 and cost["tokens"] == counts["sampled_tokens"]


def test_a_store_that_lost_a_file_is_completed_with_the_same_bytes(whole, copy):
    (copy / "trees-00001.jsonl.gz").unlink()
    engine = Player()
    assert stable(search_problems(copy, 11, THREE, engine=engine)) == stable(whole[1])
    assert tree_files(copy) == tree_files(whole[0])
    assert set(engine.problem_ids) == {p.id for p in problems(11)[3:6]}  # no other problem is searched again
    engine = Player()
    assert stable(search_problems(copy, 11, THREE, engine=engine)) == stable(whole[1]) and engine.problem_ids == []


@pytest.mark.nightly
@pytest.mark.slow
def test_sigkill_at_six_writes_and_four_processes_give_the_same_bytes(tmp_path, monkeypatch):
    """Six times SIGKILL, in the middle of a write or just after; the same search undisturbed; and four processes."""
    n, changes = 40, EARLY | sizes(4)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the process that the others are forked from
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["player"])

    def start(target, *args):
        process = context.Process(target=target, args=args)
        process.start()
        return process

    killed, shared, plain = tmp_path / "killed", tmp_path / "shared", tmp_path / "plain"
    num_files = []
    for write, late in ((7, False), (4, True), (12, False), (9, True), (20, False), (1, False)):
        process = start(search_until_killed, str(killed), n, changes, write, late)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        num_files.append(len(tree_files(killed)))
    assert num_files == sorted(num_files) and 0 < num_files[-1] < 10
    processes = [start(search_slowly, str(shared), n, changes, (i, 4)) for i in range(4)]
    search_problems(plain, n, changes)
    search_problems(killed, n, changes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(tree_files(plain)) == 10 and tree_files(killed) == tree_files(shared) == tree_files(plain)
    engine = Player()  # a search without a shard finds all trees done
    search_problems(shared, n, changes, engine=engine)
    assert engine.problem_ids == [] and tree_files(shared) == tree_files(plain)


def test_a_store_of_version_0_2_0_is_read_and_not_searched_again(whole, tmp_path):
    """It held uncompressed files, with one object a node."""
    for i, path in enumerate(shards(epath.Path(whole[0])).paths()):
        records = [record | {"nodes": node_rows(record)} for record in storage.read_jsonl(path)]
        assert records[0]["nodes"][0]["id"] == 0
        storage.write_jsonl(epath.Path(tmp_path) / f"trees-0000{i}.jsonl", records)
    (tmp_path / "trees-00002.jsonl").unlink()
    engine = Player()
    assert stable(search_problems(tmp_path, 11, THREE, engine=engine)) == stable(whole[1])
    assert set(engine.problem_ids) == {p.id for p in problems(11)[6:9]}
    again, trees = ([Tree.from_record(r).record() for r in shards(epath.Path(f)).read()] for f in (tmp_path, whole[0]))
    assert again == trees


# ---- Shared by processes


def test_each_process_writes_its_own_blocks(whole, tmp_path):
    names = []
    for i in (2, 0, 1):
        folder = tmp_path / str(i)
        search_problems(folder, 11, THREE, shard=(i, 3))
        names += [(i, name) for name in tree_files(folder)]
        assert tree_files(folder).items() <= tree_files(whole[0]).items()
    assert sorted(names) == [(b % 3, f"trees-0000{b}.jsonl.gz") for b in (0, 3, 1, 2)]


def test_a_search_without_a_shard_takes_over_the_active_trees_of_an_interrupted_process(whole, tmp_path):
    search_interrupted(tmp_path, 11, THREE, 8, shard=(1, 2))
    search_problems(tmp_path, 11, THREE, shard=(0, 2))
    assert (tmp_path / "active-1-of-2.jsonl").exists()
    engine = Player()
    counts = search_problems(tmp_path, 11, THREE, engine=engine)
    assert tree_files(tmp_path) == tree_files(whole[0]) and stable(counts) == stable(whole[1])
    assert not list(tmp_path.glob("active-*"))
    alone = Player()
    search(problems(11)[3:6], cfg.Search(**SMALL_SEARCH | EARLY), policy(alone), Verifier())
    assert 0 < len(engine.problems_per_call) < len(alone.problems_per_call) + 10
    assert len(list(tmp_path.glob("cost-*"))) == 3
    assert sum(json.loads(f.read_text())["nodes"] for f in tmp_path.glob("cost-*")) == counts["nodes"] - 11


def test_more_processes_than_blocks_are_refused(tmp_path):
    with pytest.raises(AstroError, match=r"--shard 4/5: search\.shard_size=3 cuts the problems into 4 blocks"):
        search_problems(tmp_path, 11, sizes(3), shard=(4, 5))


# ---- Cut short, or of another run


@pytest.mark.parametrize("kept, lost", [(0.85, 2), (0.999, 1), (0.0, 3)])
def test_a_file_cut_short_is_named_and_counted_and_its_lost_trees_are_searched_again(whole, copy, capsys, kept, lost):
    path = copy / "trees-00002.jsonl.gz"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    engine = Player()
    counts = search_problems(copy, 11, THREE, engine=engine)
    assert f"trees-00002.jsonl.gz: cut short, {lost} of its 3 trees are searched again" in capsys.readouterr().err
    assert counts["torn"] == lost and tree_files(copy) == tree_files(whole[0])
    assert len(set(engine.problem_ids)) == lost


def test_a_file_of_active_trees_cut_short_costs_only_its_lost_trees(whole, tmp_path):
    search_interrupted(tmp_path, 11, THREE, 6)
    path = tmp_path / "active-0-of-1.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    assert stable(search_problems(tmp_path, 11, THREE)) == stable(whole[1])
    assert tree_files(tmp_path) == tree_files(whole[0])


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_store_of_another_config_is_refused_and_left_unchanged(copy, tmp_path, interrupted):
    folder = copy
    if interrupted:
        folder = tmp_path / "interrupted"
        search_interrupted(folder, 11, sizes(11), 6)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(AstroError, match=r"jsonl(\.gz)?: holds trees of another config \(mine there, yours here\)"):
        search_problems(folder, 11, sizes(11), digest="yours")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_a_store_of_other_problems_is_refused(copy):
    with pytest.raises(AstroError, match=r"trees-00000\.jsonl\.gz: holds trees of other problems"):
        search_problems(copy, problems(11)[2:], THREE)


@pytest.mark.parametrize(
    "damage", [b"{}\n", b'{"config": "mine"}\n', b"nonsense\n", b'{"config": "mine", "problem": 3}\n']
)
def test_a_file_without_trees_is_refused_in_one_line(copy, damage):
    (copy / "trees-00001.jsonl.gz").write_bytes(gzip.compress(damage))
    with pytest.raises(AstroError, match=r"trees-00001\.jsonl\.gz"):
        search_problems(copy, 11, THREE)


# ---- Read


def test_datasets_reads_the_store(tmp_path, monkeypatch):
    """One tree a file, so that some files hold no answer; and problems with `meta` of many types."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the extra `hub`")
    chosen = [*problems(4, count=4), *problems(4)]
    for i, p in enumerate(chosen):
        p.meta["kind"] = [None, "algebra", 3, {"level": 5}, [1, "a"]][i % 5]
    counts = search_problems(tmp_path, chosen, sizes(1) | {"num_simulations": 2})
    paths = sorted(map(str, tmp_path.glob("trees-*.jsonl.gz")))
    rows = datasets.load_dataset("json", data_files=paths, cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 8 and sum(len(row["nodes"]["id"]) for row in rows) == counts["nodes"]
    assert [json.loads(row["problem"]["meta"]) for row in rows] == [p.meta for p in chosen]
    answers = [set(row["nodes"]["answer"]) for row in rows]
    assert any(len(a) > 1 for a in answers) and answers[0] == {""}
    assert rows[0]["nodes"]["visits"][1] == Tree.from_record(rows[0]).nodes[1].visits == 1


def test_the_store_reads_back_the_trees_of_the_search(tmp_path):
    search_problems(tmp_path, 5)
    trees = search(problems(5), cfg.Search(**SMALL_SEARCH), policy(), Verifier())
    store = TreeStore(tmp_path, problems(5), 2, "mine")
    assert store.remaining == 0 and store.total == 5
    for stored, tree in zip(map(Tree.from_record, shards(tmp_path).read()), trees, strict=True):
        assert stored.record() == tree.record() and stored.problem == tree.problem


# ---- With a model


def test_a_search_by_a_real_model_that_is_interrupted_ends_with_the_same_bytes(tmp_path):
    """The last digits of logits depend on the batch, so the resumed search must have the same active trees."""
    config = tiny_config(vocab_size=len(TOKENIZER), n_layers=1)
    changes = sizes(2) | {
        "num_proposals": 2, "num_rollouts": 1, "num_simulations": 3, "max_step_tokens": 16, "max_rollout_tokens": 16,
        "step_end": "", "early_stop": {"correct": 0, "wrong": 1}, "max_depth": 3,
    }  # fmt: skip
    engine = Engine(config, one_device(), 0, max_num_seqs=2)  # one engine for all searches: its programs compile once
    model, generate, calls = Policy(engine, tiny_params(config), TOKENIZER), engine.generate, 0

    def search_until(folder, stop_at):
        nonlocal calls
        calls = 0

        def counting_generate(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Interrupted
            return generate(*args, **kwargs)

        engine.generate = counting_generate
        search_problems(folder, 3, changes, engine=model)

    search_until(tmp_path / "whole", 0)
    assert calls > 5
    for stop_at in (3, 4, 4, 0):
        with pytest.raises(Interrupted) if stop_at else contextlib.nullcontext():
            search_until(tmp_path / "stopped", stop_at)
    assert tree_files(tmp_path / "stopped") == tree_files(tmp_path / "whole")
    assert len(tree_files(tmp_path / "whole")) == 2
