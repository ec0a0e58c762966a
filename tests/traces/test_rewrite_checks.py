"""The checks of a rewritten segment."""

import pytest
from traces_fixtures import TEMPLATES, pets_tree

from astro_jax.phrases import GO_BACK
from astro_jax.search.tree import Tree
from astro_jax.traces.procedure_cloning import Segment
from astro_jax.traces.rewrite_checks import numbers, rejection
from astro_jax.traces.rewriting import TEMPLATES as TEMPLATE_NAMES
from astro_jax.types import Problem


@pytest.mark.parametrize(
    "node, kind, text, reason",
    [
        (3, "step", "Next we add: 2 + 3 = 5.", None),
        (3, "step", "Next we add: 2 + 3 = 05.0.", None),
        (3, "step", " \n", "empty"),
        (3, "step", "...", "empty"),
        (3, "step", "We add 2 + 3.\nThat is 5.", "more than one step"),
        (3, "step", "We add 2 and 3.", "numbers"),
        (3, "step", "We add 2 + 3 = 5, not 6.", "numbers"),
        (3, "step", "2 + 3 = 5, so the answer is 5.", "answer given away"),
        (3, "step", r"2 + 3 = \boxed{5}", "answer given away"),
        (1, "step", "First he buys 2 cats, and in the end has 5.", "numbers"),
        (1, "step", "He buys 2 cats, and 3 dogs.", None),  # a number of the problem
        (3, "step", "Draft of the next step: 2 + 3 = 5", "copied prompt"),
        (3, "step", "Keep every number and every result of the draft 2 + 3 = 5", "copied prompt"),
        (3, "step", "But wait, are we solving the problem correctly so far? Hmm... 2 + 3 = 5", "phrase"),
        (1, "backtrack", GO_BACK + " counted the cats.", None),
        (1, "backtrack", GO_BACK + " counted 2.", None),
        (1, "backtrack", GO_BACK + " made an error.", "nothing of the step"),
        (1, "backtrack", GO_BACK + " counted the cats, and got 4.", "numbers"),
        (1, "backtrack", GO_BACK + " counted\nthe cats.", "more than one step"),
        (1, "backtrack", GO_BACK + ".", "empty"),
        (4, "reflect", " Is this right? I do not think so.", None),
        (4, "reflect", " Is this right? It should be 5.", "answer given away"),
        (4, "reflect", " Is this right? It should be 8.", "numbers"),
        (4, "reflect", " Let's go back to where we began.", "phrase"),
    ],
)
def test_a_text_is_rejected_for_its_first_violation(node, kind, text, reason):
    template = TEMPLATES[TEMPLATE_NAMES[kind]]
    before = "" if node == 1 and kind == "step" else "First he buys 2 cats, 5 in all.\n"
    assert rejection(pets_tree(), Segment(node, kind, "x\n"), text + "\n", before, template) == reason


def test_the_correct_answer_is_given_away_even_if_the_problem_names_its_number():
    tree = Tree(Problem("x", "Of 5 cats and 3 dogs, how many are cats?", "5", {}, "number"))
    tree.add_child(0, (), "There are 3 dogs.\n", 1.0)
    text = "There are 3 dogs and 5 cats."
    assert rejection(tree, Segment(1, "step", "x"), text, "", TEMPLATES["rewrite"]) == "answer given away"


@pytest.mark.parametrize("answer, given_away", [(r"\frac{3}{4}", True), (r"\frac {3} {4}", True), ("x + 1", False)])
def test_an_answer_that_is_no_number_is_compared_without_spaces(answer, given_away):
    tree = Tree(Problem("x", "Give 3 and 4.", answer, {}, "number"))
    tree.add_child(0, (), "With 3 and 4.\n", 1.0)
    reason = rejection(tree, Segment(1, "step", "x"), r"With 3 and 4: \frac{3}{4}", "", TEMPLATES["rewrite"])
    assert reason == ("answer given away" if given_away else None)


def test_numbers_are_compared_by_value_without_sign_and_also_inside_words():
    assert numbers("1,200 and 0.50") == numbers("1200.0, then 0.5")
    assert numbers("2x - 3y") == numbers("2 and -3")
    assert numbers("1" * 25) == {"1" * 25}
