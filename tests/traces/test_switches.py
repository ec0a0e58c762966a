"""Each choice of the method is a switch: its effect, and the invariants that hold for all switches."""

import hashlib
import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_fixtures import TREES, VALID, num_wrong_answers, path_ids, text_of, write_dataset

from astro_jax import config as cfg
from astro_jax import phrases
from astro_jax.errors import AstroError
from astro_jax.phrases import CORRECT, DOUBT, UNSURE
from astro_jax.search.tree import Tree
from astro_jax.traces import dataset
from astro_jax.traces.linearize import count_backtracks, linearize
from astro_jax.traces.procedure_cloning import clone
from astro_jax.types import Problem
from astro_jax.verify import verify

MERGE_AT, LEAVE_AT = ("ancestor", "root", "random"), ("terminal", "inside")


def ks(examples):
    return [e["k"] for e in examples]


@pytest.mark.parametrize(
    "changes, digests",
    [({}, ["9315ea2bccf9bed7", "529a772e9a931e95"]),
     ({"min_value_reflect": 0.5, "max_backtracks": 3}, ["fa5b2f9597f555d4", "c2ca70b9c84967c3"])],
)  # fmt: skip
def test_the_bytes_of_the_default_traces_never_change(tmp_path, changes, digests):
    write_dataset(tmp_path, **changes)
    files = (tmp_path / "traces" / name for name in ("astro.jsonl", "direct.jsonl"))
    assert [hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files] == digests


# ---- The number of backtracks


def test_k_is_drawn_by_its_weights_up_to_the_wrong_answers_of_the_tree(tmp_path):
    _, uniform, _ = write_dataset(tmp_path / "uniform", max_backtracks=3)
    _, rare, _ = write_dataset(tmp_path / "rare", max_backtracks=3, backtrack_weights=(8, 1, 0))
    assert set(ks(uniform)) == {0, 1, 2, 3} and set(ks(rare)) == {0, 1, 2}
    assert ks(rare).count(1) > 4 * ks(rare).count(2) and ks(uniform).count(1) < 2 * ks(uniform).count(2)
    _, only_three, _ = write_dataset(tmp_path / "three", max_backtracks=3, backtrack_weights=(0, 0, 1))
    searched = {e["problem_id"] for e in only_three if e["k"]}
    assert searched == {t.problem.id for t in VALID if num_wrong_answers(t) >= 3} and set(ks(only_three)) == {0, 3}


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (0.0, 0.0)])
def test_weights_that_fit_no_k_are_refused(weights):
    with pytest.raises(AstroError, match=r"traces\.backtrack_weights: give one weight for each k .*max_backtracks=2"):
        dataset.check(cfg.Traces(backtrack_weights=weights), [])


# ---- Merge points, and where a branch is left


@pytest.mark.parametrize("merge_at, leave_at", list(itertools.product(MERGE_AT, LEAVE_AT)))
def test_the_verifier_accepts_each_trace(tmp_path, merge_at, leave_at):
    _, astro, _ = write_dataset(tmp_path, merge_at=merge_at, leave_at=leave_at, max_backtracks=3)
    problems = {t.problem.id: t.problem for t in TREES}
    for e in astro:
        verdict = verify(problems[e["problem_id"]], e["response"], True)
        assert (verdict.correct, verdict.valid, verdict.backtracks) == (True, True, e["k"])
        assert ("misses" in e["response"]) == (leave_at == "terminal" and e["k"] > 0)
    assert max(ks(astro)) >= 2


# ---- Phrases


def test_without_phrases_only_the_backtracks_are_written(tmp_path):
    changes = dict(max_backtracks=3, min_value_reflect=0.3)
    _, fixed, direct = write_dataset(tmp_path / "fixed", **changes)
    _, none, same = write_dataset(tmp_path / "none", **changes, phrases="none")
    assert len(none) == len(fixed) and direct == same
    for a, b in zip(fixed, none, strict=True):
        kept = [s for s in a["segments"] if s["kind"] != "reflect"]
        assert b["segments"] == kept and not any(phrase in b["response"] for phrase in (DOUBT, UNSURE, CORRECT))
        assert b["response"].count(phrases.GO_BACK) + b["response"].count(phrases.RESTART) == b["k"] == a["k"]


# ---- All switches

ANSWERS = st.sampled_from([None, "1", "2", "3", "4", "10"])


