"""The search driver with a scripted sampler in the model's place: golden trees, worked by hand."""


import pytest
from helpers import tiny_config
from player import EOS, TOKENIZER, policy, problems, sample

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.countdown import HIT, MISS
from astro_jax.phrases import CORRECT, DOUBT, UNSURE
from astro_jax.policy import Policy
from astro_jax.search import mcts
from astro_jax.search.tree import Tree
from astro_jax.verify import Verifier

PROBLEM = countdown.make_problem((2, 3, 4), 10)
A, B = " 3 * 2 = 6, left 4 6.\n", " 4 + 3 = 7, left 2 7.\n"
H, M = " 6 + 4 = 10" + HIT, " 6 - 4 = 2" + MISS
GONE = " 7 + 2 = 9" + MISS


class Scripted:
    """A sampler that answers from a table: text so far -> (next steps, rollouts)."""

    new_prefix_cache = staticmethod(lambda: None)
    config = tiny_config(max_positions=1024)

    def __init__(self, script):
        self.script, self.calls = script, []

    def generate(self, params, requests, *, max_tokens, stop, temperature, progress=None):
        self.calls.append((max_tokens, tuple(stop), temperature, requests))
        rollout = tuple(stop) == (EOS,)
        found = []
        for r in requests:
            assert r.name[0] == "search" and r.name[2] == ("rollout" if rollout else "propose")
            found.append(self.script[TOKENIZER.decode(r.prefix)][rollout])
            assert len(found[-1]) == r.n
        return found


SCRIPT = {
    "": ([sample(A, 0.6), sample(B, 0.2), sample(A, 0.6)], None),
    A: ([sample(H, 0.5), sample(M, 0.25), sample(H, 0.5)], [sample(H, ended=True), sample(M, ended=True)]),
    B: (None, [sample(GONE, ended=True), sample(GONE, stopped=False)]),
    A + H: ([sample("", 0.9, ended=True)] * 3, [sample("", ended=True)] * 2),
    A + M: (None, [sample("", ended=True)] * 2),
}
SCRIPT = {PROBLEM.prompt + steps: answers for steps, answers in SCRIPT.items()}
SEARCH = cfg.Search(num_proposals=3, num_rollouts=2, num_simulations=4, max_depth=50, c_puct=1.0, temperature=0.75)


def grow(script=SCRIPT, problem=PROBLEM, **changes):
    sampler = Scripted(script)
    (tree,) = mcts.search([problem], SEARCH.model_copy(update=changes), Policy(sampler, None, TOKENIZER), Verifier())
    return tree, sampler


def test_golden_tree():
    # 1. The root's two distinct steps: A with prior 0.6 / 0.8, R = 1/2, and B with 0.2 / 0.8, R = 0.
    #    root N = 2, Q = 0.5 / 3.
    # 2. PUCT sqrt(2): A 0.5 + 0.75 * 1.414 / 2 = 1.03, B 0.25 * 1.414 / 2 = 0.18. Below A: H with prior 2/3, R = 1,
    #    and M with 1/3, R = 0. A: N = 3, Q = (1 + 0 + 0.5) / 3 = 0.5.
    # 3. sqrt(4): A 0.5 + 0.75 * 2 / 4 = 0.875, B 0.25; then sqrt(3): H 1 + 0.577, M 0.289. Below H the end, right.
    #    H: N = 2, Q = 1. A: N = 4, Q = (2 + 0 + 0.5) / 4 = 0.625.
    # 4. sqrt(5): A 0.96, B 0.28; sqrt(4): H 1 + 0.444, M 0.333; the end again, which is terminal: counted once more.
    #    end: N = 2, Q = 1. H: N = 3, Q = (2 + 1) / 3. A: N = 5, Q = (3 + 0 + 0.5) / 5 = 0.7. root: N = 6, Q = 3.5 / 7.
    tree, _ = grow()
    golden = [
        # parent, text, prior, reward, visits, value, terminal, correct, answer
        (-1, "", 1.0, 0.0, 6, 0.5, False, None, None),
        (0, A, 0.75, 0.5, 5, 0.7, False, None, None),
        (0, B, 0.25, 0.0, 1, 0.0, False, None, None),
        (1, H, 2 / 3, 1.0, 3, 1.0, False, None, None),
        (1, M, 1 / 3, 0.0, 1, 0.0, False, None, None),
        (3, "", 1.0, 1.0, 2, 1.0, True, True, "10"),
    ]
    fields = ("parent", "text", "prior", "reward", "visits", "value", "terminal", "correct", "answer")
    for node, row in zip(tree.nodes, golden, strict=True):
        for field, expected in zip(fields, row, strict=True):
            got = getattr(node, field)
            assert got == (pytest.approx(expected) if isinstance(expected, float) else expected), (node.id, field)
    assert all(node.virtual == 0 for node in tree.nodes)
    assert tree.nodes[5].tokens == (EOS,) and tree.text(5) == A + H


