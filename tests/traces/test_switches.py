"""Each choice of the method is a switch: what it changes, by hand, and what none of them may break, on random trees."""

import hashlib
import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dataset import CORRECT, DOUBT, TREES, UNSURE, VALID, different_wrong_answers, hand, path, write

from astro_jax import config as cfg
from astro_jax import phrases
from astro_jax.errors import AstroError
from astro_jax.search.tree import Tree
from astro_jax.traces import dataset
from astro_jax.traces.clone import clone
from astro_jax.traces.direct import by_turns, matched
from astro_jax.traces.linearize import backtracks, merge, sample
from astro_jax.types import Problem
from astro_jax.verify import verify

MERGE, LEAVE = ("ancestor", "root", "random"), ("terminal", "inside")


def ks(examples):
    return [e["k"] for e in examples]


@pytest.mark.parametrize(
    "changes, digests",
    [({}, ["1dd0b31efa7e68bb", "33df3ab81f21cb4c"]),
     ({"min_value_reflect": 0.5, "max_backtracks": 3}, ["840dacd0b214292d", "fc989692d23c078e"])],
)  # fmt: skip
def test_without_a_switch_the_traces_are_to_the_byte_those_from_before_there_were_any(tmp_path, changes, digests):
    write(tmp_path, **changes)
    files = (tmp_path / "traces" / name for name in ("astro.jsonl", "direct.jsonl"))
    assert [hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files] == digests


# ---- The number of backtracks


def test_k_is_drawn_by_its_weights_as_far_as_the_tree_has_wrong_answers(tmp_path):
    _, even, _ = write(tmp_path / "even", max_backtracks=3)
    _, rare, _ = write(tmp_path / "rare", max_backtracks=3, backtracks=(8, 1, 0))
    assert set(ks(even)) == {0, 1, 2, 3} and set(ks(rare)) == {0, 1, 2}
    assert ks(rare).count(1) > 4 * ks(rare).count(2) and ks(even).count(1) < 2 * ks(even).count(2)
    _, never, _ = write(tmp_path / "never", max_backtracks=3, backtracks=(0, 0, 1))
    searched = {e["problem_id"] for e in never if e["k"]}
    assert searched == {t.problem.id for t in VALID if different_wrong_answers(t) >= 3} and set(ks(never)) == {0, 3}


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (0.0, 0.0)])
def test_weights_that_fit_no_k_are_refused(weights):
    with pytest.raises(AstroError, match=r"traces\.backtracks: a weight for each k from 1 to .*max_backtracks=2"):
        dataset.check(cfg.Traces(backtrack_weights=weights), [])


# ---- The merge point


@pytest.mark.parametrize(
    "point, ends, sequences",
    [
        ("ancestor", [5, 3, 4], {(2, 5, 1, 3, 4)}),
        ("root", [5, 3, 4], {(2, 5, 1, 3, 1, 4)}),
        ("root", [5, 6, 4], {(2, 5, 2, 6, 1, 4)}),
        ("random", [5, 3, 4], {(2, 5, 1, 3, 1, 4), (2, 5, 1, 3, 4)}),
        ("random", [5, 6, 3, 4], {(2, 5, *a, 6, 1, 3, *b, 4) for a in ((), (2,)) for b in ((), (1,))}),
    ],
)
def test_merge_points_by_hand(point, ends, sequences):
    tree = hand()
    drawn = {tuple(merge(tree, [tree.nodes[n] for n in ends], point, random.Random(i))) for i in range(40)}
    assert drawn == sequences


def test_a_restart_from_the_root_repeats_the_path():
    text = "".join(p.text for p in clone(hand(), [1, 3, 1, 4], None, True))
    assert text == (
        " 3 * 2 = 6, left 4 6.\n 6 - 4 = 2, which misses the target!\n" + DOUBT + UNSURE +
        " Let's restart our solution from the beginning, and make 10 from 2 3 4.\n"
        " 3 * 2 = 6, left 4 6.\n 6 + 4 = 10, which is the target!\n" + DOUBT + CORRECT
    )  # fmt: skip


# ---- Where a branch is left


def test_a_branch_left_inside_does_not_come_to_its_answer():
    # Node 3 hangs on the way to the right answer: nothing of its branch is left. 5, 6 and 8 hang on 2.
    for k in (1, 2, 3):
        assert {tuple(sample(hand(), k, random.Random(i), "inside")) for i in range(30)} == {(2, 1, 4)}
    text = "".join(p.text for p in clone(hand(), [2, 1, 4], None, True))
    assert text.startswith(" 4 + 3 = 7, left 2 7.\n" + DOUBT + UNSURE + " Let's restart") and "misses" not in text


