"""The detector on responses labelled by hand, and the measures of an answer on hand-worked cases."""

import time

import pytest
from behaviour_labels import OWN_WORDS, PHRASES

from astro_jax import attempts
from astro_jax.attempts import detector
from astro_jax.evaluate import behaviour, error_classes
from astro_jax.evaluate.metrics import success_rate
from astro_jax.evaluate.statistics import summarize
from astro_jax.types import Problem

KINDS = {"reflection": "r", "backtrack": "b", "restart": "s"}
SUM = Problem("p", "What is 3 + 4?", "7", task="math")
GAME = Problem("g", "Let us make 29 from 11 6 3.\n", "29", {"numbers": [11, 6, 3], "target": 29})
DOUBT = " But wait, are we solving the problem correctly so far? Hmm...\n"
BACK = " Let's go back to where we make 29 from"
RESTART = " Let's restart our solution from the beginning, and make 29 from 3 6 11.\n"


def test_at_least_150_responses_are_labelled_and_half_are_in_other_words():
    assert len(PHRASES) + len(OWN_WORDS) >= 150 and len(OWN_WORDS) >= len(PHRASES)
    for letter in KINDS.values():
        assert sum(letter in label for label, _ in OWN_WORDS) >= 10
    assert sum(not label for label, _ in OWN_WORDS) >= 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("responses", [PHRASES, OWN_WORDS], ids=["phrases", "own words"])
def test_precision_and_recall_are_at_least_90_percent(kind, responses):
    labels = [KINDS[kind] in label for label, _ in responses]
    detected = [any(e.kind == kind for e in detector.find(text)) for _, text in responses]
    hits = sum(a and b for a, b in zip(labels, detected, strict=True))
    assert hits / sum(detected) >= 0.9 and hits / sum(labels) >= 0.9, (hits, sum(detected), sum(labels))


def test_neighbouring_sentences_of_a_kind_are_one_event():
    events = detector.find("x = 3. Wait. Is this right? No, that is wrong. Let me start over. x = 4.")
    assert [e.kind for e in events] == ["reflection", "restart"]


@pytest.mark.parametrize(
    "response, rights, changes",
    [
        ("3 + 4 = 7", (True,), []),
        ("3 + 4 = 8. Wait, that is wrong. Let me try again. 3 + 4 = 7. The answer is 7.", (False, True), ["repair"]),
        ("So \\boxed{7}. Hmm, let me start over. 3 * 4 = 12, so \\boxed{12}.", (True, False), ["spoil"]),
        ("3 + 4 = 8. Let me try again. 3 + 4 = 9. Let me start over. 3 + 4 = 7.", (False, False, True),
         ["stays wrong", "repair"]),
        ("Let's try another way. 3 + 4 = 7.", (True,), []),  # nothing was left
        ("We add 3 apples. Let me try again. No idea.", (False, None), ["undecided"]),
        ("3 + 4 = 7. I made a mistake. Let me redo this. Let's go back to step 1. 4 + 3 = 7", (True, True),
         ["stays right"]),
    ],
)  # fmt: skip
def test_each_backtrack_repairs_or_spoils(response, rights, changes):
    b = behaviour.measure(SUM, response)
    assert (b.rights, b.changes) == (rights, changes) and b.attempts == len(rights)


def test_numbers_of_attempts_tell_a_first_from_a_second():
    is_event = {n: bool(detector.find(f"Attempt {n}: 3 + 4 = 8.")) for n in (0, 1, 2, 3, 9, 10)}
    assert is_event == {0: False, 1: False, 2: True, 3: True, 9: True, 10: False}


@pytest.mark.parametrize("word", ["we ", "i have ", "something is ", "let's x ", "a", "- ", "that is wrong let me "])
def test_an_answer_of_one_repeated_word_does_not_hold_up_the_run(word):
    """Of 60,000 characters, which took a minute. Now it takes hundredths of a second."""
    start = time.process_time()
    attempts.count_repeats(attempts.split(word * (60_000 // len(word))))
    assert time.process_time() - start < 10


def test_attempts_repeat_by_their_equations_or_else_by_their_words():
    assert attempts.count_repeats(["so x = 1", "y = 1", "so x=1", "no sum here", "No sum here!", ""]) == 2
    assert attempts.count_repeats(["0.25 * 8 = 2.0", "1.25 * 8 = 2.5", "1,200 + 3 = 1,203", "5,200 + 3 = 5,203"]) == 0
    assert attempts.count_repeats(["a, b = 1; c", "b =\n1, = 2", "b = 1 c = 2", "b = 1"]) == 2


def test_attempts_of_countdown_are_judged_by_its_verifier():
    wrong = " 6 * 3 = 18, left 11 18.\n 18 - 11 = 7, which misses the target!\n"
    right = " 18 + 11 = 29, which is the target!\n"
    b = behaviour.measure(GAME, wrong + DOUBT + BACK + " 11 18.\n" + right)
    assert (b.rights, b.backtracks, b.reflections, b.phrase_backtracks) == ((False, True), 1, 1, 1)
    # A right last line after a false way is not right.
    b = behaviour.measure(
        GAME, wrong.replace("18 - 11 = 7", "18 - 11 = 8") + RESTART + " 6 * 3 = 19, left 11 19.\n" + right
    )
    assert b.rights == (False, False) and b.restarts == 1
    b = behaviour.measure(GAME, wrong + RESTART + wrong + RESTART + wrong.replace("18 - 11 = 7", "11 + 18 = 29"))
    assert b.attempts == 3 and b.repeats == 1 and b.changes[0] == "stays wrong"


@pytest.mark.parametrize("text", ["x =" + " " * 60_000, "x =" + "\n" * 60_000, "<answer>" * 7500, "2+2=4. " * 8000])
def test_an_answer_of_spaces_tags_or_equations_does_not_hold_up_the_run(text):
    """Of 60,000 characters, which took up to 17 minutes."""
    start = time.process_time()
    behaviour.measure(SUM, text)
    error_classes.classify(SUM, text, True, "5", False)
    assert time.process_time() - start < 20


def test_the_last_closed_tag_is_the_answer_of_an_attempt():
    assert behaviour.attempt_answer("<answer>3</answer> no <answer> 4 </answer> <answer>5") == "4"


def test_figures_of_many_answers():
    responses = ["3 + 4 = 7", "3 + 4 = 8. That's wrong. Let me try again. 3 + 4 = 7.",
                 "3 + 4 = 7. Let me start over. 3 + 4 = 9.", "3 + 4 = 9. Let's try again. 3 + 4 = 9."]  # fmt: skip
    figures = behaviour.summarize([behaviour.measure(SUM, r) for r in responses], [True, True, False, False])
    assert figures["changes"] == {"repair": 1, "spoil": 1, "stays wrong": 1}
    assert (figures["repair_rate"], figures["spoil_rate"], figures["first_attempt_right"]) == (0.5, 1.0, 0.5)
    assert figures["by_attempts"] == {"1": success_rate([True]), "2": success_rate([True, False, False])}
    several = behaviour.summarize([behaviour.measure(SUM, responses[0])] * 16, [True] * 8 + [False] * 8, ["a", "b"] * 8)
    assert several["by_attempts"]["1"] == summarize([0.5, 0.5])  # of two problems, not of 16 answers
    assert (figures["attempts"], figures["repeat"], figures["with_restarts"]) == (1.75, 0.25, 0.25)
    assert (figures["backtracks"], figures["restarts"], figures["reflections"]) == (0.5, 0.25, 0.25)
