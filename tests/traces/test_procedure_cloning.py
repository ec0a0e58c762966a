"""Templates by hand, and the verifier's judgement of many traces."""

import pytest
from traces_fixtures import hand_tree, linearized, text_of

from astro_jax.phrases import CORRECT, DOUBT, UNSURE
from astro_jax.search.tree import Step
from astro_jax.traces.procedure_cloning import clone
from astro_jax.verify import verify


def test_golden_text():
    segments = clone(hand_tree(), [2, 5, 6, 1, 3, 4], None, True)
    assert text_of(segments) == (
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
    assert [(s.node, s.kind) for s in segments] == [
        (2, "step"), (5, "step"), (5, "reflect"), (2, "backtrack"), (6, "step"), (6, "reflect"), (0, "backtrack"),
        (1, "step"), (3, "step"), (3, "reflect"), (1, "backtrack"), (4, "step"), (4, "reflect"),
    ]  # fmt: skip


def test_a_step_of_an_end_token_alone_adds_no_line():
    tree = hand_tree()
    (end,) = tree.add_chain(4, [Step((1,), "")])
    assert text_of(clone(tree, [1, 4, end.id], None, False)) == text_of(clone(tree, [1, 4], None, False))


def test_golden_text_of_the_direct_control():
    segments = clone(hand_tree(), [1, 4], 0.0, False)
    assert text_of(segments) == " 3 * 2 = 6, left 4 6.\n 6 + 4 = 10, which is the target!\n"


def test_golden_text_after_a_branch_left_inside():
    text = text_of(clone(hand_tree(), [2, 1, 4], None, True))
    assert text.startswith(" 4 + 3 = 7, left 2 7.\n" + DOUBT + UNSURE + " Let's restart") and "misses" not in text


def test_a_restart_from_the_root_repeats_the_path():
    assert text_of(clone(hand_tree(), [1, 3, 1, 4], None, True)) == (
        " 3 * 2 = 6, left 4 6.\n 6 - 4 = 2, which misses the target!\n" + DOUBT + UNSURE +
        " Let's restart our solution from the beginning, and make 10 from 2 3 4.\n"
        " 3 * 2 = 6, left 4 6.\n 6 + 4 = 10, which is the target!\n" + DOUBT + CORRECT
    )  # fmt: skip


def test_a_backtrack_to_a_step_without_numbers_restates_the_last_state_before():
    # A policy that has learned to reflect proposes lines without a state; "make 10 from ." was written once.
    tree = hand_tree()
    doubt = tree.add_child(1, (), DOUBT, 1.0)
    restart = tree.add_child(0, (), " Let's restart our solution from the beginning, and make 10 from 2 3 4.\n", 1.0)
    unsure = tree.add_child(0, (), UNSURE, 1.0)
    wrong, correct = tree.nodes[3], tree.nodes[4]
    for parent, expected in (
        (doubt.id, " Let's go back to where we make 10 from 4 6.\n"),
        (restart.id, " Let's go back to where we make 10 from 2 3 4.\n"),
        (unsure.id, " Let's restart our solution from the beginning, and make 10 from 2 3 4.\n"),
    ):
        correct.parent = parent
        segments = clone(tree, [1, wrong.id, correct.id], None, True)
        assert [s.text for s in segments if s.kind == "backtrack"] == [expected]


@pytest.mark.parametrize("min_value, reflected", [(None, []), (0.75, [1]), (0.76, []), (0.25, [2, 1]), (0.0, [2, 1])])
def test_inner_nodes_of_a_high_value_get_the_positive_reflection(min_value, reflected):
    segments = clone(hand_tree(), [2, 5, 1, 4], min_value, True)
    praised = [s.node for s in segments if s.kind == "reflect" and s.text == DOUBT + CORRECT]
    assert praised == [*reflected, 4]  # the last node always gets it, a wrong end never
    order = [s.node for s in segments if s.kind == "step" or s.text == DOUBT + CORRECT]
    assert all(order[order.index(n) + 1] == n for n in praised)  # right after the node's own step
    assert verify(hand_tree().problem, text_of(segments), True).valid


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("min_value", [None, 0.5])
def test_each_trace_is_correct_and_its_steps_are_valid(k, min_value):
    for tree, sequence in linearized(k, times=3):
        segments = clone(tree, sequence, min_value, True)
        verdict = verify(tree.problem, text_of(segments), True)
        backtracks = sum(s.kind == "backtrack" for s in segments)
        assert (verdict.correct, verdict.valid, verdict.backtracks) == (True, True, backtracks)
        assert backtracks == k and sum(s.text == DOUBT + UNSURE for s in segments) == k
        assert [s.node for s in segments if s.kind == "step"] == sequence
        high = [n for n in sequence if not tree.nodes[n].terminal and min_value and tree.nodes[n].value >= min_value]
        assert [s.node for s in segments if s.text == DOUBT + CORRECT] == [*high, sequence[-1]]


def test_the_positive_reflection_can_ask_for_evidence_and_be_limited_to_a_share_of_the_nodes():
    tree = hand_tree()
    for n, (value, visits) in {1: (1.0, 8), 2: (1.0, 1)}.items():
        tree.nodes[n].value, tree.nodes[n].visits = value, visits

    def praised(*limits):
        segments = clone(tree, [2, 5, 1, 4], 0.8, True, *limits)
        return [s.node for s in segments if s.kind == "reflect" and s.text == DOUBT + CORRECT]

    assert praised() == [2, 1, 4]
    assert praised(0.9) == [1, 4]  # node 2 was seen once
    assert praised(0.99) == [4]
    assert praised(0.5, 0.5) == [2, 4]  # at equal bounds the first
    assert praised(0.6, 0.5) == [1, 4] and praised(None, 0.0) == [4]