def test_branches_are_left_at_nodes_of_which_none_leads_to_another():
    """root -> 1 -> 2 -> 3 "7", wrong; 1 -> 4 "8", wrong; root -> 5, right: after 1 or 2 no third way is left."""
    tree = Tree(Problem("p", "", "10", {}, "number"))
    for parent, answer in ((0, None), (1, None), (2, "7"), (1, "8"), (0, "10")):
        node = tree.add(parent, (), "x\n", 1.0)
        node.terminal, node.correct, node.answer = answer is not None, answer == "10" if answer else None, answer
    for point in MERGE:
        assert {tuple(sample(tree, 2, random.Random(i), "inside", point)) for i in range(60)} == {(1, 2, 5), (1, 5)}


def test_without_an_inner_node_there_is_no_branch_to_leave():
    tree = hand()
    for node in tree.nodes[5:9]:
        node.answer = None
    assert sample(tree, 1, random.Random(0)) == [1, 3, 4]
    assert sample(tree, 1, random.Random(0), "inside") is None
    assert sample(tree, 0, random.Random(0), "inside") == [1, 4]


@pytest.mark.parametrize("merge, leave", list(itertools.product(MERGE, LEAVE)))
def test_the_verifier_finds_every_trace_right_and_valid(tmp_path, merge, leave):
    _, astro, _ = write(tmp_path, merge=merge, leave=leave, max_backtracks=3)
    problems = {t.problem.id: t.problem for t in TREES}
    for e in astro:
        verdict = verify(problems[e["problem_id"]], e["response"], True)
        assert (verdict.correct, verdict.valid, verdict.backtracks) == (True, True, e["k"])
        assert ("misses" in e["response"]) == (leave == "terminal" and e["k"] > 0)
    assert max(ks(astro)) >= 2


# ---- Phrases


def test_without_phrases_only_the_way_back_is_said(tmp_path):
    settings = dict(max_backtracks=3, min_value_reflect=0.3)
    _, fixed, direct = write(tmp_path / "fixed", **settings)
    _, none, same = write(tmp_path / "none", **settings, phrases="none")
    assert len(none) == len(fixed) and direct == same
    for a, b in zip(fixed, none, strict=True):
        kept = [p for p in a["pieces"] if p["kind"] != "reflect"]
        assert b["pieces"] == kept and not any(p in b["response"] for p in (DOUBT, UNSURE, CORRECT))
        assert b["response"].count(phrases.GO_BACK) + b["response"].count(phrases.RESTART) == b["k"] == a["k"]


# ---- The Direct control


def example(name, tokens):
    return {"name": name, "tokens": tokens}


POOL = [[example("a1", 10), example("a2", 10)], [], [example("b1", 30)]]


def test_equal_examples_are_taken_by_turns_and_again_from_the_beginning():
    found = matched(by_turns(POOL), [example("", 99)] * 5, "examples", None)
    assert [e["name"] for e in found] == ["a1", "b1", "a2", "a1", "b1"]


@pytest.mark.parametrize(
    "wanted, names",
    [([5], ["a1"]), ([4], []), ([24], ["a1"]), ([25], ["a1", "b1"]), ([50, 10], ["a1", "b1", "a2", "a1"]), ([], [])],
)
def test_equal_tokens_are_met_to_within_half_an_example(wanted, names):
    astro = [example("", n) for n in wanted]
    assert [e["name"] for e in matched(by_turns(POOL), astro, "tokens", lambda e: e["tokens"])] == names


def test_direct_with_equal_tokens_has_more_examples_than_with_equal_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "length", lambda example, tokenizer: len(example["response"]))
    _, astro, few = write(tmp_path / "few")
    _, same, many = write(tmp_path / "many", direct_match="tokens")
    size = [sum(len(e["response"]) for e in each) for each in (astro, few, many)]
    assert astro == same and len(few) == len(astro) < len(many) and many[: len(few)] == few
    assert abs(size[2] - size[0]) <= max(len(e["response"]) for e in many) / 2 and size[1] < 0.8 * size[0]


def test_no_right_sample_at_all_is_one_line():
    with pytest.raises(AstroError, match=r"no sample is right.*raise traces\.direct_samples"):
        matched([], [example("", 5)], "examples", None)


