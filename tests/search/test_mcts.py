"""MCTS: its functions by hand and as properties, and whole trees with a scripted engine in the model's place."""

import copy
import json
import random

import pytest
from golden import make_search_trees as golden
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from player import EOS, SMALL_SEARCH, TOKENIZER, Player, completion, policy, problems

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.countdown import HIT, MISS
from astro_jax.policy import Policy
from astro_jax.search import kept_rollouts
from astro_jax.search.mcts import backup, select, undo_virtual_loss
from astro_jax.search.run import search
from astro_jax.search.tree import Step, Tree, node_rows
from astro_jax.types import Problem
from astro_jax.verify import Verifier


def make_tree(*children):
    """A tree with children (parent, prior, reward), each evaluated once, in order."""
    tree = Tree(Problem("p", "Solve.\n", "1"))
    for parent, prior, reward in children:
        node = tree.add_child(parent, (len(tree.nodes),), "", prior)
        node.reward = reward
        backup(tree, node)
    return tree


# ---- Backup


def test_three_backups_by_hand():
    # Eq. 3 and 4 of the paper, R = reward. The root has no reward of its own: R = 0.
    tree = make_tree((0, 0.5, 0.75))
    assert [(n.visits, n.value) for n in tree.nodes] == [(1, 0.75 / 2), (1, 0.75)]
    tree = make_tree((0, 0.5, 0.75), (1, 0.5, 0.25))
    # node 1: (0.25 * 1 + 0.75) / (1 + 1) = 0.5; root: (0.5 * 2 + 0) / (2 + 1) = 1/3
    assert [(n.visits, n.value) for n in tree.nodes] == [(2, pytest.approx(1 / 3)), (2, 0.5), (1, 0.25)]
    tree = make_tree((0, 0.5, 0.75), (1, 0.5, 0.25), (1, 0.5, 0.5))
    # node 1: (0.25 + 0.5 + 0.75) / (2 + 1) = 0.5; root: (0.5 * 3) / (3 + 1) = 0.375
    assert [(n.visits, n.value) for n in tree.nodes] == [(3, 0.375), (3, 0.5), (1, 0.25), (1, 0.5)]


def test_visits_count_evaluations_and_values_are_their_means():
    rng = random.Random(0)
    tree = make_tree()
    evaluations = []  # (node, reward), in order
    for _ in range(300):
        node = tree.nodes[rng.randrange(len(tree.nodes))]
        if not node.terminal:  # a terminal is evaluated again
            node = tree.add_child(node.id, (1,), "", 1.0)
            node.reward = rng.random()
            node.terminal = rng.random() < 0.3
        backup(tree, node)
        evaluations.append((node.id, node.reward))

    def rewards_in_subtree(node):
        return [r for n, r in evaluations if n == node or any(a.id == node for a in tree.path(n))]

    for node in tree.nodes[1:]:
        rewards = rewards_in_subtree(node.id)
        assert node.visits == len(rewards)
        assert node.value == pytest.approx(sum(rewards) / len(rewards))
        if not node.terminal:
            assert node.visits == 1 + sum(tree.nodes[c].visits for c in node.children)
    assert tree.nodes[0].visits == len(evaluations)


# ---- Selection


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
    tree = make_tree((0, 0.2, 0.6), (0, 0.3, 0.5), (0, 0.5, 0.0))
    assert select(tree, c_puct).id == chosen


def test_selection_descends_to_a_node_without_children():
    # root N = 3: node 1 has Q = (0.2 + 0.9) / 2 = 0.55, N = 2; node 2 has Q = 0.1, N = 1; P = 0.5 each, c = 1:
    # 0.55 + 0.5 * sqrt(3) / 3 = 0.839 against 0.1 + 0.5 * sqrt(3) / 2 = 0.533
    tree = make_tree((0, 0.5, 0.9), (0, 0.5, 0.1), (1, 1.0, 0.2))
    assert select(tree, 1.0).id == 3


def test_virtual_loss_spreads_selections_over_leaves_and_can_be_undone():
    tree = make_tree((0, 0.4, 0.5), (0, 0.3, 0.5), (0, 0.3, 0.5))
    before = copy.deepcopy(tree.nodes)
    # First: the largest prior. Then node 1 counts as N = 2, Q = 0.25: nodes 2 and 3 follow, in order.
    selected = [select(tree, 1.0) for _ in range(3)]
    assert [leaf.id for leaf in selected] == [1, 2, 3]
    assert [n.virtual_visits for n in tree.nodes] == [3, 1, 1, 1]
    for leaf in selected:
        undo_virtual_loss(tree, leaf)
    assert tree.nodes == before


