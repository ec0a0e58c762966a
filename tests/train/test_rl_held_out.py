"""Problems that RL does not train on: their split, and their solve rate while RL runs."""

import dataclasses

import numpy as np
import pytest
from etils import epath
from grpo_fixtures import (
    HASH_VERIFIER,
    PROBLEMS,
    FunctionVerifier,
    Letters,
    fresh,
    make_shared,
    read_lines,
    shared_engine,
)
from helpers import assert_trees_equal

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.policy import Policy
from astro_jax.sampler import SamplingParams
from astro_jax.train.held_out import HeldOut, hold_out
from astro_jax.train.rewards import Rewarder
from astro_jax.types import Problem

OTHERS = [Problem(f"q{i}", "cdefghijklmn"[i : i + 4], "") for i in range(8)]


class CountingVerifier(FunctionVerifier):
    """Each letter of a response counts as a backtrack."""

    def judge(self, responses):
        verdicts = zip(super().judge(responses), responses, strict=True)
        return [dataclasses.replace(verdict, backtracks=len(r.text)) for verdict, r in verdicts]


VERIFIER = CountingVerifier(HASH_VERIFIER.is_correct)
C = cfg.Grpo(max_steps=5, eval_share=0.5, eval_steps=2, max_completion_length=12)


def test_held_out_problems_are_a_share_chosen_by_the_seed():
    kept, held_out = hold_out(PROBLEMS, 0.3, 1)
    assert len(held_out) == 2 and sorted(kept + held_out, key=lambda p: p.id) == PROBLEMS
    assert hold_out(PROBLEMS, 0.3, 1) == (kept, held_out)
    assert len({tuple(p.id for p in hold_out(PROBLEMS, 0.3, seed)[1]) for seed in range(5)}) > 1
    assert len(hold_out(PROBLEMS, 0.01, 1)[1]) == 1
    with pytest.raises(AstroError, match=r"eval_share=0\.9 of 3 prompts leaves none to train on"):
        hold_out(PROBLEMS[:3], 0.9, 1)


def held_out_verdicts(state, temperature):
    """The verdicts by the engine alone."""
    policy = Policy(shared_engine(), state.params, Letters())
    requests = [policy.request(p.prompt, 1, "held out", "rl", p.id) for p in OTHERS]
    groups = policy.generate(requests, SamplingParams(12, temperature))
    responses = [policy.response(p, s) for p, (s,) in zip(OTHERS, groups, strict=True)]
    return VERIFIER.judge(responses)


@pytest.mark.slow
def test_solve_rate_of_the_new_state_is_logged_every_eval_steps_and_at_the_end(tmp_path):
    held_out = HeldOut(C, "rl", OTHERS, Rewarder(VERIFIER, None, epath.Path(tmp_path)))
    measured, found = make_shared(held_out=held_out), {}
    names = {"eval_solve_rate": 1.0, "eval_solve_rate_greedy": 0.0}
    assert [step for step in range(1, 6) if held_out.is_due(step)] == [2, 4, 5]
    for i in (1, 2, 3):
        (state, metrics), (plain, others) = measured.step(fresh(), i), make_shared().step(fresh(), i)
        assert_trees_equal(state, plain)  # the measurement changes nothing
        assert metrics.keys() - others.keys() in (set(), {*names, "eval_mean_backtracks", "seconds_evaluation"})
        if names.keys() <= metrics.keys():
            found[i + 1] = {name: metrics[name] for name in names}
            verdicts = {name: held_out_verdicts(state, t) for name, t in names.items()}
            assert found[i + 1] == {name: np.mean([v.correct for v in vs]) for name, vs in verdicts.items()}
            assert 0 < metrics["eval_mean_backtracks"] == np.mean([v.backtracks for v in verdicts["eval_solve_rate"]])
    assert list(found) == [2, 4]
    assert len(list((tmp_path / "rewards").iterdir())) == 1  # the last measurement: older ones are removed


def test_verdicts_of_a_measurement_are_read_again_after_a_kill(tmp_path):
    policy = Policy(shared_engine(), fresh().params, Letters())
    first = HeldOut(C, "rl", OTHERS, Rewarder(HASH_VERIFIER, None, epath.Path(tmp_path))).measure(policy, 2)
    again = HeldOut(C, "rl", OTHERS, Rewarder(None, None, epath.Path(tmp_path))).measure(policy, 2)
    assert again == first
    (path,) = (tmp_path / "rewards").iterdir()
    assert [len(line["judgements"]) for line in read_lines(path)[1:]] == [8, 8]  # sampled, greedy
