"""Best-of-N: N independent solutions merged into a tree, with N and Q by the paper's equations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from player import SMALL_SEARCH, TOKENIZER, Player, completion, policy, problems

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.errors import AstroError
from astro_jax.sampler import Request
from astro_jax.search import best_of_n
from astro_jax.search.run import search
from astro_jax.search.tree import Step, Tree
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=4), st.booleans()), min_size=1, max_size=20))
def test_merged_solutions_have_the_n_and_q_of_the_solutions_through_a_node(solutions):
    tree = Tree(Problem("p", "Solve.\n", "1"))
    # Each solution ends with a step that names its verdict.
    paths = [(*((i,) for i in steps), (7, 2 + correct)) for steps, correct in solutions]
    for path, (_, correct) in zip(paths, solutions, strict=True):
        best_of_n.add(tree, [Step(tokens, "") for tokens in path], correct, "1")
    for n in tree.nodes:
        prefix = tuple(m.tokens for m in tree.path(n.id))
        verdicts = [c for path, (_, c) in zip(paths, solutions, strict=True) if path[: len(prefix)] == prefix]
        assert n.visits == len(verdicts) and n.value == n.reward == pytest.approx(sum(verdicts) / len(verdicts))
    assert len(tree.nodes) == 1 + len({path[:i] for path in paths for i in range(1, len(path) + 1)})


def test_best_of_n_merges_equal_beginnings_and_counts_by_the_papers_equations():
    c = cfg.Search(**SMALL_SEARCH, method="best-of-n", num_samples=30)
    for tree in search(problems(6), c, policy(), Verifier()):
        prompt = tuple(TOKENIZER.encode(tree.problem.prompt))
        request = Request(prompt, 30, ("search", tree.problem.id, "sample"))
        samples = [Player().one(request, j, True) for j in range(30)]
        texts = [TOKENIZER.decode(s.token_ids.tolist()) for s in samples]
        responses = [Response(tree.problem, t, s.stopped) for t, s in zip(texts, samples, strict=True)]
        correct = [v.correct for v in Verifier().judge(responses)]
        for n in tree.nodes:
            through = [v for v, t in zip(correct, texts, strict=True) if t.startswith(tree.path_text(n.id))]
            if not n.terminal:
                assert n.visits == len(through) == sum(tree.nodes[c].visits for c in n.children)
                below = sum(tree.nodes[c].visits * tree.nodes[c].value for c in n.children)
                assert n.reward == pytest.approx(sum(through) / len(through))  # Eq. 2
                assert n.value == pytest.approx((below + n.reward) / (n.visits + 1))  # Eq. 4
                assert sum(tree.nodes[c].prior for c in n.children) == pytest.approx(1)
            siblings = [tree.nodes[c].tokens for c in n.children]
            assert len(set(siblings)) == len(siblings)
        assert tree.nodes[0].visits == 30 and tree.end_reason == "samples"
        assert len(tree.nodes) < 1 + sum(t.count("\n") for t in texts)
        assert {tree.path_text(n.id) for n in tree.nodes if n.terminal} == set(texts)


def test_the_unfinished_last_step_of_a_solution_is_an_incorrect_terminal():
    first, second = " 3 * 2 = 6, left 4 6.\n", " 6 + 4 = 10"
    solutions = [
        completion(first + second, stopped=False),
        completion(first, stopped=False),
        completion(first + second + countdown.HIT, ended=True),
    ]

    class FixedEngine(Player):
        def generate(self, params, requests, sampling, **options):
            return [solutions for _ in requests]

    problem = countdown.make_problem((2, 3, 4), 10)
    c = cfg.Search(method="best-of-n", num_samples=3)
    (tree,) = search([problem], c, policy(FixedEngine()), Verifier())
    assert [(n.parent, n.text, n.terminal, n.correct, n.visits) for n in tree.nodes] == [
        (-1, "", False, None, 3), (0, first, False, None, 3), (1, second, True, False, 1), (1, "", True, False, 1),
        (1, second + countdown.HIT, True, True, 1),
    ]  # fmt: skip
    assert tree.nodes[1].value == pytest.approx(1 / 3) == tree.nodes[0].value


@pytest.mark.parametrize(
    "option", [{"keep_rollouts": True}, {"early_stop": {}}, {"max_tree_tokens": 5}, {"max_total_tokens": 5}]
)
def test_best_of_n_refuses_the_options_of_mcts(option):
    with pytest.raises(AstroError, match=rf"search\.method: .*{next(iter(option))}.*not with search.method=best-of-n"):
        cfg.parse({"search": {"method": "best-of-n"} | option})
