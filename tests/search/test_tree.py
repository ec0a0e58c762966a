"""The tree as data: paths, children, chains of steps, and records."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astro_jax.search import kept_rollouts
from astro_jax.search.mcts import backup
from astro_jax.search.tree import Step, Tree
from astro_jax.types import Problem

PROBLEM = Problem("p", "Solve.\n", "1", {"numbers": [1, 2]})


def make_tree(*parents):
    """A tree with one child for each parent, in order."""
    tree = Tree(PROBLEM, prompt_tokens=(7, 8))
    for parent in parents:
        tree.add_child(parent, (len(tree.nodes),), f" step {len(tree.nodes)}.\n", 1.0)
    return tree


def test_a_node_has_a_path_a_text_and_prefix_tokens():
    tree = make_tree(0, 1, 0)
    assert [n.id for n in tree.path(2)] == [1, 2] and tree.path(0) == []
    assert tree.prefix_tokens(2) == (7, 8, 1, 2) and tree.prefix_tokens(0) == (7, 8)
    assert tree.path_text(2) == " step 1.\n step 2.\n"


def test_terminals_are_in_depth_first_order():
    # root -> 1, 2, 3; 1 -> 4, 6; 2 -> 5. Depth first: 0 1 4 6 2 5 3.
    tree = make_tree(0, 0, 0, 1, 2, 1)
    for node, correct in {6: True, 4: True, 3: True, 5: False}.items():
        tree.nodes[node].end(correct, None)
    assert [n.id for n in tree.terminals(True)] == [4, 6, 3]
    assert [n.id for n in tree.terminals(False)] == [5]


def test_a_chain_of_steps_is_merged_with_steps_that_the_tree_holds():
    tree = make_tree(0, 1)  # 0 -> 1 -> 2
    chain = tree.add_chain(0, [Step((1,), "a"), Step((5,), "b"), Step((6,), "c")])
    assert [n.id for n in chain] == [1, 3, 4] and [n.parent for n in chain] == [0, 1, 3]
    assert tree.add_chain(1, [Step((5,), "b")]) == [tree.nodes[3]]


def test_a_proposed_step_takes_the_node_of_a_kept_rollout_and_no_other_node():
    tree = make_tree(0)
    kept_rollouts.add(tree, 0, [Step((5,), "a"), Step((6,), "b")], True, "1")
    assert tree.nodes[2].kept_rollouts == 1
    assert tree.add_child(0, (5,), "a", 0.25) is tree.nodes[2]
    assert (tree.nodes[2].kept_rollouts, tree.nodes[2].prior, tree.nodes[2].number) == (1, 0.25, 2)
    assert tree.add_child(0, (5,), "a", 0.5).id == 4  # the node is the search's own now


def test_a_record_survives_json_and_gives_the_same_tree():
    tree = make_tree(0, 1, 1, 0)
    for node, reward in zip(tree.nodes[1:], (0.125, 0.5, 1 / 3, 1.0), strict=True):
        node.reward = reward
        backup(tree, node)
    tree.nodes[3].end(True, "1")
    record = json.loads(json.dumps(tree.record()))
    again = Tree.from_record(record)
    assert again.problem == tree.problem and again.record() == record
    assert [n.children for n in again.nodes] == [n.children for n in tree.nodes] == [[1, 4], [2, 3], [], [], []]
    assert again.path_text(3) == tree.path_text(3) and again.nodes[3].answer == "1"
    assert all(a.value == pytest.approx(b.value, abs=1e-6) for a, b in zip(again.nodes, tree.nodes, strict=True))


share = st.floats(0, 1, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(share, share, st.booleans()), min_size=1, max_size=8))
def test_a_resumable_record_gives_the_tree_to_the_last_digit(children):
    tree = Tree(PROBLEM, (5, 6))
    for prior, reward, kept in children:
        if kept:
            kept_rollouts.add(tree, 0, [Step((1, len(tree.nodes)), "a"), Step((2,), "b")], reward > 0.5, None)
        else:
            tree.add_child(0, (3, len(tree.nodes)), "c", prior).reward = reward
            backup(tree, tree.nodes[-1])
    tree.simulations, tree.sampled_tokens, tree.unfinished = 4, 99, 1
    again = Tree.from_record(json.loads(json.dumps(tree.record(resumable=True))))
    assert vars(again) == vars(tree)