# ---- Any sequence of simulations


def visits_and_value(tree, evaluations, node):
    """(N, Q) from the list of evaluated nodes alone: Eq. 3, and Eq. 4 from the leaves up."""
    below = [visits_and_value(tree, evaluations, c) for c in tree.nodes[node].children]
    child_visits = sum(n for n, _ in below)
    visits = evaluations.count(node) + child_visits
    if tree.nodes[node].terminal:
        return visits, tree.nodes[node].reward
    return visits, (sum(n * q for n, q in below) + tree.nodes[node].reward) / (child_visits + 1)


share = st.floats(0, 1, allow_nan=False)
proposal = st.tuples(share, share, st.booleans())  # prior, reward, terminal
rollout = st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans())  # two steps, and whether it is correct
simulations = st.lists(
    st.tuples(st.integers(1, 3), st.lists(proposal, max_size=3), st.lists(rollout, max_size=3)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(simulations, st.floats(0, 50))
def test_after_any_simulations_n_and_q_follow_the_definition_and_no_virtual_visit_is_left(simulations, c_puct):
    tree, evaluations = make_tree(), []
    for num_leaves, proposals, rollouts in simulations:
        selected = [select(tree, c_puct) for _ in range(num_leaves)]
        assert tree.nodes[0].virtual_visits == num_leaves
        evaluated = []
        for leaf in {leaf.id: leaf for leaf in selected}.values():
            if leaf.terminal or not proposals:
                leaf.terminal = True
                evaluated.append(leaf)
                continue
            for i, (prior, reward, terminal) in enumerate(proposals):
                child = tree.add_child(leaf.id, (i,), "", prior)
                child.reward, child.terminal = (float(reward > 0.5) if terminal else reward), terminal
                evaluated.append(child)
                for first, second, correct in () if terminal else rollouts:
                    kept_rollouts.add(tree, child.id, [Step((first,), ""), Step((second, 9), "")], correct, "1")
        for leaf in selected:
            undo_virtual_loss(tree, leaf)
        for node in evaluated:
            backup(tree, node)
        evaluations += [node.id for node in evaluated]
        assert all(n.virtual_visits == 0 for n in tree.nodes)
    for n in tree.nodes:
        if n.id and not n.number:
            assert n.visits == 0 and n.value == n.reward
            continue
        visits, value = visits_and_value(tree, evaluations, n.id)
        assert n.visits == visits
        if visits:
            assert n.value == pytest.approx(value)


# ---- A whole tree by hand


PROBLEM = countdown.make_problem((2, 3, 4), 10)
A, B = " 3 * 2 = 6, left 4 6.\n", " 4 + 3 = 7, left 2 7.\n"
H, M = " 6 + 4 = 10" + HIT, " 6 - 4 = 2" + MISS
INVALID = " 7 + 2 = 9" + MISS


class ScriptedEngine:
    """An engine that answers from a table: text so far -> (next steps, rollouts).

    Attributes:
      calls: (sampling params, requests) of each call.
    """

    new_prefix_cache = staticmethod(lambda: None)
    config = tiny_config(max_positions=1024)

    def __init__(self, script):
        self.script, self.calls = script, []

    def generate(
        self, params, requests, sampling, *, prefix_cache=None, stop_fn=None, progress=None, on_completion=None
    ):
        self.calls.append((sampling, requests))
        to_the_end = tuple(sampling.stop_token_ids) == (EOS,)
        completions = []
        for r in requests:
            assert r.request_id[0] == "search" and r.request_id[2] == ("rollout" if to_the_end else "propose")
            completions.append(self.script[TOKENIZER.decode(r.prompt_token_ids)][to_the_end])
            assert len(completions[-1]) == r.n
        return completions


END = completion("", ended=True)
SCRIPT = {
    "": ([completion(A, 0.6), completion(B, 0.2), completion(A, 0.6)], None),
    A: (
        [completion(H, 0.5), completion(M, 0.25), completion(H, 0.5)],
        [completion(H, ended=True), completion(M, ended=True)],
    ),
    B: (None, [completion(INVALID, ended=True), completion(INVALID, stopped=False)]),
    A + H: ([completion("", 0.9, ended=True)] * 3, [END] * 2),
    A + M: (None, [END] * 2),
}
SCRIPT = {PROBLEM.prompt + steps: answers for steps, answers in SCRIPT.items()}
SEARCH = cfg.Search(num_proposals=3, num_rollouts=2, num_simulations=4, max_depth=50, c_puct=1.0, temperature=0.75)


def search_script(script=SCRIPT, **changes):
    """The tree and the engine of a scripted search."""
    engine = ScriptedEngine(script)
    (tree,) = search([PROBLEM], SEARCH.model_copy(update=changes), Policy(engine, None, TOKENIZER), Verifier())
    return tree, engine


def test_golden_tree():
    # 1. The root's two distinct steps: A with prior 0.6 / 0.8, R = 1/2, and B with 0.2 / 0.8, R = 0.
    #    root N = 2, Q = 0.5 / 3.
    # 2. PUCT sqrt(2): A 0.5 + 0.75 * 1.414 / 2 = 1.03, B 0.25 * 1.414 / 2 = 0.18. Below A: H with prior 2/3, R = 1,
    #    and M with 1/3, R = 0. A: N = 3, Q = (1 + 0 + 0.5) / 3 = 0.5.
    # 3. sqrt(4): A 0.5 + 0.75 * 2 / 4 = 0.875, B 0.25; then sqrt(3): H 1 + 0.577, M 0.289. Below H the end, right.
    #    H: N = 2, Q = 1. A: N = 4, Q = (2 + 0 + 0.5) / 4 = 0.625.
    # 4. sqrt(5): A 0.96, B 0.28; sqrt(4): H 1 + 0.444, M 0.333; the end again, which is terminal: counted once more.
    #    end: N = 2, Q = 1. H: N = 3, Q = (2 + 1) / 3. A: N = 5, Q = (3 + 0 + 0.5) / 5 = 0.7. root: N = 6, Q = 3.5 / 7.
    tree, _ = search_script()
    golden_nodes = [
        # parent, text, prior, reward, visits, value, terminal, correct, answer
        (-1, "", 1.0, 0.0, 6, 0.5, False, None, None),
        (0, A, 0.75, 0.5, 5, 0.7, False, None, None),
        (0, B, 0.25, 0.0, 1, 0.0, False, None, None),
        (1, H, 2 / 3, 1.0, 3, 1.0, False, None, None),
        (1, M, 1 / 3, 0.0, 1, 0.0, False, None, None),
        (3, "", 1.0, 1.0, 2, 1.0, True, True, "10"),
    ]
    fields = ("parent", "text", "prior", "reward", "visits", "value", "terminal", "correct", "answer")
    for node, row in zip(tree.nodes, golden_nodes, strict=True):
        for field, expected in zip(fields, row, strict=True):
            value = getattr(node, field)
            assert value == (pytest.approx(expected) if isinstance(expected, float) else expected), (node.id, field)
    assert all(node.virtual_visits == 0 for node in tree.nodes)
    assert tree.nodes[5].tokens == (EOS,) and tree.path_text(5) == A + H


def test_each_setting_reaches_the_engine():
    _, engine = search_script(max_step_tokens=9, max_rollout_tokens=17)
    steps, rollouts = engine.calls[0][0], engine.calls[1][0]
    assert (steps.max_tokens, rollouts.max_tokens) == (9, 17) and steps.temperature == rollouts.temperature == 0.75
    # the end needs no rollouts, and no fourth expansion
    assert [len(requests) for _, requests in engine.calls] == [1, 2, 1, 2, 1]


def test_the_prior_can_be_the_mean_over_the_tokens_of_a_step():
    tree, _ = search_script(prior="mean", num_simulations=1)
    a, b = 0.6 ** (1 / len(TOKENIZER.encode(A))), 0.2 ** (1 / len(TOKENIZER.encode(B)))
    assert [node.prior for node in tree.nodes[1:]] == pytest.approx([a / (a + b), b / (a + b)])


def test_request_ids_differ_between_nodes_and_purposes():
    _, engine = search_script()
    request_ids = [r.request_id for _, requests in engine.calls for r in requests]
    assert len(set(request_ids)) == len(request_ids) and all(PROBLEM.id in request_id for request_id in request_ids)


def test_a_node_at_the_depth_limit_is_an_incorrect_terminal():
    tree, engine = search_script(max_depth=1, num_simulations=2)
    assert [(n.terminal, n.correct, n.visits) for n in tree.nodes[1:]] == [(True, False, 2), (True, False, 1)]
    assert len(engine.calls) == 1 and tree.terminals(True) == []


def test_a_leaf_without_a_complete_step_is_an_incorrect_terminal():
    step, rollouts = completion(H, stopped=False), [completion(INVALID, ended=True)] * 2
    tree, _ = search_script(SCRIPT | {PROBLEM.prompt + A: ([step] * 3, rollouts)}, num_simulations=2)
    assert tree.nodes[1].terminal and tree.nodes[1].correct is False and len(tree.nodes) == 3


def test_a_node_whose_rollouts_succeed_is_no_wrong_terminal_when_no_proposal_is_complete():
    step, rollouts = completion(H, stopped=False), [completion(H, ended=True)] * 2
    for keep in (False, True):
        script = SCRIPT | {PROBLEM.prompt + A: ([step] * 3, rollouts)}
        tree, engine = search_script(script, num_simulations=3, keep_rollouts=keep)
        node = tree.nodes[1]
        assert node.closed and not node.terminal and node.correct is None and node.reward == 1
        assert (node.visits, node.value, tree.unfinished) == (3, 1.0, 1)  # selected twice more, expanded once
        assert len(engine.calls) == 3 and len(tree.terminals(True)) == keep


def test_rollouts_in_rounds_go_to_the_uncertain_half_and_stop_when_the_tree_has_enough():
    b, c, d = " 4 * 3 = 12, left 2 12.\n", " 2 + 3 = 5, left 4 5.\n", " 4 - 3 = 1, left 1 2.\n"
    right, right_after_b = completion(H, ended=True), completion(" 12 - 2 = 10" + HIT, ended=True)
    wrong = completion(M, ended=True)
    calls = []

    class RoundsEngine(ScriptedEngine):
        def generate(self, params, requests, sampling, **options):
            calls.append([(r.request_id[2], TOKENIZER.decode(r.prompt_token_ids), r.n) for r in requests])
            if requests[0].request_id[2] == "propose":
                return [[completion(x, 0.25) for x in (A, b, c, d)]]
            # A: all correct. b: half of them. c, d: none.
            shares = {A: [right] * 4, b: [right_after_b, wrong] * 2}
            return [(shares.get(TOKENIZER.decode(r.prompt_token_ids)[len(PROBLEM.prompt) :]) or [wrong] * 4)[: r.n]
                    for r in requests]  # fmt: skip

    settings = {"num_proposals": 4, "num_simulations": 1, "rollout_rounds": (2, 4, 2), "keep_rollouts": True}
    (tree,) = search([PROBLEM], cfg.Search(**settings), Policy(RoundsEngine({}), None, TOKENIZER), Verifier())
    rounds = [[(name, text[len(PROBLEM.prompt) :], n) for name, text, n in call] for call in calls[1:]]
    assert rounds == [
        [("rollout", x, 2) for x in (A, b, c, d)],
        [("rollout 1", b, 4), ("rollout 1", A, 4)],  # b is nearest to 1/2; of the rest the first
        [("rollout 2", b, 2)],
    ]
    assert [n.reward for n in tree.nodes[1:5]] == [1, 0.5, 0, 0]
    calls.clear()
    stop = settings | {"early_stop": {"correct": 1, "wrong": 0}}
    (tree,) = search([PROBLEM], cfg.Search(**stop), Policy(RoundsEngine({}), None, TOKENIZER), Verifier())
    assert len(calls) == 2 and tree.end_reason == "enough" and tree.rollouts == 8


def test_parallel_leaves_are_different_leaves():
    script = SCRIPT | {PROBLEM.prompt + B: ([completion(INVALID)] * 3, SCRIPT[PROBLEM.prompt + B][1])}
    script |= {PROBLEM.prompt + B + INVALID: (None, [END] * 2)}
    # Simulation 1 selects the root twice, 2 selects A; with A's virtual visit, N = 2 and Q = 0.25:
    # A 0.25 + 0.1 * 0.75 * sqrt(3) / 3 = 0.293, B 0.1 * 0.25 * sqrt(3) / 2 = 0.02: A again, so c = 1.5 spreads less
    # than c = 40: A 0.25 + 40 * 0.433 = 17.57, B 40 * 0.2165 = 8.7. From equal priors on, both are taken.
    script[PROBLEM.prompt] = ([completion(A, 0.5), completion(B, 0.5), completion(A, 0.5)], None)
    tree, engine = search_script(script, num_parallel_leaves=2, num_simulations=2, c_puct=40.0)
    assert [len(requests) for _, requests in engine.calls] == [1, 2, 2, 3]
    assert all(node.virtual_visits == 0 for node in tree.nodes)
    assert [(n.visits, len(n.children)) for n in tree.nodes[:3]] == [(5, 2), (3, 2), (2, 1)]


# ---- Many problems


def search_first(n, engine=None, **changes):
    return search(problems(n), cfg.Search(**SMALL_SEARCH | changes), policy(engine), Verifier())


def test_trees_of_one_batch_with_different_ends_equal_the_golden_trees():
    """make_search_trees.py computes the expected values, by a plain search of one problem at a time."""
    expected = json.loads(golden.GOLDEN.read_text())
    c = cfg.Search(**golden.SEARCH, early_stop=golden.EARLY_STOP)
    records = [t.record() for t in search(golden.PROBLEMS, c, policy(), Verifier())]
    assert {t["end_reason"] for t in expected} == {"enough", "tokens", "iterations"}
    for record, golden_tree in zip(records, expected, strict=True):
        assert record["problem"]["id"] == golden_tree["problem"]
        for key in ("end_reason", "simulations", "sampled_tokens"):
            assert record[key] == golden_tree[key], (golden_tree["problem"], key)
        for node, golden_node in zip(node_rows(record), golden_tree["nodes"], strict=True):
            values = {k: pytest.approx(v, abs=2e-6) if isinstance(v, float) else v for k, v in golden_node.items()}
            assert {k: node[k] for k in golden_node} == values, (golden_tree["problem"], node["id"])


def test_the_golden_trees_equal_the_output_of_their_generator():
    assert [golden.search(p) for p in golden.PROBLEMS[:4]] == json.loads(golden.GOLDEN.read_text())[:4]


@pytest.mark.parametrize("num_parallel_leaves", [1, 3])
def test_trees_searched_together_equal_trees_searched_alone(num_parallel_leaves):
    c = cfg.Search(**SMALL_SEARCH, num_parallel_leaves=num_parallel_leaves)
    together = search(problems(5), c, policy(), Verifier())
    alone = [search([p], c, policy(), Verifier())[0] for p in problems(5)]
    assert [t.record() for t in together] == [t.record() for t in alone]
    assert max(len(t.nodes) for t in together) > 10


def test_each_reward_is_the_share_of_correct_rollouts():
    for tree in search_first(5):
        for node in tree.nodes[1:]:
            assert node.reward in ((0.0, 1.0) if node.terminal else (0.0, 1 / 3, 2 / 3, 1.0))
            siblings = [tree.nodes[c] for c in tree.nodes[node.parent].children]
            assert sum(s.prior for s in siblings) == pytest.approx(1)
            assert len({s.tokens for s in siblings}) == len(siblings) <= SMALL_SEARCH["num_proposals"]


def test_a_node_without_room_for_a_rollout_is_an_incorrect_terminal():
    # A step of " 6 * 4 = 24, left 5 24.\n" and the prompt fit, but no rollout of 64 tokens after them.
    prompt = max(len(TOKENIZER.encode(p.prompt)) for p in problems(6))
    for tree in search_first(6, Player(max_positions=prompt + 64)):
        outside = [n for n in tree.nodes[1:] if len(tree.prefix_tokens(n.id)) > prompt]
        assert all(n.terminal and not n.correct for n in outside) and len(tree.nodes) > 1


# ---- The end of a tree


def test_a_tree_that_has_enough_ends_early():
    stopped = search_first(20, early_stop={"correct": 1, "wrong": 2})
    for tree, full in zip(stopped, search_first(20), strict=True):
        answers = {n.answer for n in tree.terminals(False) if n.answer}
        satisfied = bool(tree.terminals(True)) and len(answers) >= 2
        assert (tree.end_reason == "enough") == satisfied
        assert tree.simulations == 8 or satisfied
        assert tree.nodes[-1].text == full.nodes[len(tree.nodes) - 1].text  # the same search, only shorter
    assert 0 < sum(t.end_reason == "enough" for t in stopped) < 20


def test_a_tree_past_its_token_budget_makes_no_further_simulation():
    limited = search_first(6, max_tree_tokens=120)
    for tree, full in zip(limited, search_first(6), strict=True):
        if tree.end_reason == "tokens":
            assert tree.sampled_tokens >= 120 and tree.simulations < full.simulations
            assert [n.text for n in tree.nodes] == [n.text for n in full.nodes[: len(tree.nodes)]]
        else:
            assert tree.sampled_tokens < 120 and tree.simulations == 8
    assert {t.end_reason for t in limited} == {"tokens", "iterations"}


def test_the_total_token_budget_is_shared_equally_and_the_smaller_budget_counts():
    expected = [t.record() for t in search_first(6, max_tree_tokens=100)]
    assert [t.record() for t in search_first(6, max_total_tokens=6 * 100 + 5)] == expected
    assert [t.record() for t in search_first(6, max_total_tokens=10**6, max_tree_tokens=100)] == expected
    assert all(t.simulations == 1 for t in search_first(6, max_total_tokens=1))
