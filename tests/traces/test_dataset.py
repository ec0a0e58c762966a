"""Traces: Algorithm 1 and cloning by hand, then as properties of many random trees, judged by the verifier."""

import dataclasses
import json
import random
from collections import Counter

import pytest
from etils import epath

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.countdown import Game
from astro_jax.search.tree import Tree
from astro_jax.storage import Shards
from astro_jax.traces import dataset
from astro_jax.traces.clone import clone
from astro_jax.traces.linearize import merge, sample, wrong_answers
from astro_jax.verify import verify

DOUBT = " But wait, are we solving the problem correctly so far? Hmm...\n"
UNSURE = " I'm not sure if we're solving the problem correctly so far.\n"
CORRECT = " Our solution seems to be correct so far.\n"


def hand():
    """Make 10 from 2 3 4.

    root
    |- 1  3 * 2 = 6, left 4 6     Q 0.75
    |  |- 3  6 - 4 = 2            wrong
    |  `- 4  6 + 4 = 10           right
    |- 2  4 + 3 = 7, left 2 7     Q 0.25
    |  |- 5  7 + 2 = 9            wrong
    |  |- 6  7 - 2 = 5            wrong
    |  |- 7  4 + 4 = 8            wrong, without a valid answer
    |  `- 8  7 + 2 = 9            wrong, the answer of 5 again
    `- 9  4 * 3 = 12, left 2 12   not expanded
    """
    tree = Tree(countdown.make_problem((2, 3, 4), 10))
    miss, hit = ", which misses the target!\n", ", which is the target!\n"
    rows = [
        (0, " 3 * 2 = 6, left 4 6.\n", None, 0.75),
        (0, " 4 + 3 = 7, left 2 7.\n", None, 0.25),
        (1, " 6 - 4 = 2" + miss, "2", 0.0),
        (1, " 6 + 4 = 10" + hit, "10", 1.0),
        (2, " 7 + 2 = 9" + miss, "9", 0.0),
        (2, " 7 - 2 = 5" + miss, "5", 0.0),
        (2, " 4 + 4 = 8" + miss, None, 0.0),
        (2, " 7 + 2 = 9" + miss, "9", 0.0),
        (0, " 4 * 3 = 12, left 2 12.\n", None, 0.0),
    ]
    for parent, text, answer, value in rows:
        node = tree.add(parent, (), text, 1.0)
        node.answer, node.value, node.terminal = answer, value, "target" in text
        node.correct = answer == "10" if node.terminal else None
    return tree


def test_going_back_to_a_node_that_reflects_restates_the_state_before_it():
    # A policy that has learned to reflect proposes lines without a state; "make 10 from ." was written once.
    tree = hand()
    doubt = tree.add(1, (), DOUBT, 1.0)
    back = tree.add(0, (), " Let's restart our solution from the beginning, and make 10 from 2 3 4.\n", 1.0)
    unsure = tree.add(0, (), UNSURE, 1.0)
    wrong, right = tree.nodes[3], tree.nodes[4]
    for parent, expected in (
        (doubt.id, " Let's go back to where we make 10 from 4 6.\n"),
        (back.id, " Let's go back to where we make 10 from 2 3 4.\n"),
        (unsure.id, " Let's restart our solution from the beginning, and make 10 from 2 3 4.\n"),
    ):
        right.parent = parent
        pieces = clone(tree, [1, wrong.id, right.id], None, True)
        assert [p.text for p in pieces if p.kind == "backtrack"] == [expected]


