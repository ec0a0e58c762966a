"""The error classes of wrong responses, against labels by hand."""

import json
from pathlib import Path

import pytest
from error_labels import GAMES, TEXTS

from astro_jax.evaluate import behaviour, error_classes
from astro_jax.types import Problem
from astro_jax.verify.answer import extract
from astro_jax.verify.same_answer import value_key


def class_of(prompt, gold, response):
    """The class by the rules. As the verifier's rule "math500", the last result counts as another rule's answer."""
    stopped, text = not response.endswith("|"), response.removesuffix("|")
    if prompt.startswith("Let us make"):
        numbers = [int(x) for x in prompt.rstrip(".\n").partition("from ")[2].split()]
        problem = Problem("g", prompt, gold, {"numbers": numbers, "target": int(gold)})
        return error_classes.classify(problem, text, stopped, None, False)
    problem, answer = Problem("p", prompt, gold, task="math"), extract(text, "lenient")
    other = behaviour.attempt_answer(text)
    right = answer is None and other is not None and value_key(other) == value_key(gold)
    return error_classes.classify(problem, text, stopped, answer, right)


def test_at_least_100_responses_are_labelled_and_each_class_is_there():
    labels = [label for label, *_ in GAMES + TEXTS]
    assert len(labels) >= 100 and {*labels} == {*error_classes.CLASSES}
    assert all(labels.count(name) >= 8 for name in error_classes.CLASSES)


# Responses of SmolLM2-135M-Instruct to word problems made up for this project, labelled by readers who did not know the
# rules. The rules were written after the first 125 labels, and the rule on underived answers after all.
SMOLLM2 = [
    (row["error"], row["prompt"], row["gold"], row["response"])
    for row in map(json.loads, Path(__file__).with_name("smollm2_errors.jsonl").read_text().splitlines())
]


@pytest.mark.parametrize("responses", [GAMES, TEXTS, SMOLLM2], ids=["Countdown", "texts", "SmolLM2"])
def test_rules_agree_with_the_labels(responses):
    agree = [class_of(*entry) == label for label, *entry in responses]
    assert sum(agree) / len(agree) >= 0.85


@pytest.mark.parametrize(
    "text, error",
    [("The answer is 12.", "copying"), ("So it is \\boxed{9}.", "copying"),
     ("Nine is left. The answer is 9.", "planning"), ("12 - 3 = 9. The answer is 9.", "planning"),
     ("12 - 3 = 9. The answer is 12.", "copying")],
)  # fmt: skip
def test_an_answer_that_no_calculation_gives_is_copied(text, error):
    assert class_of("Tom has 12 jars and sells 3 dozen eggs.", "5", text) == error


@pytest.mark.parametrize(
    "text, unknown",
    [
        ("5 * 3 = 15", []),
        ("6 * 3 = 18", ["6"]),
        ("12 - 5 = 7. 7 * 3 = 21", []),  # 7 is an earlier result
        ("5 * 3 = 15 and 15 * 60 = 900", []),  # a minute has 60 seconds
        ("17 + 19 + 5 = 41", ["17", "19", "19"]),
    ],
)
def test_operands_come_from_the_problem_or_from_earlier_lines(text, unknown):
    assert error_classes.unknown_operands("Tom has 12 jars and sells 5 for 3 dollars each.", text) == unknown


def test_the_rules_decide_on_games_and_on_what_they_see():
    game, text = Problem("g", "", ""), Problem("p", "", "", task="math")
    assert [error_classes.is_open(text, name) for name in error_classes.CLASSES] == [
        name in ("copying", "planning") for name in error_classes.CLASSES
    ]
    assert not any(error_classes.is_open(game, name) for name in error_classes.CLASSES)


def test_shares_are_of_all_answers():
    shares = error_classes.summarize(["planning", "planning", "cut off"], 10)
    assert shares["planning"] == 0.2 and shares["cut off"] == 0.1 and sum(shares.values()) == pytest.approx(0.3)
