"""The search of many problems: what becomes of a tree whatever grows beside it, the options, and the figures."""

import json
import math
import pathlib

import pytest
from golden import make_search_trees as golden
from player import EOS, TOKENIZER, Player, policy, problems, sample, searched

from astro_jax import config as cfg
from astro_jax import countdown, progress
from astro_jax.errors import AstroError
from astro_jax.search import mcts
from astro_jax.types import Response
from astro_jax.verify import Verifier

MANY = {"proposals": 4, "rollouts": 3, "iterations": 8, "wave": 2}


def grow(n=6, player=None, **changes):
    return mcts.search(problems(n), cfg.Search(**MANY | changes), policy(player), Verifier())


def records(folder):
    """The store, without what says in which run it was made."""
    lines = [line for f in sorted(folder.glob("trees-*.jsonl")) for line in f.read_text().splitlines()]
    return [{k: v for k, v in json.loads(line).items() if k != "config"} for line in lines]


# ---- Trees that grow together


def test_a_batch_of_trees_with_different_ends_equals_the_golden_trees():
    """Expected values are by make_search_trees.py, a plain search of one problem at a time."""
    expected = json.loads(golden.GOLDEN.read_text())
    c = cfg.Search(**golden.SEARCH, early_stop=golden.ENOUGH)
    trees = mcts.search(golden.PROBLEMS, c, policy(), Verifier())
    found = [t.record() for t in trees]
    assert {t["ended"] for t in expected} == {"enough", "tokens", "iterations"}
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["problem"]["id"] == theirs["problem"]
        for key in ("ended", "iterations", "sampled_tokens"):
            assert mine[key] == theirs[key], (theirs["problem"], key)
        for node, other in zip(mine["nodes"], theirs["nodes"], strict=True):
            values = {k: pytest.approx(v, abs=2e-6) if isinstance(v, float) else v for k, v in other.items()}
            assert {k: node[k] for k in other} == values, (theirs["problem"], node["id"])


def test_the_golden_trees_are_what_their_generator_makes():
    assert [golden.search(p) for p in golden.PROBLEMS[:4]] == json.loads(golden.GOLDEN.read_text())[:4]


@pytest.mark.parametrize("wave", [1, 2, 3, 5, 20])
def test_the_same_trees_come_out_whatever_the_number_in_flight(tmp_path, wave):
    early = {"enough": {"correct": 1, "wrong": 1}, "max_tree_tokens": 200}
    expected = [t.record() for t in grow(11, **early)]
    searched(tmp_path, 11, early | {"wave": wave})
    assert records(tmp_path) == expected
    assert len({t["iterations"] for t in expected}) > 3  # they end at different times


def test_the_next_problem_begins_as_soon_as_a_tree_has_ended(tmp_path):
    player = Player()
    searched(tmp_path, 12, {"wave": 4, "enough": {"correct": 1, "wrong": 1}}, player=player)
    proposals = player.flights[::2]  # every iteration has problems to propose for, then to roll out
    assert max(proposals) == 4
    trees = records(tmp_path)
    assert len({t["iterations"] for t in trees}) > 1
    # With whole waves it would take the slowest of each, one after the other.
    slowest = sum(max(t["iterations"] for t in trees[i : i + 4]) for i in (0, 4, 8))
    assert max(t["iterations"] for t in trees) <= len(proposals) < slowest


# ---- Options


def test_kept_rollouts_add_terminals_and_leave_the_search_as_it_was():
    plain, kept = (
        mcts.search([*problems(6), *problems(4, count=4)], c, policy(), Verifier())
        for c in (cfg.Search(**MANY, c_puct=3.0, keep_rollouts=keep) for keep in (False, True))
    )
    more = 0
    for a, b in zip(plain, kept, strict=True):
        assert facts(a) == facts(b, [n for n in b.nodes if not n.kept])
        for n in b.nodes:
            if n.kept:
                assert n.visits == 0 and n.prior == 0 and n.value == n.reward and 0 <= n.reward <= 1
                assert n.terminal == (n.tokens[-1] == EOS) == (not n.children)
                if n.terminal:
                    assert n.correct == countdown_right(b, n)
        more += len(b.terminals(True)) - len(a.terminals(True))
    assert more > 0


def facts(tree, nodes=None):
    """What the search knows of nodes, by the way there."""
    names = ("prior", "reward", "visits", "value", "terminal", "correct", "answer")
    return {tuple(m.tokens for m in tree.path(n.id)): [getattr(n, name) for name in names] for n in nodes or tree.nodes}


def countdown_right(tree, node):
    (verdict,) = Verifier().judge([Response(tree.problem, tree.text(node.id), True)])
    return verdict.correct


def test_a_rollout_deeper_than_the_limit_is_not_kept():
    for tree in grow(keep_rollouts=True, depth=2):
        assert all(len(tree.path(n.id)) <= 2 for n in tree.nodes)


