"""Rounds of rollouts: where a round samples, what Q counts, and why a tree ends."""

import json

import pytest
from player import TOKENIZER, Player, completion, policy, problems

from astro_jax import config as cfg
from astro_jax.bench.synthetic import SyntheticVerifier, World
from astro_jax.errors import AstroError
from astro_jax.search.rounds import RolloutRounds, allocate, uncertain_node
from astro_jax.search.run import search
from astro_jax.search.tree import Step, Tree
from astro_jax.search.tree_sampler import TreeSampler
from astro_jax.types import Problem
from astro_jax.verify import Verifier

ROUNDS = {"method": "rounds", "rounds": (4, 4, 8), "max_concurrent_trees": 2, "shard_size": 2}
STOP = {"correct": 1, "wrong": 2}


def search_world(world, n=4, **changes):
    c = cfg.Search(**ROUNDS | changes)
    return search(world.problems(n), c, world.policy(), SyntheticVerifier())


def count(tree, start, steps, correct):
    """Count one rollout, as `RolloutRounds` does."""
    chain = tree.add_chain(start, [Step((i,), "") for i in steps])
    chain[-1].end(correct, str(steps))
    for n in (tree.nodes[start], *chain):
        n.visits += 1
        n.value += (correct - n.value) / n.visits
    return chain[-1]


def test_the_uncertain_node_is_found_by_bisection():
    tree = Tree(Problem("p", "Solve.\n", "1"))
    end = count(tree, 0, range(8), False)  # nodes 1 to 8, the root is still good
    assert uncertain_node(tree, end).id == 4  # half way between 0 and 8
    count(tree, 4, [20, 21], True)  # node 4 is good: between 4 and 8
    assert uncertain_node(tree, end).id == 6
    count(tree, 6, [30], False)
    assert uncertain_node(tree, end).id == 5  # node 6 is bad: between 4 and 6
    count(tree, 5, [40], False)
    assert uncertain_node(tree, end) is None  # nothing between 4 and 5: step 5 is the first wrong one


def test_a_round_goes_to_the_root_until_a_solution_is_correct_and_then_half_to_uncertain_nodes():
    c = cfg.Search(method="rounds", rounds=(8,))
    tree = Tree(Problem("p", "Solve.\n", "1"))
    root = tree.nodes[0]
    first = count(tree, 0, [1, 2, 3, 4], False)
    assert allocate(tree, c) == [(root, 8)]
    count(tree, 0, [5, 6], True)
    assert allocate(tree, c) == [(root, 4), (tree.nodes[2], 4)]
    second = count(tree, 0, [7, 8, 9, 10], False)
    middles = [uncertain_node(tree, end) for end in (first, second)]
    assert allocate(tree, c) == [(root, 4), (middles[0], 2), (middles[1], 2)]
    assert allocate(tree, c.model_copy(update={"focus": "root"})) == [(root, 8)]
    # A node whose prefix leaves no room in the context: its rollouts are the other node's, then the root's.
    too_long = tree.prefix_tokens(middles[0].id)
    assert allocate(tree, c, lambda tokens: tokens != too_long) == [(root, 4), (middles[1], 4)]
    assert allocate(tree, c, lambda tokens: not tokens) == [(root, 8)]


def test_q_is_the_share_of_correct_rollouts_from_the_node_or_from_above_through_it(monkeypatch):
    """Against a count over all rollouts of each tree, as they were sampled."""
    rollouts = []
    roll_out = TreeSampler.roll_out

    def recording(self, nodes, counts, purposes):
        completions, verdicts = roll_out(self, nodes, counts, purposes)
        for (tree, node), group, judged in zip(nodes, completions, verdicts, strict=True):
            prefix = tuple(t for n in tree.path(node.id) for t in n.tokens)
            pairs = zip(group, judged, strict=True)
            rollouts.extend((tree.problem.id, len(prefix), (*prefix, *c.token_ids), v.correct) for c, v in pairs)
        return completions, verdicts

    monkeypatch.setattr(TreeSampler, "roll_out", recording)
    trees = search_world(World(6, 3, 0.6), 8)
    assert any(start for _, start, *_ in rollouts)
    for tree in trees:
        assert tree.rollouts == 16 == sum(r[0] == tree.problem.id for r in rollouts)
        for node in tree.nodes:
            path = tuple(t for n in tree.path(node.id) for t in n.tokens)
            through = [
                correct for problem, start, tokens, correct in rollouts
                if problem == tree.problem.id and start <= len(path) and tokens[: len(path)] == path
            ]  # fmt: skip
            assert node.visits == len(through) > 0
            assert node.value == node.reward == pytest.approx(sum(through) / len(through))
            children = [tree.nodes[c].prior for c in node.children]
            assert not children or sum(children) == pytest.approx(1)
            assert node.terminal == (not node.children)


