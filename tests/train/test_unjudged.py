"""Completions without a verdict: no weight in the loss, and an exact resume where the clock decided."""

import dataclasses
import json
import shutil
import zlib

import numpy as np
import pytest
from etils import epath
from grpo_fixtures import (
    CONFIG,
    HASH_VERIFIER,
    FunctionVerifier,
    Killed,
    fresh,
    make_shared,
    reference_advantages,
    run_loop,
    update,
)
from helpers import (
    assert_trees_close,
    assert_trees_equal,
    tiny_params,
)

from astro_jax.train.rewards import Rewarder
from astro_jax.types import Verdict


class FlakyVerifier(FunctionVerifier):
    """Times out on a third of the responses that it has not seen, and judges them like HASH_VERIFIER when asked again.

    Attributes:
      seen: the texts of all responses so far.
    """

    def __init__(self):
        super().__init__(None)
        self.seen = set()

    def judge(self, responses):
        verdicts = []
        for r, verdict in zip(responses, HASH_VERIFIER.judge(responses), strict=True):
            late = zlib.crc32(r.text.encode()) % 3 == 0 and r.text not in self.seen
            verdicts.append(dataclasses.replace(verdict, correct=False, failure="timeout") if late else verdict)
        self.seen.update(r.text for r in responses)
        return verdicts


@pytest.mark.slow
def test_completions_without_a_verdict_have_no_weight():
    flaky = make_shared(verifier=FlakyVerifier())
    rollouts = [
        r for group in make_shared(verifier=FlakyVerifier()).generate_rollouts(tiny_params(CONFIG), 0) for r in group
    ]
    rewards = np.asarray([1.0 if r.verdict.correct else -1.0 for r in rollouts])
    rewards[[r.verdict.failure is not None for r in rollouts]] = np.nan
    advantages = np.concatenate([reference_advantages(group, True) for group in rewards.reshape(3, 4).tolist()])
    kept = np.repeat((~np.isnan(rewards)).reshape(3, 4).sum(1) > 1, 4) & ~np.isnan(rewards)
    assert 0 < kept.sum() < 12 and advantages.any()
    expected, _ = update(fresh(), [r for r, k in zip(rollouts, kept, strict=True) if k], advantages[kept])
    state, metrics = flaky.step(fresh(), 0)
    assert_trees_close(state.params, expected.params, atol=1e-6)
    assert metrics["unjudged_rate"] == pytest.approx(np.isnan(rewards).mean())
    assert metrics["reward_mean"] == pytest.approx(np.nanmean(rewards))
    assert metrics["solve_rate"] == pytest.approx((rewards == 1).mean())


def test_step_without_any_reward_changes_nothing():
    failed = Verdict(False, False, None, 0, failure="error")
    verifier = FunctionVerifier(None)
    verifier.judge = lambda responses: [failed for _ in responses]
    state, metrics = make_shared(verifier=verifier, steps_per_generation=2).step(fresh(), 0)
    assert metrics["unjudged_rate"] == 1 and "reward_mean" not in metrics
    assert_trees_equal(state.params, tiny_params(CONFIG))


def train(folder, verifier, kill_at=None):
    """Four steps. The metrics are returned too."""
    flaky = make_shared(verifier=verifier)
    flaky.rewarder = Rewarder(verifier, folder=epath.Path(folder), keep_steps=4)
    return run_loop(folder, flaky, kill_at=kill_at), (folder / "metrics.jsonl").read_text()


def test_resume_is_bitwise_equal_where_a_verifier_timed_out_before_the_kill(tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "killed", "judged again")}
    expected, metrics = train(folders["whole"], FlakyVerifier())
    assert all(json.loads(line)["unjudged_rate"] > 0 for line in metrics.splitlines())
    ends = {}
    for name in ("killed", "judged again"):
        verifier = FlakyVerifier()
        with pytest.raises(Killed):
            train(folders[name], verifier, kill_at=3)
        if name == "judged again":
            shutil.rmtree(folders[name] / "rewards")
        ends[name] = train(folders[name], verifier)
    assert ends["killed"][1] == metrics
    assert_trees_equal(ends["killed"][0], expected)
    # Without the records the verifier is asked again, and answers.
    assert ends["judged again"][1] != metrics
    assert not np.array_equal(ends["judged again"][0].params.embed, expected.params.embed)