def test_a_tree_that_has_enough_ends_early():
    for tree, full in zip(grow(20, enough={"correct": 1, "wrong": 2}), grow(20), strict=True):
        answers = {n.answer for n in tree.terminals(False) if n.answer}
        satisfied = bool(tree.terminals(True)) and len(answers) >= 2
        assert (tree.ended == "enough") == satisfied
        assert tree.iterations == 8 or satisfied
        assert tree.nodes[-1].text == full.nodes[len(tree.nodes) - 1].text  # as far as it went
    assert 0 < sum(t.ended == "enough" for t in grow(20, enough={"correct": 1, "wrong": 2})) < 20


def test_past_its_budget_of_tokens_a_tree_begins_no_iteration():
    full = grow()
    for tree, whole in zip(grow(max_tree_tokens=120), full, strict=True):
        if tree.ended == "tokens":
            assert tree.sampled >= 120 and tree.iterations < whole.iterations
            assert [n.text for n in tree.nodes] == [n.text for n in whole.nodes[: len(tree.nodes)]]
        else:
            assert tree.sampled < 120 and tree.iterations == 8
    assert {t.ended for t in grow(max_tree_tokens=120)} == {"tokens", "iterations"}


def test_the_budget_of_the_stage_is_shared_out_evenly_and_the_smaller_one_counts():
    expected = [t.record() for t in grow(max_tree_tokens=100)]
    assert [t.record() for t in grow(max_total_tokens=6 * 100 + 5)] == expected
    assert [t.record() for t in grow(max_total_tokens=10**6, max_tree_tokens=100)] == expected
    assert all(t.iterations == 1 for t in grow(max_total_tokens=1))


def test_best_of_n_merges_equal_beginnings_and_counts_by_the_papers_equations():
    for tree in grow(method="best-of-n", samples=30):
        root = tree.nodes[0]
        player = Player()
        prompt = tuple(TOKENIZER.encode(tree.problem.prompt))
        request = mcts.Request(prompt, 30, ("search", tree.problem.id, "sample"))
        texts = [player.one(request, j, True) for j in range(30)]
        whole = [TOKENIZER.decode(s.token_ids.tolist()) for s in texts]
        right = [
            v.correct
            for v in Verifier().judge([Response(tree.problem, t, s.stopped) for t, s in zip(whole, texts, strict=True)])
        ]
        for n in tree.nodes:
            through = [v for v, t in zip(right, whole, strict=True) if t.startswith(tree.text(n.id))]
            if not n.terminal:
                assert n.visits == len(through) == sum(tree.nodes[c].visits for c in n.children)
                below = sum(tree.nodes[c].visits * tree.nodes[c].value for c in n.children)
                assert n.reward == pytest.approx(sum(through) / len(through))  # Eq. 2
                assert n.value == pytest.approx((below + n.reward) / (n.visits + 1))  # Eq. 4
                assert sum(tree.nodes[c].prior for c in n.children) == pytest.approx(1)
            siblings = [tree.nodes[c].tokens for c in n.children]
            assert len(set(siblings)) == len(siblings)
        assert root.visits == 30 and tree.ended == "samples" and len(tree.nodes) < 1 + sum(t.count("\n") for t in whole)
        assert {tree.text(n.id) for n in tree.nodes if n.terminal} == set(whole)


def test_of_a_solution_that_was_cut_off_the_rest_of_a_step_is_a_wrong_end():
    first, second = " 3 * 2 = 6, left 4 6.\n", " 6 + 4 = 10"
    cut = [
        sample(first + second, stopped=False),
        sample(first, stopped=False),
        sample(first + second + countdown.HIT, ended=True),
    ]

    class Cut(Player):
        def generate(self, params, requests, **how):
            return [cut for _ in requests]

    problem = countdown.make_problem((2, 3, 4), 10)
    c = cfg.Search(method="best-of-n", num_samples=3)
    (tree,) = mcts.search([problem], c, policy(Cut()), Verifier())
    assert [(n.parent, n.text, n.terminal, n.correct, n.visits) for n in tree.nodes] == [
        (-1, "", False, None, 3), (0, first, False, None, 3), (1, second, True, False, 1), (1, "", True, False, 1),
        (1, second + countdown.HIT, True, True, 1),
    ]  # fmt: skip
    assert tree.nodes[1].value == pytest.approx(1 / 3) == tree.nodes[0].value


@pytest.mark.parametrize(
    "idle", [{"keep_rollouts": True}, {"enough": {}}, {"max_tree_tokens": 5}, {"max_total_tokens": 5}]
)
def test_best_of_n_refuses_what_it_would_not_heed(idle):
    with pytest.raises(AstroError, match=rf"search\.method: .*{next(iter(idle))}.*only for mcts"):
        cfg.parse({"search": {"method": "best-of-n"} | idle})