def random_tree(seed):
    """Valid steps, true verdicts, at times a terminal that did not parse; Q at random, rounded as in a store."""
    rng = random.Random(seed)
    game = Game(count=rng.choice([2, 3, 4]), max_number=9, max_value=40)
    numbers = tuple(rng.randint(1, 9) for _ in range(game.count))
    target = rng.choice(sorted(countdown.reachable(numbers, game)))
    tree = Tree(dataclasses.replace(countdown.make_problem(numbers, target), id=f"problem-{seed}"))
    frontier = [(0, numbers)]
    while frontier:
        at, left = frontier.pop(0)
        moves = countdown.moves(left, game)
        for move in rng.sample(moves, min(len(moves), rng.choice([2, 3, 5]))):
            node = tree.add(at, (), countdown.step_text(left, move, target), 1.0)
            node.value = round(rng.random(), 6)
            if rng.random() < 0.1:
                node.text, node.terminal, node.correct = " 1 = 2.\n", True, False
            elif len(left) == 2:
                node.terminal, node.correct, node.answer = True, move.result == target, str(move.result)
            else:
                frontier.append((node.id, countdown.after(left, move)))
    return tree


TREES = [random_tree(seed) for seed in range(60)]
VALID = [t for t in TREES if any(n.correct for n in t.nodes)]


def path(tree, node):
    """Node ids from the root's child to a node."""
    return path(tree, tree.nodes[node].parent) + [node] if node else []


def draws(k, trees=TREES, times=5):
    """(tree, sequence) of many draws that succeed."""
    for i, tree in enumerate(trees):
        for j in range(times):
            sequence = sample(tree, k, random.Random(f"{i} {j}"))
            if sequence is not None:
                yield tree, sequence


# ---- Algorithm 1


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
    tree = hand()
    assert merge(tree, [tree.nodes[n] for n in terminals]) == sequence


def test_wrong_answers_by_hand():
    assert {a: [n.id for n in nodes] for a, nodes in wrong_answers(hand()).items()} == {"2": [3], "9": [5, 8], "5": [6]}


def test_every_choice_of_branches_is_drawn_in_depth_first_order():
    drawn = {tuple(sample(hand(), 2, random.Random(seed))) for seed in range(400)}
    tree = hand()
    pairs = [(a, b) for a in (3, 5, 6, 8) for b in (5, 6, 8) if a < b and tree.nodes[a].answer != tree.nodes[b].answer]
    assert drawn == {tuple(merge(tree, [tree.nodes[n] for n in (a, b, 4)])) for a, b in pairs} and len(pairs) == 5


def test_too_few_wrong_answers_or_no_right_one_give_none():
    tree = hand()
    assert sample(tree, 3, random.Random(0)) and sample(tree, 4, random.Random(0)) is None
    tree.nodes[4].correct = False
    assert sample(tree, 0, random.Random(0)) is None


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_a_sequence_ends_right_after_k_different_wrong_answers(k):
    found = 0
    for tree, sequence in draws(k):
        ends = [tree.nodes[n] for n in sequence if tree.nodes[n].terminal]
        assert ends[-1].correct and ends[-1].id == sequence[-1]
        wrong = [n.answer for n in ends[:-1]]
        assert len(wrong) == k == len(set(wrong)) and None not in wrong
        assert not any(n.correct for n in ends[:-1])
        found += 1
    assert found > 50


def test_each_node_stands_once_and_each_jump_goes_to_the_deepest_ancestor_that_was_seen():
    jumps = Counter()
    for tree, sequence in draws(2, times=10):
        assert len(set(sequence)) == len(sequence)
        ends = [n for n in sequence if tree.nodes[n].terminal]
        assert set(sequence) == {n for end in ends for n in path(tree, end)}
        for i, end in enumerate(ends[1:], 1):
            new = sequence[sequence.index(ends[i - 1]) + 1]
            # The deepest common ancestor with one of the branches before, by comparing paths.
            shared = [
                [a for a, b in zip(path(tree, end), path(tree, before), strict=False) if a == b] for before in ends[:i]
            ]
            deepest = max(shared, key=len)
            assert tree.nodes[new].parent == (deepest[-1] if deepest else 0)
            jumps[len(deepest)] += 1
    assert min(jumps[0], jumps[1], jumps[2]) > 10


# ---- Cloning


def text_of(pieces):
    return "".join(p.text for p in pieces)