def test_a_tree_ends_as_soon_as_it_is_usable():
    stopped, whole = (search_world(World(6, 8, 0.5), rounds=(2,) * 12, early_stop=stop) for stop in (STOP, None))
    for tree, full in zip(stopped, whole, strict=True):
        assert tree.end_reason == "enough" and tree.has_enough(1, 2)
        assert full.end_reason == "rounds" and full.simulations == 12 > tree.simulations
        assert [n.tokens for n in tree.nodes] == [n.tokens for n in full.nodes[: len(tree.nodes)]]


@pytest.mark.parametrize("solve, reason", [(0.0, "hopeless"), (1.0, "trivial")])
def test_a_hopeless_or_trivial_problem_ends_after_a_few_rollouts(solve, reason):
    for tree in search_world(World(6, 8, solve), rounds=(2,) * 30, early_stop=STOP | {"hopeless": 5, "trivial": 7}):
        assert tree.end_reason == reason
        assert tree.rollouts == (6 if reason == "hopeless" else 8)


def test_a_token_budget_ends_a_tree():
    trees = search_world(World(6, 8, 0.5), max_tree_tokens=10)
    assert {(tree.end_reason, tree.simulations, tree.sampled_tokens) for tree in trees} == {("tokens", 1, 24)}


def test_rollouts_without_an_end_are_counted_and_add_no_node():
    (tree,) = search_world(World(6, 8, 0.5, unfinished=1.0), 1, max_rollout_tokens=9)
    assert (tree.unfinished, tree.rollouts, len(tree.nodes)) == (16, 16, 1) and tree.sampled_tokens == 16 * 9
    assert (tree.nodes[0].visits, tree.nodes[0].value, tree.end_reason) == (16, 0.0, "rounds")


def test_trees_searched_together_equal_trees_searched_alone_and_go_on_from_their_record():
    world, c = World(6, 4, 0.6), cfg.Search(**ROUNDS, early_stop={"correct": 3, "wrong": 3})
    together = search(world.problems(5), c, world.policy(), SyntheticVerifier())
    for problem, expected in zip(world.problems(5), together, strict=True):
        searcher = RolloutRounds(c, world.policy(), SyntheticVerifier(), 5)
        tree = searcher.init(problem)
        while not tree.end_reason:
            searcher.step([tree])
            tree = Tree.from_record(json.loads(json.dumps(tree.record(resumable=True))))
        assert tree.record(resumable=True) == expected.record(resumable=True)
    assert len({tree.simulations for tree in together}) > 1


def test_rounds_search_countdown_with_the_real_verifier():
    c = cfg.Search(**ROUNDS | {"rounds": (8, 8)}, early_stop=STOP)
    trees = search(problems(6), c, policy(), Verifier())
    assert {tree.end_reason for tree in trees} <= {"enough", "rounds"} and any(t.terminals(True) for t in trees)


def test_a_step_may_have_several_lines():
    text = " 3 * 2 = 6, left 4 6.\n 1 + 1 = 2, left 2 6.\n 6 + 4 = 10, left 10.\n"
    two = TreeSampler(cfg.Search(method="rounds", lines_per_step=2), policy(Player()), Verifier())
    lines = text.splitlines(keepends=True)
    assert [s.text for s in two.split_into_steps(completion(text))] == [lines[0] + lines[1], lines[2]]
    steps = two.split_into_steps(completion(text + " 1 + 1", stopped=False))
    assert [s.text for s in steps] == [lines[0] + lines[1], lines[2] + " 1 + 1"]
    assert sum((s.tokens for s in steps), ()) == tuple(TOKENIZER.encode(text + " 1 + 1"))
    (tree,) = search_world(World(6, 4, 0.5), 1, lines_per_step=3)
    assert max(len(tree.path(n.id)) for n in tree.nodes) == 2


@pytest.mark.parametrize(
    "search, message",
    [
        ({"method": "rounds", "keep_rollouts": True}, "keep_rollouts: not with search.method=rounds"),
        ({"method": "rounds", "rollout_rounds": [1, 2]}, "rollout_rounds: not with search.method=rounds"),
        ({"lines_per_step": 2}, "lines_per_step: mcts proposes one line at a time"),
        ({"method": "rounds", "rounds": []}, "rounds"),
        ({"method": "rounds", "rounds": [0]}, "rounds"),
    ],
)
def test_keys_without_a_meaning_are_refused(search, message):
    with pytest.raises(AstroError, match=message):
        cfg.parse({"search": search})