@pytest.mark.parametrize("prior, long_is", [("total", "unlikely"), ("mean", "as likely")])
def test_how_a_steps_length_counts_in_its_prior(prior, long_is):
    driver = mcts.Driver(cfg.Search(prior=prior), policy(), Verifier(), 1)
    short, long = (
        driver._score(sample(text).logprobs - math.log(2)) for text in (" 3 * 2 = 6.\n", " 3 * 2 = 6, left 4 6.\n")
    )
    assert short == pytest.approx(long) if long_is == "as likely" else short > long + 1


# ---- Bad input


def test_a_model_that_never_ends_a_step_is_counted(tmp_path):
    class Endless(Player):
        def one(self, request, j, to_the_end):
            return sample(" 1 = 2.\n" * 3, stopped=False)

    counts = searched(tmp_path, 4, player=Endless())
    assert counts["unfinished"] == 4 == counts["trees"] and counts["valid_trees"] == 0 and counts["nodes"] == 4
    assert searched(tmp_path / "usual", 4)["unfinished"] == 0 < searched(tmp_path / "usual", 4)["valid_trees"]


def test_a_problem_longer_than_the_context_is_named_and_skipped_and_the_others_are_searched(tmp_path, capsys):
    long, short = problems(2, count=4), problems(4)
    player = Player(max_positions=len(TOKENIZER.encode(short[0].prompt)) + 64)
    counts = searched(tmp_path, [long[0], *short, long[1]], player=player)
    assert counts["skipped"] == sorted(p.id for p in long) and counts["trees"] == 4
    assert f"skipped: {', '.join(counts['skipped'])}" in capsys.readouterr().err
    assert set(player.problems) == {p.id for p in short}
    with pytest.raises(AstroError, match="no problem fits the model's context"):
        searched(tmp_path / "none", 6, player=Player(max_positions=65))


def test_a_node_without_room_for_a_rollout_is_a_wrong_end():
    # A step of " 6 * 4 = 24, left 5 24.\n" and the prompt fit, but no rollout of 64 tokens after them.
    prompt = max(len(TOKENIZER.encode(p.prompt)) for p in problems(6))
    trees = grow(6, Player(max_positions=prompt + 64))
    for tree in trees:
        assert all(n.terminal and not n.correct for n in tree.nodes[1:] if len(tree.tokens(n.id)) > prompt)
        assert len(tree.nodes) > 1


# ---- Figures


def test_counts_say_what_the_store_holds_and_what_it_cost(tmp_path):
    player = Player(seconds=0.002)
    counts = searched(tmp_path, 5, player=player)
    trees = grow(5)
    solved = [any(n.correct for n in t.nodes) for t in trees]
    assert {k: counts[k] for k in ("trees", "nodes", "valid_trees", "yield", "sampled_tokens", "ended", "torn")} == {
        "trees": 5, "nodes": sum(len(t.nodes) for t in trees), "valid_trees": sum(solved), "yield": sum(solved) / 5,
        "sampled_tokens": sum(t.sampled for t in trees), "ended": {"iterations": 5}, "torn": 0,
    }  # fmt: skip
    assert 0 < sum(solved) and counts["sampled_tokens"] == player.stats.tokens
    assert counts["occupancy"] == 0.5 and 0 < counts["host"] < 1 and 0 < counts["solved"] < 1
    assert counts["tokens/s"] == pytest.approx(player.stats.tokens / counts["seconds"], rel=0.05)
    assert counts["nodes/s"] == pytest.approx((counts["nodes"] - 5) / counts["seconds"], rel=0.05)


def test_the_time_outside_the_sampler_is_measured(tmp_path):
    slow = searched(tmp_path / "slow", 3, {"iterations": 4}, player=Player(seconds=0.05))
    fast = searched(tmp_path / "fast", 3, {"iterations": 4})
    assert slow["host"] < 0.5 and slow["seconds"] > 0.4 > fast["seconds"]


def test_the_bar_shows_the_search_while_it_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    searched(tmp_path, 4, player=Player(seconds=0.05))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 8 and lines[-1].split()[:2] == ["search", "4/4"]
    for name in ("problems/s", "nodes/s", "tokens/s", "occupancy 0.5", "prefix reuse", "solved", "yield", "s left"):
        assert name in lines[3], name
    assert lines[3].split()[1] == "0/4" and not lines[3].endswith(" 0 s left")  # trees under way count for the time


# ---- The recipe


def test_the_recipe_for_instruct_models_has_the_papers_search_and_asks_for_lines():
    c = cfg.load(str(pathlib.Path(__file__).parents[2] / "configs/llama-instruct.yaml"), ["problems.path=p.jsonl"])
    s = c.search
    assert (s.proposals, s.rollouts, s.iterations, s.depth, s.method) == (8, 16, 32, 50, "mcts")
    assert c.chat.template and r"\boxed{answer}" in c.chat.system and "\n" not in c.chat.system
    assert s.step_end == "\n" and "line of its own" in c.chat.system
