"""Rewards of GRPO: the verdict's, the user's, and the record that a replay of a step uses."""

import contextlib

import numpy as np
import pytest
from etils import epath

from astro_jax.sampler import Completion
from astro_jax.train import rewards
from astro_jax.train.rewards import Judgement, Rewarder
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier
from astro_jax.verify.user_reward import UserReward
from astro_jax.verify.verdict_counts import VerdictCounts

CORRECT, WRONG = Verdict(True, True, "5", 0), Verdict(False, True, "4", 2)
TIMEOUT, ERROR = (Verdict(False, False, None, 1, failure=failure) for failure in ("timeout", "error"))
PROBLEMS = [Problem("p", "2+3", "5", {"level": 1, "answer": "hidden"}), Problem("q", "7+1", "8", {"topic": "sums"})]


def responses(*texts, problem=PROBLEMS[0]):
    """A group of responses with one token a character."""
    ids = [np.asarray([ord(c) for c in text], np.int32) for text in texts]
    zeros = np.zeros(9, np.float32)
    return [
        (Response(problem, text, "?" not in text), Completion(i, zeros, zeros, "stop"))
        for text, i in zip(texts, ids, strict=True)
    ]


GROUPS = [responses("5", "4"), responses("8", "9?", problem=PROBLEMS[1])]


class ScriptedVerifier:
    """Gives the next verdicts of a list.

    Attributes:
      calls: how often it was asked.
    """

    def __init__(self, *verdicts):
        self.verdicts, self.calls, self.counts = iter(verdicts), 0, VerdictCounts()

    def judge(self, responses):
        self.calls += 1
        return [next(self.verdicts) for _ in responses]


def test_a_verifier_timeout_earns_no_reward():
    verifier = ScriptedVerifier(CORRECT, TIMEOUT, ERROR, WRONG)
    assert Rewarder(verifier).judge(0, GROUPS) == [
        [Judgement(CORRECT, 1.0), Judgement(TIMEOUT, None)],
        [Judgement(ERROR, None), Judgement(WRONG, -1.0)],
    ]


def test_a_replayed_step_keeps_the_verdicts_of_its_first_run(tmp_path):
    """The verifier times out when it is asked first. It must not be asked a second time."""
    verifier = ScriptedVerifier(CORRECT, TIMEOUT, ERROR, WRONG, CORRECT, CORRECT, CORRECT, CORRECT)
    first, replayed = (Rewarder(verifier, None, epath.Path(tmp_path)).judge(3, GROUPS) for _ in range(2))
    assert replayed == first and first[0][1].reward is None and verifier.calls == 1


def test_a_step_with_a_record_is_not_judged_while_it_is_sampled(tmp_path):
    verifier, problem = Verifier(), Problem("p", "2+3", "5", task="number")
    rewarder, groups = Rewarder(verifier, None, epath.Path(tmp_path)), [responses("5", "4", "5?", problem=problem)]
    with rewarder.stream(3, [problem], 3) as stream:
        for i, pair in enumerate(groups[0]):
            stream.add(0, i, *pair)
        first = rewarder.judge(3, groups, stream=stream)
    assert [j.reward for j in first[0]] == [1, -1, -1] and first == Rewarder(verifier).judge(3, groups)
    with rewarder.stream(3, [problem], 3) as stream:
        assert stream is None and rewarder.judge(3, groups, stream=stream) == first
    assert verifier.counts.by_status.total() == 6
    with rewarder.stream(4, [problem], 3) as stream:
        assert stream is not None


def test_a_record_of_other_completions_is_not_used(tmp_path):
    verifier = ScriptedVerifier(*[CORRECT, WRONG] * 6)
    rewarder = Rewarder(verifier, None, epath.Path(tmp_path))
    rewarder.judge(3, GROUPS)
    rewarder.judge(3, GROUPS[::-1])
    rewarder.judge(4, GROUPS)
    assert verifier.calls == 3


def test_records_of_old_steps_are_removed(tmp_path):
    for step in range(7):
        Rewarder(ScriptedVerifier(*[WRONG] * 4), None, epath.Path(tmp_path), keep_steps=3).judge(step, GROUPS)
    assert sorted(p.name for p in (tmp_path / "rewards").iterdir()) == [f"step-0000{i}.jsonl" for i in (4, 5, 6)]


def test_a_user_written_reward_gets_the_columns_of_its_problems(tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        """
def reward(prompts, completions, **columns):
    group = dict(columns, prompts=prompts, completions=completions)
    expected = [
        {"prompts": ["2+3", "2+3"], "completions": ["5", "4"], "completion_ids": [[53], [52]], "answer": ["5", "5"],
         "problem_id": ["p", "p"], "stopped": [True, True], "correct": [True, None], "level": [1, 1],
         "topic": [None, None]},
        {"prompts": ["7+1", "7+1"], "completions": ["8", "9?"], "completion_ids": [[56], [57, 63]],
         "answer": ["8", "8"], "problem_id": ["q", "q"], "stopped": [True, False], "correct": [None, False],
         "level": [None, None], "topic": ["sums", "sums"]},
    ]
    return [0.5, None] if group == expected[0] else [None, -7] if group == expected[1] else [99.0, 99.0]
"""
    )
    monkeypatch.chdir(tmp_path)
    names = rewards.column_names(PROBLEMS)
    verifier = ScriptedVerifier(CORRECT, TIMEOUT, ERROR, WRONG)
    with contextlib.closing(UserReward("my_reward:reward", names, 20.0, num_workers=1)) as user_reward:
        user_reward.check()
        rewarder = Rewarder(verifier, user_reward, epath.Path(tmp_path / "stage"))
        judged = rewarder.judge(0, GROUPS)
    assert judged == [
        [Judgement(CORRECT, 0.5), Judgement(TIMEOUT, None)],
        [Judgement(ERROR, None), Judgement(WRONG, -7.0)],
    ]
    assert rewarder.judge(0, GROUPS) == judged  # from the record: the workers have ended


@pytest.mark.parametrize("reward", [0.1, -1 / 3, 1e-300, 7e29])
def test_a_record_keeps_every_bit_of_a_reward(reward, tmp_path):
    class Fixed:
        columns = rewards.COLUMNS

        def score(self, groups):
            return [[reward, None] for _ in groups]

    judged = [
        Rewarder(ScriptedVerifier(*verdicts), Fixed(), epath.Path(tmp_path)).judge(0, GROUPS)
        for verdicts in ([WRONG] * 4, [])
    ]
    assert judged[0] == judged[1] == [[Judgement(WRONG, reward), Judgement(WRONG, None)]] * 2


def test_a_user_written_reward_gets_the_verdicts_of_the_judge():
    class Echo:
        columns = ("correct",)

        def score(self, groups):
            return [[float(correct) for correct in group["correct"]] for group in groups]

    problem = Problem("p", "2+3", "5", task="number")
    rewarder = Rewarder(Verifier(judge=lambda responses: [r.text == "4" for r in responses]), Echo())
    with rewarder.stream(0, [problem], 2) as stream:
        assert stream is None  # the judge decides after all responses have ended
        assert [j.reward for j in rewarder.judge(0, [responses("5", "4", problem=problem)], stream=stream)[0]] == [0, 1]