def test_golden_text():
    pieces = clone(hand(), [2, 5, 6, 1, 3, 4], None, True)
    assert text_of(pieces) == (
        " 4 + 3 = 7, left 2 7.\n"
        " 7 + 2 = 9, which misses the target!\n"
        " But wait, are we solving the problem correctly so far? Hmm...\n"
        " I'm not sure if we're solving the problem correctly so far.\n"
        " Let's go back to where we make 10 from 2 7.\n"
        " 7 - 2 = 5, which misses the target!\n"
        " But wait, are we solving the problem correctly so far? Hmm...\n"
        " I'm not sure if we're solving the problem correctly so far.\n"
        " Let's restart our solution from the beginning, and make 10 from 2 3 4.\n"
        " 3 * 2 = 6, left 4 6.\n"
        " 6 - 4 = 2, which misses the target!\n"
        " But wait, are we solving the problem correctly so far? Hmm...\n"
        " I'm not sure if we're solving the problem correctly so far.\n"
        " Let's go back to where we make 10 from 4 6.\n"
        " 6 + 4 = 10, which is the target!\n"
        " But wait, are we solving the problem correctly so far? Hmm...\n"
        " Our solution seems to be correct so far.\n"
    )
    assert [(p.node, p.kind) for p in pieces] == [
        (2, "step"), (5, "step"), (5, "reflect"), (2, "backtrack"), (6, "step"), (6, "reflect"), (0, "backtrack"),
        (1, "step"), (3, "step"), (3, "reflect"), (1, "backtrack"), (4, "step"), (4, "reflect"),
    ]  # fmt: skip


def test_direct_golden_text():
    pieces = clone(hand(), [1, 4], 0.0, False)
    assert text_of(pieces) == " 3 * 2 = 6, left 4 6.\n 6 + 4 = 10, which is the target!\n"


@pytest.mark.parametrize("min_value, reflected", [(None, []), (0.75, [1]), (0.76, []), (0.25, [2, 1]), (0.0, [2, 1])])
def test_nodes_of_a_high_value_are_reflected_on(min_value, reflected):
    pieces = clone(hand(), [2, 5, 1, 4], min_value, True)
    praised = [p.node for p in pieces if p.kind == "reflect" and p.text == DOUBT + CORRECT]
    assert praised == [*reflected, 4]  # the end always is, a wrong end never
    order = [p.node for p in pieces if p.kind == "step" or p.text == DOUBT + CORRECT]
    assert all(order[order.index(n) + 1] == n for n in praised)  # right after the node's own step
    assert verify(hand().problem, text_of(pieces), True).valid


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("min_value", [None, 0.5])
def test_every_trace_is_right_and_each_of_its_steps_valid(k, min_value):
    for tree, sequence in draws(k, times=3):
        pieces = clone(tree, sequence, min_value, True)
        verdict = verify(tree.problem, text_of(pieces), True)
        jumps = sum(p.kind == "backtrack" for p in pieces)
        assert (verdict.correct, verdict.valid, verdict.backtracks) == (True, True, jumps)
        assert jumps == k and sum(p.text == DOUBT + UNSURE for p in pieces) == k
        assert [p.node for p in pieces if p.kind == "step"] == sequence
        high = [n for n in sequence if not tree.nodes[n].terminal and min_value and tree.nodes[n].value >= min_value]
        assert [p.node for p in pieces if p.text == DOUBT + CORRECT] == [*high, sequence[-1]]


# ---- The data set


