"""Which trees, traces and answers the page shows."""

import base64
import gzip
import json
import shutil
import weakref

import pytest
from fake_run import fake_run

from astro_jax import countdown
from astro_jax.report import run_folder, selection
from astro_jax.search.tree import Tree, node_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "quickstart")


def unpack(problem):
    return json.loads(gzip.decompress(base64.b64decode(problem["packed"])))


def test_all_problems_with_traces_and_one_unsolved_tree_are_selected(run):
    problems = selection.problems(run_folder.read(run))
    assert len(problems) == 33 and len({p["id"] for p in problems}) == 33  # of 40 trees 32 have traces
    assert all(problem["traces"] for problem in problems[:-1])
    assert not problems[-1]["traces"] and not problems[-1]["solved"]
    first = unpack(problems[0])
    assert first["label"] == problems[0]["label"] and len(first["traces"]) == problems[0]["traces"]
    assert any(s["kind"] == "backtrack" and s["node"] for s in first["traces"][0]["segments"])


def test_trees_beyond_the_size_of_the_page_are_left_out(run, monkeypatch):
    folder = run_folder.read(run)
    sizes = [len(p["packed"]) for p in selection.problems(folder)]
    monkeypatch.setattr(selection, "MAX_BYTES", sum(sizes[:5]))
    assert [len(p["packed"]) for p in selection.problems(folder)] == sizes[:5]


def test_trees_are_shown_before_traces_are_made(tmp_path):
    run = fake_run(tmp_path / "half", trees=10, held_out=6)
    shutil.rmtree(run / "traces")
    problems = selection.problems(run_folder.read(run))
    assert len(problems) == 9 and not any(problem["traces"] for problem in problems)  # 8 are solved


def test_large_trees_are_pruned_to_traces_and_most_visited_nodes():
    nodes = [
        {"id": i, "parent": (i - 1) // 3 if i else -1, "text": "x" * 5000, "visits": 5000 - i} for i in range(5000)
    ]
    kept = selection.prune(nodes, {4999})
    ids = {node["id"] for node in kept}
    assert 4999 in ids and all(n["parent"] in ids for n in kept[1:]) and len(kept) < selection.MAX_NODES + 10
    assert sum(node["hidden"] for node in kept) <= 5000 - len(kept)
    assert all(len(node["text"]) < selection.NODE_CHARS + 50 for node in kept)


class IdentityRecord(dict):
    """A record that a set of weak references can hold."""

    __hash__ = object.__hash__


def test_only_the_traces_of_shown_problems_are_in_memory(run, monkeypatch):
    alive, most, read_lines = weakref.WeakSet(), 0, selection.read_lines

    def watch(path):
        nonlocal most
        for row in read_lines(path):
            alive.add(row := IdentityRecord(row))
            most = max(most, len(alive))
            yield row

    expected = selection.problems(run_folder.read(run))[:2]
    monkeypatch.setattr(selection, "read_lines", watch)
    monkeypatch.setattr(selection, "MAX_PROBLEMS", 2)
    first = selection.problems(run_folder.read(run))
    assert first[:2] == expected and most <= 2 * 4 + 2  # 4 traces a problem, of 33 problems


def test_long_text_loses_its_middle():
    assert selection.shorten("a" * 50 + "b" * 50, 30) == "a" * 20 + "\n[… 70 characters …]\n" + "b" * 10


def test_record_of_search_is_read_back():
    tree = Tree(countdown.make_problem((2, 3, 4), 10))
    tree.add_child(0, (1,), " 4 - 3 = 1, left 2 1.\n", 1.0)
    nodes = selection.prune(node_rows(tree.record()), set())
    assert selection.label(tree.record()["problem"]) == "10 from 2 3 4"
    assert [n["answer"] for n in nodes] == [None, None] and nodes[1]["text"] == " 4 - 3 = 1, left 2 1.\n"
