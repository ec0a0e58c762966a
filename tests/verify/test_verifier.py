"""The Verifier: verdicts by status, the rules, disagreements of the graders, and runs without verdicts."""

import json

import pytest
from slow_answer import SLOW_ANSWER

from astro_jax import config as cfg
from astro_jax import distributed
from astro_jax.errors import AstroError
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier


def response(answer, gold="5", stopped=True):
    return Response(Problem("x", "", gold, task="math"), f"so \\boxed{{{answer}}}", stopped)


@pytest.fixture
def verifier(workers):
    verifier = Verifier(cfg.Verify(timeout_seconds=1))
    verifier._pool = workers
    return verifier


def test_verdicts_by_status(verifier):
    slow = Response(Problem("x", "", "5", task="math"), SLOW_ANSWER, True)
    truncated = response(5, stopped=False)
    verdicts = verifier.judge([response(5), response(6), response("x^{"), slow, truncated])
    assert [v.status for v in verdicts] == ["correct", "wrong", "unparsed", "timeout", "unparsed"]
    assert [v.correct for v in verdicts] == [True, False, False, False, False]
    assert verdicts[1].answer == "6"
    assert verifier.counts.by_status == {"correct": 1, "wrong": 1, "unparsed": 2, "timeout": 1}


def test_stream_gives_the_verdicts_and_counts_of_judge(verifier, workers):
    slow = Response(Problem("x", "", "5", task="math"), SLOW_ANSWER, True)
    local = Response(Problem("y", "", "5", task="number"), "5", True)
    all_responses = [response(5), response(6), local, slow, response("x^{"), response(5, stopped=False), local]
    expected, other = verifier.judge(all_responses), Verifier(cfg.Verify(timeout_seconds=1))
    other._pool = workers
    with other.stream([r.problem for r in all_responses]) as stream:
        for i in (3, 1, 0, 2, 6, 5, 4):  # they end in another order
            stream.add(i, all_responses[i])
        assert stream.judge(all_responses) == expected
    assert other.counts.by_status == verifier.counts.by_status


def test_processes_share_the_responses_of_a_stream(verifier, workers, monkeypatch):
    all_responses, parts = [response(i) for i in range(7)], {}
    expected = verifier.judge(all_responses)

    def judge(process, others):
        monkeypatch.setattr(distributed, "process_index", lambda: process)
        monkeypatch.setattr(distributed, "all_gather", lambda name, value: [parts.setdefault(process, value), *others])
        with verifier.stream([r.problem for r in all_responses]) as stream:
            for i, r in enumerate(all_responses):
                stream.add(i, r)
            return stream.judge(all_responses)

    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    judge(1, [])
    assert json.loads(json.dumps(parts[1]))[0][0] == 1 and [i for i, _ in parts[1]] == [1, 3, 5]
    assert judge(0, [json.loads(json.dumps(parts[1]))]) == expected


def test_rewards_are_strict_and_reports_are_lenient(verifier):
    third = Response(Problem("x", "", "\\frac{1}{3}", task="math"), "the answer is 0.33", True)
    assert [verifier.judge([third], use)[0].status for use in ("reward", "report")] == ["unparsed", "correct"]


def test_a_judge_decides_on_rewards_and_the_rules_on_reports(verifier):
    said = {"5": False, "6": True}  # the third response has no answer that can be read: the judge is not asked
    judged = Verifier(verifier.c, lambda responses: [said[r.text[10:-1]] for r in responses])
    judged._pool = verifier._pool
    responses = [response(5), response(6), response("x^{")]
    assert [v.correct for v in judged.judge(responses)] == [False, True, False]
    assert [v.correct for v in judged.judge(responses, "report")] == [True, False, False]
    assert judged.counts.judged == {"right rejected": 1, "wrong approved": 1}


def test_a_judge_alone_decides_on_problems_without_an_answer(verifier):
    judged = Verifier(verifier.c, lambda responses: ["gravity" in r.text for r in responses])
    texts = ["It falls.\n\nBecause of gravity. ", "so \\boxed{magnets}", "\n", "Because of gravity"]
    responses = [Response(Problem("why", "Why?", "", task="judged"), text, i != 3) for i, text in enumerate(texts)]
    verdicts = [("correct", "Because of gravity."), ("wrong", "magnets"), ("unparsed", None), ("unparsed", None)]
    for use in ("reward", "report"):
        assert [(v.status, v.answer) for v in judged.judge(responses, use)] == verdicts
    assert not judged.counts.judged  # no rule to compare the judge with


def test_disagreements_with_the_second_grader_are_listed(verifier):
    verifier.judge([response("50%", gold="50"), response(5)])
    assert verifier.counts.disagreements == [{"gold": "50", "answer": "50%", "correct": True}]


def test_run_without_verdicts_is_stopped(verifier):
    """Without this stop, rewards of 0 for all responses would look like a weak model for days."""
    verifier.judge([response(5)] + [response("", stopped=False)] * 150)
    with pytest.raises(AstroError, match=r"200 of 201 responses have no verdict \(1 correct, 200 unparsed\).*cut off"):
        verifier.judge([response("", stopped=False)] * 50)


def test_countdown_run_without_verdicts_is_not_stopped():
    problem = Problem("x", "", "5", {"numbers": [2, 3], "target": 5})
    assert not any(v.correct for v in Verifier().judge([Response(problem, "nonsense", True)] * 500))


def test_readable_gold_answers(verifier):
    assert verifier.readable(["5", "\\frac{1}{2}", "\\frac{", ""]) == [True, True, False, False]