def write(folder, seed=0, **changes):
    store = Shards(epath.Path(folder) / "search", "trees")
    for i in range(0, len(TREES), 25):
        store.write(i // 25, (t.record() for t in TREES[i : i + 25]))
    counts = dataset.run(epath.Path(folder) / "traces", store, cfg.Traces(**changes), seed)
    astro, direct = ([json.loads(line) for line in (folder / "traces" / f).read_text().splitlines()]
                     for f in ("astro.jsonl", "direct.jsonl"))  # fmt: skip
    return counts, astro, direct


def different_wrong_answers(tree):
    return len({n.answer for n in tree.nodes if n.terminal and n.correct is False and n.answer is not None})


@pytest.mark.parametrize("direct_examples, search_examples, most", [(1, 3, 2), (2, 1, 1), (0, 4, 3), (3, 0, 2)])
def test_how_many_examples_a_tree_gives(tmp_path, direct_examples, search_examples, most):
    settings = dict(direct_examples=direct_examples, search_examples=search_examples, max_backtracks=most)
    _, astro, direct = write(tmp_path, **settings)
    for tree in TREES:
        mine = [e["k"] for e in astro if e["problem_id"] == tree.problem.id]
        possible = min(most, different_wrong_answers(tree))
        assert mine.count(0) == direct_examples * (tree in VALID)
        assert len(mine) - mine.count(0) == search_examples * (tree in VALID and possible > 0)
        assert all(k <= possible for k in mine)
    if search_examples:
        assert {e["k"] for e in astro if e["k"]} == set(range(1, most + 1))
    assert all(e["kind"] == ("search" if e["k"] else "direct") for e in astro)
    assert [e["problem_id"] for e in direct] == [e["problem_id"] for e in astro]
    assert all(e["kind"] == "direct" and e["k"] == 0 for e in direct)


def test_examples_hold_what_they_say(tmp_path):
    _, astro, direct = write(tmp_path, min_value_reflect=0.5)
    problems = {t.problem.id: t.problem for t in TREES}
    for e in astro + direct:
        problem = problems[e["problem_id"]]
        verdict = verify(problem, e["response"], True)
        assert verdict.correct and verdict.valid and verdict.backtracks == e["k"]
        assert e["prompt"] == problem.prompt and e["response"] == "".join(p["text"] for p in e["pieces"])
        assert e["nodes"] == [p["node"] for p in e["pieces"] if p["kind"] == "step"]
    assert all(p["kind"] == "step" for e in direct for p in e["pieces"])
    assert all(e["response"].endswith(DOUBT + CORRECT) for e in astro)


def test_counts_against_a_recount(tmp_path):
    counts, astro, direct = write(tmp_path)
    assert json.loads((tmp_path / "traces" / "counts.json").read_text()) == counts
    assert (counts["trees"], counts["valid trees"]) == (60, len(VALID)) and 10 < len(VALID) < 60
    assert counts["yield"] == round(len(VALID) / 60, 4)
    for name, examples in (("ASTRO", astro), ("Direct", direct)):
        search = [e for e in examples if e["k"]]
        backs = sum(e["response"].count("Let's go back") + e["response"].count("Let's restart") for e in examples)
        assert counts[name] == {
            "examples": len(examples), "direct solutions": len(examples) - len(search),
            "search solutions": len(search), "mean k": round(sum(e["k"] for e in search) / (len(search) or 1), 3),
            "mean backtracks": round(backs / len(examples), 3),
            "distinct": len(Counter((e["problem_id"], e["response"]) for e in examples)),
        }  # fmt: skip
    assert counts["ASTRO"]["search solutions"] and not counts["Direct"]["search solutions"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, seed)
    a, b, c = ([(tmp_path / n / "traces" / f).read_bytes() for f in ("astro.jsonl", "direct.jsonl", "counts.json")]
               for n in "abc")  # fmt: skip
    assert a == b and a[0] != c[0] and a[1] != c[1]


def test_a_tree_added_to_the_store_leaves_the_others_examples_alone(tmp_path):
    _, every, _ = write(tmp_path)
    store = Shards(epath.Path(tmp_path) / "few", "trees")
    store.write(0, (t.record() for t in TREES[30:]))
    dataset.run(epath.Path(tmp_path) / "less", store, cfg.Traces(), 0)
    few = [json.loads(line) for line in (tmp_path / "less" / "astro.jsonl").read_text().splitlines()]
    assert every[-len(few) :] == few and len(few) < len(every)
