"""Kept rollouts: nodes for the traces, evidence for values, and no change of the search."""

import pytest
from player import EOS, SMALL_SEARCH, policy, problems

from astro_jax import config as cfg
from astro_jax.search import kept_rollouts
from astro_jax.search.run import search
from astro_jax.search.tree import Step, Tree
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier


def search_with(keep_rollouts, chosen, **changes):
    return search(chosen, cfg.Search(**SMALL_SEARCH, keep_rollouts=keep_rollouts, **changes), policy(), Verifier())


def statistics(tree, nodes=None):
    """The fields of nodes that the search reads, by path."""
    names = ("prior", "reward", "visits", "value", "terminal", "correct", "answer")
    return {tuple(m.tokens for m in tree.path(n.id)): [getattr(n, name) for name in names] for n in nodes or tree.nodes}


def test_kept_rollouts_add_terminals_and_leave_the_search_as_it_was():
    chosen = [*problems(6), *problems(4, count=4)]
    without, with_rollouts = (search_with(keep, chosen, c_puct=3.0) for keep in (False, True))
    additional = 0
    for plain, kept in zip(without, with_rollouts, strict=True):
        assert statistics(plain) == statistics(kept, [n for n in kept.nodes if n.number or not n.id])
        for n in kept.nodes[1:]:
            if not n.number:
                assert n.visits == 0 and n.prior == 0 and n.value == n.reward and 0 <= n.reward <= 1
                assert n.terminal == (n.tokens[-1] == EOS) == (not n.children)
                if n.terminal:
                    (verdict,) = Verifier().judge([Response(kept.problem, kept.path_text(n.id), True)])
                    assert n.correct == verdict.correct
        additional += len(kept.terminals(True)) - len(plain.terminals(True))
    assert additional > 0


def test_a_rollout_deeper_than_the_limit_is_not_kept():
    for tree in search_with(True, problems(6), max_depth=2):
        assert all(len(tree.path(n.id)) <= 2 for n in tree.nodes)


def test_a_kept_rollout_is_evidence_for_its_start_and_its_steps_but_not_for_the_nodes_above():
    tree = Tree(Problem("p", "Solve.\n", "1"))
    above = tree.add_child(0, (1,), "a", 1.0)
    start = tree.add_child(above.id, (2,), "b", 1.0)
    for correct, last in ((True, 5), (True, 6), (False, 7)):
        kept_rollouts.add(tree, start.id, [Step((3,), "c"), Step((4, last), "d")], correct, "1")
    assert [n.kept_rollouts for n in tree.nodes] == [0, 0, 3, 3, 1, 1, 1]
    assert [n.value for n in tree.nodes[3:]] == pytest.approx([2 / 3, 1, 1, 0])


def test_one_lucky_rollout_does_not_make_a_high_value_node():
    tree = Tree(Problem("p", "Solve.\n", "1"))
    for i in range(8):
        kept_rollouts.add(tree, 0, [Step((1,), "a"), Step((2, i), "b")], True, "1")
    often, once = tree.nodes[1], tree.nodes[2]
    assert often.value == once.value == 1
    assert often.lower_bound(0.9) > 0.8 > 0.5 > once.lower_bound(0.9) and tree.nodes[0].lower_bound(0.9) == 0
