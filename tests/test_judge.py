"""A model as a judge: its prompts, its judgements, and what passes."""

import contextlib
import dataclasses

import numpy as np
import pytest
from helpers import chat_tokenizer, tiny_config

from astro_jax import config as cfg
from astro_jax import prompts
from astro_jax.judge import Judge, Judgements, count, read_verdict
from astro_jax.policy import Policy
from astro_jax.sampler import Completion
from astro_jax.types import Problem, Response

TOKENIZER = dataclasses.replace(chat_tokenizer(), chat=cfg.Chat(template=True, system="Solve the problem."))
VERDICTS = cfg.Verify().verdicts
PROBLEM = Problem("sum", "What is 1 + 1?", "2", task="math")


@pytest.mark.parametrize(
    "text, approves",
    [("All is well.\nVerdict: correct", True), ("Verdict: incorrect.\n", False), ("Verdict: correct.", True),
     ("verdict: correct", None), ("It is correct", None), ("Verdict: correct\nOr not?", None), ("", None), (None, None),
     ("Verdict: correct or incorrect", None), ("The Verdict: correct", None), ("Verdict: correctly", None),
     ("**Verdict: correct", True), ('"Verdict: incorrect."', False), ("> `Verdict: correct`", True)],
)  # fmt: skip
def test_a_verdict_must_match_to_the_letter_but_for_quotes_and_bold_type(text, approves):
    assert read_verdict(text, VERDICTS) == {True: VERDICTS[0], False: VERDICTS[1], None: None}[approves]


class Examiner:
    """An engine that approves in its first two judgements if the prompt holds the sum, and has no verdict in others."""

    def __init__(self, max_positions=4000):
        self.config, self.calls = tiny_config(max_positions=max_positions), []

    def generate(self, params, requests, sampling, **options):
        self.calls.append((sampling, requests))
        return [[self.one(r, j) for j in range(r.n)] for r in requests]

    def one(self, request, j):
        approves = "1 + 1 = 2" in TOKENIZER.decode(list(request.prompt_token_ids)) and j < 2
        text = f"Hm.\nVerdict: {'correct' if approves else 'incorrect'}" if j < 3 else "I cannot say."
        ids = np.asarray(TOKENIZER.encode_after(text), np.int32)
        return Completion(ids, *2 * [np.zeros(len(ids), np.float32)], "stop")


def judge(engine, n=4, verdicts=VERDICTS):
    return Judge(Policy(engine, None, TOKENIZER), prompts.load({})["evaluate"], verdicts, n, 50)


def test_verdicts_of_a_rubric_of_the_user_are_read_in_the_place_of_the_shipped_ones():
    verdicts = cfg.Verify(verdicts=(" Ja, das stimmt (ganz).\n", " Nein.\n")).verdicts
    texts = ("Hm.\n Ja, das stimmt (ganz).", "Nein.", "Verdict: correct", "Ja")
    assert [read_verdict(text, verdicts) for text in texts] == [*verdicts, None, None]
    engine = Examiner()
    (judgements,) = judge(engine, verdicts=("I cannot say", "Hm")).judge([Response(PROBLEM, "It is 3.", True)])
    assert (judgements.approved, judgements.rejected, judgements.unread) == (1, 0, 3)
    assert engine.calls[0][0].stop == ("I cannot say", "Hm")


@pytest.mark.parametrize(
    "verdicts, is_refused",
    [(("yes", "yes, but"), True), (("correct", "not correct."), True), (("yes", "yes"), True), ((" ", "no"), True),
     (("yes\nyes", "no"), True), (("correct", "incorrect"), False)],
)  # fmt: skip
def test_verdicts_that_would_hide_each_other_are_refused(verdicts, is_refused):
    """A judgement ends at the first verdict: at "not correct" with "correct" and "not correct."."""
    with pytest.raises(ValueError) if is_refused else contextlib.nullcontext():
        cfg.Verify(verdicts=verdicts)


def test_equal_responses_are_judged_once_and_cut_off_ones_are_rejected():
    engine = Examiner()
    right, wrong = (Response(PROBLEM, text, True) for text in ("1 + 1 = 2.", "It is 3."))
    judged = judge(engine).judge([right, wrong, right._replace(stopped=False), right])
    assert [(j.approved, j.rejected, j.unread) for j in judged] == [(2, 1, 1), (0, 3, 1), (0, 4, 0), (2, 1, 1)]
    assert [j.passes(0.5) for j in judged] == [True, False, False, True] and not judged[0].passes(0.75)
    ((sampling, requests),) = engine.calls
    assert [r.n for r in requests] == [4, 4] and sampling.max_tokens == 50
    assert len({r.request_id for r in requests}) == 2 and all(r.request_id[:2] == ("judge", "sum") for r in requests)
    prompt = TOKENIZER.decode(list(requests[0].prompt_token_ids))
    assert "What is 1 + 1?" in prompt and "1 + 1 = 2." in prompt and "Solve the problem." not in prompt


def test_a_response_without_room_in_the_context_has_no_verdict():
    rubric = len(TOKENIZER.prompt(prompts.load({})["evaluate"].source))
    engine = Examiner(max_positions=rubric + 100)
    short, long = (Response(PROBLEM, "1 + 1 = 2." + x, True) for x in ("", "so " * 100))
    assert [(j.approved, j.unread) for j in judge(engine).judge([long, short])] == [(0, 4), (2, 1)]
    assert judge(engine).judge([long])[0].unread == 4  # nothing is sampled


def test_judgements_that_were_not_sampled_do_not_approve():
    judgements = count(["Verdict: correct", None], 4, VERDICTS)
    assert judgements.passes(0.25) and not judgements.passes(0.5)
    assert Judgements(25, 7, 18, []).passes(0.28)  # 0.28 * 25 is above 7 in floating point
