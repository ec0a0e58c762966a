"""Algorithm 1 by hand, and its invariants on many random trees."""

import random
from collections import Counter

import pytest
from traces_fixtures import hand_tree, linearized, path_ids

from astro_jax.search.tree import Step, Tree
from astro_jax.traces.linearize import Terminals, linearize, merge_paths
from astro_jax.types import Problem

MERGE_AT = ("ancestor", "root", "random")


@pytest.mark.parametrize(
    "terminals, sequence",
    [
        ([4], [1, 4]),
        ([3, 4], [1, 3, 4]),  # 1 is shared: back from 3 to 1
        ([5, 4], [2, 5, 1, 4]),  # nothing is shared: back to the root
        ([5, 6, 4], [2, 5, 6, 1, 4]),  # back to 2, then to the root
        ([3, 5, 4], [1, 3, 2, 5, 4]),  # 1 again after 2's branch: from 5 back to 1
        ([5, 3, 6, 4], [2, 5, 1, 3, 6, 4]),
    ],
)
def test_merging_by_hand(terminals, sequence):
    tree = hand_tree()
    assert merge_paths(tree, [tree.nodes[n] for n in terminals]) == sequence


def test_wrong_answers_by_hand():
    answers = {answer: [n.id for n in nodes] for answer, nodes in Terminals.of(hand_tree()).wrong_answers.items()}
    assert answers == {"2": [3], "9": [5, 8], "5": [6]}


def test_all_pairs_of_branches_are_drawn_in_depth_first_order():
    drawn = {tuple(linearize(hand_tree(), 2, random.Random(seed))) for seed in range(400)}
    tree = hand_tree()
    pairs = [(a, b) for a in (3, 5, 6, 8) for b in (5, 6, 8) if a < b and tree.nodes[a].answer != tree.nodes[b].answer]
    expected = {tuple(merge_paths(tree, [tree.nodes[n] for n in (a, b, 4)])) for a, b in pairs}
    assert drawn == expected and len(pairs) == 5


def test_too_few_wrong_answers_or_no_correct_one_give_none():
    tree = hand_tree()
    assert linearize(tree, 3, random.Random(0)) and linearize(tree, 4, random.Random(0)) is None
    tree.nodes[4].correct = False
    assert linearize(tree, 0, random.Random(0)) is None


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_a_sequence_ends_correctly_after_k_different_wrong_answers(k):
    num_sequences = 0
    for tree, sequence in linearized(k):
        ends = [tree.nodes[n] for n in sequence if tree.nodes[n].terminal]
        assert ends[-1].correct and ends[-1].id == sequence[-1]
        wrong = [n.answer for n in ends[:-1]]
        assert len(wrong) == k == len(set(wrong)) and None not in wrong
        assert not any(n.correct for n in ends[:-1])
        num_sequences += 1
    assert num_sequences > 50


def test_each_node_stands_once_and_each_backtrack_goes_to_the_deepest_ancestor_seen():
    depths = Counter()
    for tree, sequence in linearized(2, times=10):
        assert len(set(sequence)) == len(sequence)
        ends = [n for n in sequence if tree.nodes[n].terminal]
        assert set(sequence) == {n for end in ends for n in path_ids(tree, end)}
        for i, end in enumerate(ends[1:], 1):
            first_new = sequence[sequence.index(ends[i - 1]) + 1]
            # The deepest common ancestor with one of the branches before, by comparing paths.
            shared = [
                [a for a, b in zip(path_ids(tree, end), path_ids(tree, before), strict=False) if a == b]
                for before in ends[:i]
            ]
            deepest = max(shared, key=len)
            assert tree.nodes[first_new].parent == (deepest[-1] if deepest else 0)
            depths[len(deepest)] += 1
    assert min(depths[0], depths[1], depths[2]) > 10


# ---- Where a path is entered


@pytest.mark.parametrize(
    "merge_at, ends, sequences",
    [
        ("ancestor", [5, 3, 4], {(2, 5, 1, 3, 4)}),
        ("root", [5, 3, 4], {(2, 5, 1, 3, 1, 4)}),
        ("root", [5, 6, 4], {(2, 5, 2, 6, 1, 4)}),
        ("random", [5, 3, 4], {(2, 5, 1, 3, 1, 4), (2, 5, 1, 3, 4)}),
        ("random", [5, 6, 3, 4], {(2, 5, *a, 6, 1, 3, *b, 4) for a in ((), (2,)) for b in ((), (1,))}),
    ],
)
def test_merge_at_by_hand(merge_at, ends, sequences):
    tree = hand_tree()
    drawn = {tuple(merge_paths(tree, [tree.nodes[n] for n in ends], merge_at, random.Random(i))) for i in range(40)}
    assert drawn == sequences


# ---- Where a branch is left


def test_a_branch_left_inside_does_not_reach_its_answer():
    # Node 3 hangs on the way to the correct answer: nothing of its branch is left. 5, 6 and 8 hang on 2.
    for k in (1, 2, 3):
        assert {tuple(linearize(hand_tree(), k, random.Random(i), "inside")) for i in range(30)} == {(2, 1, 4)}


def test_branches_are_left_at_nodes_of_different_paths():
    """root -> 1 -> 2 -> 3 "7", wrong; 1 -> 4 "8", wrong; root -> 5, correct: after 1 or 2 no third branch is free."""
    tree = Tree(Problem("p", "", "10", {}, "number"))
    for parent, answer in ((0, None), (1, None), (2, "7"), (1, "8"), (0, "10")):
        node = tree.add_child(parent, (), "x\n", 1.0)
        if answer:
            node.end(answer == "10", answer)
    for merge_at in MERGE_AT:
        drawn = {tuple(linearize(tree, 2, random.Random(i), "inside", merge_at)) for i in range(60)}
        assert drawn == {(1, 2, 5), (1, 5)}


def test_without_an_inner_node_no_branch_can_be_left_inside():
    tree = hand_tree()
    for node in tree.nodes[5:9]:
        node.answer = None
    assert linearize(tree, 1, random.Random(0)) == [1, 3, 4]
    assert linearize(tree, 1, random.Random(0), "inside") is None
    assert linearize(tree, 0, random.Random(0), "inside") == [1, 4]


def test_wrong_answers_of_one_value_are_one_answer():
    tree = Tree(Problem("p", "Solve.\n", "1"))
    for i, answer in enumerate((r"2\sqrt{2}", r"\sqrt{8}", "3", None)):
        tree.add_chain(0, [Step((i,), "")])[0].end(False, answer)
    assert {answer: [n.id for n in nodes] for answer, nodes in Terminals.of(tree).wrong_answers.items()} == {
        r"2\sqrt{2}": [1, 2], "3": [3],
    }  # fmt: skip