def test_each_setting_reaches_the_sampler():
    _, sampler = grow(max_step_tokens=9, max_tokens=17)
    steps, rollouts = sampler.calls[0], sampler.calls[1]
    assert steps[0] == 9 and rollouts[0] == 17 and steps[2] == rollouts[2] == 0.75
    assert [len(r) for *_, r in sampler.calls] == [1, 2, 1, 2, 1]  # the end needs no rollouts, nor a fourth expansion


def test_the_prior_may_be_the_mean_over_a_steps_tokens():
    tree, _ = grow(prior="mean", iterations=1)
    n, m = len(TOKENIZER.encode(A)), len(TOKENIZER.encode(B))
    a, b = 0.6 ** (1 / n), 0.2 ** (1 / m)
    assert [node.prior for node in tree.nodes[1:]] == pytest.approx([a / (a + b), b / (a + b)])


@pytest.mark.parametrize("step_end, others", [(".\n", set()), ("\n", {HIT, MISS})])
def test_a_step_ends_with_a_token_that_ends_so_or_with_the_end_token(step_end, others):
    _, sampler = grow(step_end=step_end)
    ends = {TOKENIZER.decode([t]) for t in sampler.calls[0][1] if t != EOS}
    assert EOS in sampler.calls[0][1] and ends == {".\n", DOUBT, UNSURE, CORRECT} | others


def test_names_of_draws_differ_between_nodes_and_purposes():
    _, sampler = grow()
    names = [r.name for *_, requests in sampler.calls for r in requests]
    assert len(set(names)) == len(names) and all(PROBLEM.id in name for name in names)


def test_a_node_at_the_depth_limit_is_a_wrong_end():
    tree, sampler = grow(depth=1, iterations=2)
    assert [(n.terminal, n.correct, n.visits) for n in tree.nodes[1:]] == [(True, False, 2), (True, False, 1)]
    assert len(sampler.calls) == 1 and tree.terminals(True) == []


def test_a_leaf_without_a_finished_step_becomes_a_dead_end():
    script = SCRIPT | {PROBLEM.prompt + A: ([sample(H, stopped=False)] * 3, [sample(GONE, ended=True)] * 2)}
    tree, _ = grow(script, iterations=2)
    assert tree.nodes[1].terminal and tree.nodes[1].correct is False and len(tree.nodes) == 3


def test_two_leaves_at_once_are_different_leaves():
    script = SCRIPT | {PROBLEM.prompt + B: ([sample(GONE)] * 3, SCRIPT[PROBLEM.prompt + B][1])}
    script |= {PROBLEM.prompt + B + GONE: (None, [sample("", ended=True)] * 2)}
    # Iteration 1 selects the root twice, 2 selects A; with A's virtual visit, N = 2 and Q = 0.25:
    # A 0.25 + 0.1 * 0.75 * sqrt(3) / 3 = 0.293, B 0.1 * 0.25 * sqrt(3) / 2 = 0.02: A again, so c = 1.5 spreads less
    # than c = 40: A 0.25 + 40 * 0.433 = 17.57, B 40 * 0.2165 = 8.7. From equal priors on, both are taken.
    script[PROBLEM.prompt] = ([sample(A, 0.5), sample(B, 0.5), sample(A, 0.5)], None)
    tree, sampler = grow(script, leaves=2, iterations=2, c_puct=40.0)
    assert [len(requests) for *_, requests in sampler.calls] == [1, 2, 2, 3]
    assert all(node.virtual == 0 for node in tree.nodes)
    assert [(n.visits, len(n.children)) for n in tree.nodes[:3]] == [(5, 2), (3, 2), (2, 1)]


# ---- Many problems


PROBLEMS = problems(5)
MANY = cfg.Search(num_proposals=4, num_rollouts=3, num_simulations=8, max_concurrent_trees=2)


@pytest.mark.parametrize("leaves", [1, 3])
def test_trees_grown_together_equal_trees_grown_alone(leaves):
    c = MANY.model_copy(update={"leaves": leaves})
    together = mcts.search(PROBLEMS, c, policy(), Verifier())
    alone = [mcts.search([p], c, policy(), Verifier())[0] for p in PROBLEMS]
    assert [t.record() for t in together] == [t.record() for t in alone]
    assert max(len(t.nodes) for t in together) > 10


def test_every_reward_is_the_share_of_right_rollouts():
    for tree in mcts.search(PROBLEMS, MANY, policy(), Verifier()):
        assert isinstance(tree, Tree)
        for node in tree.nodes[1:]:
            assert node.reward in ((0.0, 1.0) if node.terminal else (0.0, 1 / 3, 2 / 3, 1.0))
            siblings = [tree.nodes[c] for c in tree.nodes[node.parent].children]
            assert sum(s.prior for s in siblings) == pytest.approx(1)
            assert len({s.tokens for s in siblings}) == len(siblings) <= MANY.proposals
