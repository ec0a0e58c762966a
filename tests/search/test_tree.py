"""The tree, with every number worked by hand."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astro_jax.search.tree import Tree
from astro_jax.types import Problem

PROBLEM = Problem("p", "Solve.\n", "1", {"numbers": [1, 2]})


def grow(*children):
    """A tree with children (parent, prior, reward), each evaluated once, in order."""
    tree = Tree(PROBLEM, prompt=(7, 8))
    for parent, prior, reward in children:
        node = tree.add(parent, (len(tree.nodes),), f" step {len(tree.nodes)}.\n", prior)
        node.reward = reward
        tree.backup(node.id)
    return tree


def test_three_backups_by_hand():
    # Eq. 3 and 4 of the paper, R = reward. The root has no reward of its own: R = 0.
    tree = grow((0, 0.5, 0.75))
    assert [(n.visits, n.value) for n in tree.nodes] == [(1, 0.75 / 2), (1, 0.75)]
    tree = grow((0, 0.5, 0.75), (1, 0.5, 0.25))
    # node 1: (0.25 * 1 + 0.75) / (1 + 1) = 0.5; root: (0.5 * 2 + 0) / (2 + 1) = 1/3
    assert [(n.visits, n.value) for n in tree.nodes] == [(2, pytest.approx(1 / 3)), (2, 0.5), (1, 0.25)]
    tree = grow((0, 0.5, 0.75), (1, 0.5, 0.25), (1, 0.5, 0.5))
    # node 1: (0.25 + 0.5 + 0.75) / (2 + 1) = 0.5; root: (0.5 * 3) / (3 + 1) = 0.375
    assert [(n.visits, n.value) for n in tree.nodes] == [(3, 0.375), (3, 0.5), (1, 0.25), (1, 0.5)]


@pytest.mark.parametrize(
    "c_puct, chosen",
    [
        # N(S) = 3. Q + c P sqrt(3) / (1 + N): with Q = 0.6, 0.5, 0.0; P = 0.2, 0.3, 0.5; N = 1 each
        # c = 0:   0.6,   0.5,   0.0
        # c = 1:   0.773, 0.760, 0.433
        # c = 1.1: 0.6 + 0.1905 = 0.7905, 0.5 + 0.2858 = 0.7858, 0.476
        # c = 1.2: 0.8078, 0.8118, 0.520
        # c = 4:   1.293, 1.539, 1.732
        (0.0, 1), (1.0, 1), (1.1, 1), (1.2, 2), (4.0, 3),
    ],
)  # fmt: skip
def test_puct_by_hand(c_puct, chosen):
    # At c = 1.1 the square root decides: with sqrt(4), as if this selection were a visit, node 2 would be chosen:
    # 0.6 + 1.1 * 0.2 * 2 / 2 = 0.82, 0.5 + 1.1 * 0.3 * 2 / 2 = 0.83.
    tree = grow((0, 0.2, 0.6), (0, 0.3, 0.5), (0, 0.5, 0.0))
    assert tree.select(c_puct) == chosen


def test_selection_descends_to_a_node_without_children():
    # root N = 3: node 1 has Q = (0.2 + 0.9) / 2 = 0.55, N = 2; node 2 has Q = 0.1, N = 1; P = 0.5 each, c = 1:
    # 0.55 + 0.5 * sqrt(3) / 3 = 0.839 against 0.1 + 0.5 * sqrt(3) / 2 = 0.533
    tree = grow((0, 0.5, 0.9), (0, 0.5, 0.1), (1, 1.0, 0.2))
    assert tree.select(1.0) == 3


def test_virtual_loss_spreads_selections_over_leaves_and_release_restores():
    tree = grow((0, 0.4, 0.5), (0, 0.3, 0.5), (0, 0.3, 0.5))
    before = [vars(n).copy() for n in tree.nodes]
    # First: the largest prior. Then node 1 counts as N = 2, Q = 0.25: nodes 2 and 3 follow, in order.
    selected = [tree.select(1.0) for _ in range(3)]
    assert selected == [1, 2, 3]
    assert [n.virtual for n in tree.nodes] == [3, 1, 1, 1]
    for node in selected:
        tree.release(node)
    assert [vars(n) for n in tree.nodes] == before


def test_visits_count_evaluations_and_values_are_their_means():
    rng = random.Random(0)
    tree = Tree(PROBLEM)
    evaluations = []  # (node, reward), in order
    for _ in range(300):
        node = rng.randrange(len(tree.nodes))
        if tree.nodes[node].terminal:  # a terminal is evaluated again
            tree.backup(node)
            evaluations.append((node, tree.nodes[node].reward))
            continue
        child = tree.add(node, (1,), "", 1.0)
        child.reward = rng.random()
        child.terminal = rng.random() < 0.3
        tree.backup(child.id)
        evaluations.append((child.id, child.reward))

    def inside(node):
        """The rewards of all evaluations in a subtree."""
        return [r for n, r in evaluations if n == node or any(a.id == node for a in tree.path(n))]

    for node in tree.nodes[1:]:
        rewards = inside(node.id)
        assert node.visits == len(rewards)
        assert node.value == pytest.approx(sum(rewards) / len(rewards))
        if not node.terminal:
            assert node.visits == 1 + sum(tree.nodes[c].visits for c in node.children)
    assert tree.nodes[0].visits == len(evaluations)


def test_path_tokens_and_text():
    tree = grow((0, 1.0, 0.0), (1, 1.0, 0.0), (0, 1.0, 0.0))
    assert [n.id for n in tree.path(2)] == [1, 2] and tree.path(0) == []
    assert tree.tokens(2) == (7, 8, 1, 2) and tree.tokens(0) == (7, 8)
    assert tree.text(2) == " step 1.\n step 2.\n"


def test_terminals_come_in_depth_first_order():
    # root -> 1, 2, 3; 1 -> 4, 6; 2 -> 5. Depth first: 0 1 4 6 2 5 3.
    tree = grow(*[(p, 1.0, 0.0) for p in (0, 0, 0, 1, 2, 1)])
    for node, correct in {6: True, 4: True, 3: True, 5: False}.items():
        tree.nodes[node].terminal, tree.nodes[node].correct = True, correct
    assert [n.id for n in tree.terminals(True)] == [4, 6, 3]
    assert [n.id for n in tree.terminals(False)] == [5]


def test_a_record_survives_json_and_gives_the_same_tree():
    tree = grow((0, 0.25, 0.125), (1, 0.5, 0.5), (1, 0.5, 1 / 3), (0, 0.75, 1.0))
    tree.nodes[3].terminal, tree.nodes[3].correct, tree.nodes[3].answer = True, True, "1"
    record = json.loads(json.dumps(tree.record()))
    again = Tree.from_record(record)
    assert again.problem == tree.problem and again.record() == record
    assert [n.children for n in again.nodes] == [n.children for n in tree.nodes] == [[1, 4], [2, 3], [], [], []]
    assert again.text(3) == tree.text(3) and again.nodes[3].answer == "1"
    assert all(a.value == pytest.approx(b.value, abs=1e-6) for a, b in zip(again.nodes, tree.nodes, strict=True))


# ---- Any sequence of expansions and backups


def by_definition(tree, evaluations, node):
    """(N, Q) from the list of evaluated nodes alone: Eq. 3, and Eq. 4 from the leaves up."""
    below = [by_definition(tree, evaluations, c) for c in tree.nodes[node].children]
    mine = evaluations.count(node)
    visits = mine + sum(n for n, _ in below)
    if tree.nodes[node].terminal:
        return visits, tree.nodes[node].reward
    of_children = sum(n for n, _ in below)
    return visits, (sum(n * q for n, q in below) + tree.nodes[node].reward) / (of_children + 1)


share = st.floats(0, 1, allow_nan=False)
proposal = st.tuples(share, share, st.booleans())  # prior, reward, terminal
rollout = st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans())  # two steps, and whether it is right
rounds = st.lists(
    st.tuples(st.integers(1, 3), st.lists(proposal, max_size=3), st.lists(rollout, max_size=3)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(rounds, st.floats(0, 50))
def test_after_any_search_n_and_q_are_those_of_the_definition_and_no_virtual_visit_is_left(rounds, c_puct):
    tree, evaluations = Tree(PROBLEM), []
    for leaves, proposals, rollouts in rounds:
        selected = [tree.select(c_puct) for _ in range(leaves)]
        assert tree.nodes[0].virtual == leaves
        new = []
        for leaf in set(selected):
            if tree.nodes[leaf].terminal or not proposals:
                tree.nodes[leaf].terminal = True
                new.append(leaf)
                continue
            for i, (prior, reward, terminal) in enumerate(proposals):
                child = tree.add(leaf, (i,), "", prior)
                child.reward, child.terminal = (float(reward > 0.5) if terminal else reward), terminal
                new.append(child.id)
                for first, second, right in () if terminal else rollouts:
                    tree.solution(child.id, [((first,), ""), ((second, 9), "")], right, "1", visit=False)
        for leaf in selected:
            tree.release(leaf)
        for node in new:
            tree.backup(node)
        evaluations += new
        assert all(n.virtual == 0 for n in tree.nodes)
    for n in tree.nodes:
        if n.kept:
            assert n.visits == 0 and n.value == n.reward
            continue
        visits, value = by_definition(tree, evaluations, n.id)
        assert n.visits == visits
        if visits:
            assert n.value == pytest.approx(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=4), st.booleans()), min_size=1, max_size=20))
def test_merged_solutions_have_the_n_and_q_of_those_that_lead_through(solutions):
    tree = Tree(PROBLEM)
    ways = [(*((i,) for i in way), (7, 2 + right)) for way, right in solutions]  # each ends with a step of its own kind
    for way, (_, right) in zip(ways, solutions, strict=True):
        tree.solution(0, [(step, "") for step in way], right, "1", visit=True)
    for n in tree.nodes:
        path = tuple(m.tokens for m in tree.path(n.id))
        through = [right for way, (_, right) in zip(ways, solutions, strict=True) if way[: len(path)] == path]
        assert n.visits == len(through) and n.value == n.reward == pytest.approx(sum(through) / len(through))
    assert len(tree.nodes) == 1 + len({way[:i] for way in ways for i in range(1, len(way) + 1)})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(share, share, st.booleans()), min_size=1, max_size=8))
def test_a_whole_record_gives_the_tree_to_the_last_digit(children):
    tree = Tree(PROBLEM, (5, 6))
    for prior, reward, kept in children:
        if kept:
            tree.solution(0, [((1, len(tree.nodes)), "a"), ((2,), "b")], reward > 0.5, None, visit=False)
        else:
            tree.add(0, (3, len(tree.nodes)), "c", prior).reward = reward
            tree.backup(len(tree.nodes) - 1)
    tree.iterations, tree.sampled, tree.unfinished = 4, 99, 1
    again = Tree.from_record(json.loads(json.dumps(tree.record(whole=True))))
    assert vars(again) == vars(tree)