@st.composite
def trees(draw):
    """A tree with a correct terminal. A node without children is a terminal with some answer, or not expanded."""
    tree = Tree(Problem("p", "Give 10.", "10", {}, "number"))
    for i in range(draw(st.integers(1, 20))):
        parent = draw(st.integers(max(0, i - 4), i) | st.integers(0, i))
        tree.add_child(parent, (), f"Line {i}.\n", 1.0)
    for node in tree.nodes[1:]:
        node.value = draw(st.sampled_from([0.0, 0.5, 1.0]))
        if not node.children and (node.id == len(tree.nodes) - 1 or draw(st.booleans())):
            answer = "10" if node.id == len(tree.nodes) - 1 else draw(ANSWERS)
            node.end(answer == "10", answer)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("merge_at, leave_at", list(itertools.product(MERGE_AT, LEAVE_AT)))
@settings(max_examples=150, deadline=None)
@given(tree=trees(), k=st.integers(0, 3), seed=st.integers(0, 99), min_value=st.sampled_from([None, 0.5]))
def test_on_any_tree_both_invariants_hold_and_each_step_follows_or_is_a_marked_backtrack(
    merge_at, leave_at, tree, k, seed, min_value
):
    sequence = linearize(tree, k, random.Random(seed), leave_at, merge_at)
    if sequence is None:
        wrong = {n.answer for n in tree.nodes if n.terminal and not n.correct and n.answer}
        assert len(wrong) < k or leave_at == "inside"
        return
    nodes = [tree.nodes[n] for n in sequence]
    ends = [n for n in nodes if n.terminal]
    # The two invariants of the paper.
    assert nodes[-1].correct and [n for n in ends if n.correct] == [nodes[-1]]
    wrong = [n.answer for n in ends[:-1]]
    assert len(set(wrong)) == len(wrong) == (k if leave_at == "terminal" else 0) and None not in wrong
    # Each node follows the node before, or a backtrack leads to its parent.
    backtracks = [i for i, n in enumerate(nodes) if n.parent != (sequence[i - 1] if i else 0)]
    assert len(backtracks) == count_backtracks(tree, sequence) and bool(k) == bool(backtracks) and len(backtracks) <= k
    for i in backtracks:
        seen = {0, *sequence[:i]}
        assert nodes[i].parent in seen and sequence[i - 1] not in path_ids(tree, sequence[i])
        assert merge_at != "root" or nodes[i].parent == 0
        assert merge_at != "ancestor" or sequence[i] not in seen
    assert leave_at == "inside" or len(backtracks) == k
    left = [sequence[i - 1] for i in backtracks]
    assert not any(a in path_ids(tree, b) for a, b in itertools.permutations([*left, sequence[-1]], 2))
    for reflect in (True, False):
        check_segments(clone(tree, sequence, min_value, reflect), nodes, backtracks, reflect)


def check_segments(segments, nodes, backtracks, reflect):
    """The segments have the steps of the nodes, and a backtrack before each node that does not follow."""
    assert [s.node for s in segments if s.kind == "step"] == [n.id for n in nodes]
    assert text_of(s for s in segments if s.kind == "step") == "".join(n.text for n in nodes)
    assert [s.node for s in segments if s.kind == "backtrack"] == [nodes[i].parent for i in backtracks]
    steps = -1
    for before, segment in itertools.pairwise([None, *segments]):
        if segment.kind == "step":
            steps += 1
            assert (before is not None and before.kind == "backtrack") == (steps in backtracks)
    assert reflect == any(s.kind == "reflect" for s in segments)


@settings(max_examples=40, deadline=None)
@given(
    tree=trees(), merge_at=st.sampled_from(MERGE_AT), leave_at=st.sampled_from(LEAVE_AT),
    phrases_option=st.sampled_from(["fixed", "none"]), weights=st.sampled_from([(), (3.0, 1.0), (0.0, 1.0)]),
)  # fmt: skip
def test_the_text_of_an_example_is_its_segments(tree, merge_at, leave_at, phrases_option, weights):
    c = cfg.Traces(merge_at=merge_at, leave_at=leave_at, phrases=phrases_option, backtrack_weights=weights)
    (record,) = json.loads(json.dumps(dataset.make_records([tree], c, 0, None)))
    assert len(record["direct"]) == len(record["astro"]) >= 1
    for e in record["astro"] + record["direct"]:
        assert e["response"] == "".join(s["text"] for s in e["segments"])
        assert e["k"] == sum(s["kind"] == "backtrack" for s in e["segments"])
        assert (e["kind"] == "search") == (e["k"] > 0)
    assert not any(e["k"] for e in record["direct"])
