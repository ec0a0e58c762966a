"""Which trees, traces and answers the page shows."""

import shutil

import pytest
from fake_run import fake_run

from astro_jax import countdown
from astro_jax.report import run_folder, selection
from astro_jax.search.tree import Tree


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "quickstart")


def test_six_problems_with_traces_and_one_unsolved_tree_are_selected(run):
    problems = selection.problems(run_folder.read(run))
    assert len(problems) == 7
    assert all(problem["traces"] for problem in problems[:6]) and not problems[6]["traces"]
    assert any(s["kind"] == "backtrack" and s["node"] for s in problems[0]["traces"][0]["segments"])


def test_held_out_problems_cover_all_outcomes(run):
    held_out = selection.held_out(run_folder.read(run))
    assert sum(held_out["counts"].values()) == 60
    assert {p["outcome"] for p in held_out["problems"]} == {"astro", "both", "neither", "direct"}


def test_trees_are_shown_before_traces_are_made(tmp_path):
    run = fake_run(tmp_path / "half", trees=10, held_out=6)
    shutil.rmtree(run / "traces")
    problems = selection.problems(run_folder.read(run))
    assert len(problems) == 7 and not any(problem["traces"] for problem in problems)


def test_large_trees_are_pruned_to_traces_and_most_visited_nodes():
    nodes = [
        {"id": i, "parent": (i - 1) // 3 if i else -1, "text": "x" * 5000, "visits": 5000 - i} for i in range(5000)
    ]
    kept = selection.prune(nodes, {4999})
    ids = {node["id"] for node in kept}
    assert 4999 in ids and all(n["parent"] in ids for n in kept[1:]) and len(kept) < selection.MAX_NODES + 10
    assert sum(node["hidden"] for node in kept) <= 5000 - len(kept)
    assert all(len(node["text"]) < selection.NODE_CHARS + 50 for node in kept)


def test_long_text_loses_its_middle():
    assert selection.shorten("a" * 50 + "b" * 50, 30) == "a" * 20 + "\n[… 70 characters …]\n" + "b" * 10


def test_record_of_search_is_read_back():
    tree = Tree(countdown.make_problem((2, 3, 4), 10))
    tree.add_child(0, (1,), " 4 - 3 = 1, left 2 1.\n", 1.0)
    nodes = selection.prune(tree.record()["nodes"], set())
    assert selection.label(tree.record()["problem"]) == "10 from 2 3 4"
    assert [n["answer"] for n in nodes] == [None, None] and nodes[1]["text"] == " 4 - 3 = 1, left 2 1.\n"
