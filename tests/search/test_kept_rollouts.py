"""Kept rollouts: nodes for the traces, and no change of the search."""

from player import EOS, SMALL_SEARCH, policy, problems

from astro_jax import config as cfg
from astro_jax.search.run import search
from astro_jax.types import Response
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
        assert statistics(plain) == statistics(kept, [n for n in kept.nodes if not n.kept_rollouts])
        for n in kept.nodes:
            if n.kept_rollouts:
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