# ---- What holds whatever is chosen

ANSWERS = st.sampled_from([None, "1", "2", "3", "4", "10"])


@st.composite
def trees(draw):
    """A tree with a right terminal; a node without children is a terminal with some answer, or a node not expanded."""
    tree = Tree(Problem("p", "Give 10.", "10", {}, "number"))
    for i in range(draw(st.integers(1, 20))):
        parent = draw(st.integers(max(0, i - 4), i) | st.integers(0, i))
        tree.add(parent, (), f"Line {i}.\n", 1.0)
    for node in tree.nodes[1:]:
        node.value = draw(st.sampled_from([0.0, 0.5, 1.0]))
        if not node.children and (node.id == len(tree.nodes) - 1 or draw(st.booleans())):
            node.terminal, node.answer = True, "10" if node.id == len(tree.nodes) - 1 else draw(ANSWERS)
            node.correct = node.answer == "10"
    return tree


@pytest.mark.parametrize("point, leave, spoken", list(itertools.product(MERGE, LEAVE, (True, False))))
@settings(max_examples=150, deadline=None)
@given(tree=trees(), k=st.integers(0, 3), seed=st.integers(0, 99), min_value=st.sampled_from([None, 0.5]))
def test_on_any_tree_both_invariants_hold_and_each_step_follows_or_is_a_marked_jump(
    point, leave, spoken, tree, k, seed, min_value
):
    sequence = sample(tree, k, random.Random(seed), leave, point)
    if sequence is None:
        wrong = {n.answer for n in tree.nodes if n.terminal and not n.correct and n.answer}
        assert len(wrong) < k or leave == "inside"
        return
    nodes = [tree.nodes[n] for n in sequence]
    ends = [n for n in nodes if n.terminal]
    # The two invariants of the paper.
    assert nodes[-1].correct and [n for n in ends if n.correct] == [nodes[-1]]
    wrong = [n.answer for n in ends[:-1]]
    assert len(set(wrong)) == len(wrong) == (k if leave == "terminal" else 0) and None not in wrong
    # Each node follows the one before, or is gone back for.
    jumps = [i for i, n in enumerate(nodes) if n.parent != (sequence[i - 1] if i else 0)]
    assert len(jumps) == backtracks(tree, sequence) and bool(k) == bool(jumps) and len(jumps) <= k
    for i in jumps:
        seen = {0, *sequence[:i]}
        assert nodes[i].parent in seen and sequence[i - 1] not in path(tree, sequence[i])
        assert point != "root" or nodes[i].parent == 0
        assert point != "ancestor" or sequence[i] not in seen
    assert leave == "inside" or len(jumps) == k
    left = [sequence[i - 1] for i in jumps]
    assert not any(a in path(tree, b) for a, b in itertools.permutations([*left, sequence[-1]], 2))
    # The pieces say so, and nothing else.
    pieces = clone(tree, sequence, min_value, spoken)
    assert [p.node for p in pieces if p.kind == "step"] == sequence
    assert "".join(p.text for p in pieces if p.kind == "step") == "".join(n.text for n in nodes)
    assert [p.node for p in pieces if p.kind == "backtrack"] == [nodes[i].parent for i in jumps]
    steps = -1
    for before, piece in itertools.pairwise([None, *pieces]):
        if piece.kind == "step":
            steps += 1
            assert (before is not None and before.kind == "backtrack") == (steps in jumps)
    assert spoken == any(p.kind == "reflect" for p in pieces)


@settings(max_examples=40, deadline=None)
@given(
    tree=trees(), merge=st.sampled_from(MERGE), leave=st.sampled_from(LEAVE),
    spoken=st.sampled_from(["fixed", "none"]), weights=st.sampled_from([(), (3.0, 1.0), (0.0, 1.0)]),
)  # fmt: skip
def test_an_examples_text_is_its_pieces(tree, merge, leave, spoken, weights):
    c = cfg.Traces(merge_at=merge, leave_at=leave, phrases=spoken, backtrack_weights=weights)
    (record,) = json.loads(json.dumps(dataset._make([tree], c, 0, None)))
    assert len(record["direct"]) == len(record["astro"]) >= 1
    for e in record["astro"] + record["direct"]:
        assert e["response"] == "".join(p["text"] for p in e["pieces"])
        assert e["k"] == sum(p["kind"] == "backtrack" for p in e["pieces"]) and (e["kind"] == "search") == (e["k"] > 0)
    assert not any(e["k"] for e in record["direct"])
