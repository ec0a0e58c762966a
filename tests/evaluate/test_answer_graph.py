"""Graphs of answers, on cases worked by hand."""

import pytest
from behaviour_labels import OWN_WORDS, PHRASES

from astro_jax.evaluate import answer_graph

DOUBT = " But wait, are we solving the problem correctly so far? Hmm...\n"
GAME = (
    " 6 * 6 = 36, left 20 36.\n", " 36 - 20 = 16, which misses the target!\n", DOUBT,
    " Let's restart our solution from the beginning, and make 32 from 6 6 20.\n",
    " 20 + 6 = 26, left 6 26.\n", " 26 - 6 = 20, which misses the target!\n", DOUBT,
    " Let's go back to where we make 32 from 20 36.\n", " 36 - 20 = 16, which misses the target!\n", DOUBT,
    " Let's go back to where we make 32 from 6 26.\n", " 26 + 6 = 32, which is the target!\n",
)  # fmt: skip


def test_backtracks_return_to_the_step_that_they_quote_and_repeated_steps_are_one_node():
    graph = answer_graph.build("".join(GAME), (False, False, False, True))
    #        step 1, 2; doubt; restart; 3, 4; doubt; back to 1; 2 again; doubt; back to 3; 5
    assert [s.node for s in graph.segments] == [1, 2, 2, 0, 3, 4, 4, 1, 2, 2, 3, 5]
    assert graph.parents == [-1, 0, 1, 0, 3, 3]
    assert graph.verdicts == [None, None, False, None, False, True]
    kinds = ["step", "step", "reflect", "backtrack"]
    assert [s.kind for s in graph.segments] == [*kinds, *kinds, "step", "reflect", "backtrack", "step"]


def test_steps_in_words_are_lines_and_an_unclear_backtrack_goes_to_the_beginning():
    text = (
        "Step 1: 3 * 4 = 12.\nStep 2: 12 - 5 = 8.\nWait, let me go back to step 1. Then 12 - 5 = 7.\n"
        "Let me try again. 3 + 4 = 7."
    )
    graph = answer_graph.build(text, ())
    assert [(s.kind, s.node) for s in graph.segments] == [
        ("step", 1), ("step", 2), ("backtrack", 1), ("step", 3), ("backtrack", 0), ("step", 4),
    ]  # fmt: skip
    assert set(graph.verdicts) == {None}  # nothing is known of the attempts


@pytest.mark.parametrize("text", ["", "\n\n", " Let me try again.", "<script>alert(1)</script>"])
def test_odd_answers_have_a_graph(text):
    graph = answer_graph.build(text, ())
    assert "".join(s.text for s in graph.segments) == text and graph.parents[0] == -1


def test_segments_are_the_whole_answer_and_parents_come_first():
    for _, text in [*PHRASES, *OWN_WORDS]:
        graph = answer_graph.build(text, ())
        assert "".join(s.text for s in graph.segments) == text
        assert all(parent < node for node, parent in enumerate(graph.parents))
