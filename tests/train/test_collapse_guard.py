"""The guard against collapse: its rules, and an exact resume after a rollback."""

import numpy as np
import pytest
from etils import epath
from grpo_fixtures import GRPO, Killed, fresh, make_shared, read_lines, run_loop
from helpers import assert_trees_equal

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.train import collapse_guard
from astro_jax.train.collapse_guard import CollapseGuard


def make_guard(folder, *rules, **settings):
    return CollapseGuard("rl", cfg.Guard(rules=rules, **settings), epath.Path(folder))


def records(metric, *values):
    return [{"step": i, metric: v} for i, v in enumerate(values, 1)]


# ---- Rules


def test_rule_acts_after_its_steps_in_a_row(tmp_path):
    rule = {"metric": "entropy", "below": 0.2, "steps": 2, "action": "rollback"}
    rollback = make_guard(tmp_path, rule).check(records("entropy", 0.5, 0.1, 0.3, 0.1, 0.1), [0, 2, 4])
    # Steps 4 and 5 are broken. The state after step 3 has sampled step 4, so it is suspect too.
    assert rollback["step"] == 5 and rollback["to"] == 2
    assert rollback["reason"] == "entropy is below 0.2 (0.1, 0.1)"
    assert make_guard(tmp_path, rule).check(records("entropy", 0.1, 0.5, 0.1), [0]) is None
    # A step without the metric neither breaks the rule nor mends it.
    lines = [{"step": 1, "entropy": 0.5}, {"step": 2, "entropy": 0.1}, {"step": 3}, {"step": 4, "entropy": 0.1}]
    assert make_guard(tmp_path, rule).check(lines, [0])["to"] == 0


def test_records_of_an_earlier_process_count(tmp_path):
    rule = {"metric": "entropy", "below": 0.2, "steps": 2, "action": "rollback"}
    lines, resumed = records("entropy", 0.5, 0.5, 0.1, 0.1), make_guard(tmp_path, rule)
    resumed.start(lines[:3])
    assert resumed.check(lines[3:], [0, 2])["to"] == 0


def test_threshold_can_be_a_factor_of_the_first_steps(tmp_path):
    rule = {"metric": "mean_tokens", "above": 2.0, "baseline_steps": 2, "action": "stop"}
    assert make_guard(tmp_path, rule).check(records("mean_tokens", 90, 10, 99), []) is None
    with pytest.raises(AstroError, match=r"mean_tokens is above 100 \(101\): responses grow until"):
        make_guard(tmp_path, rule).check(records("mean_tokens", 90, 10, 101), [])


def test_a_skip_rule_judges_the_first_step_after_its_baseline(tmp_path):
    guard = make_guard(
        tmp_path, {"metric": "grad_norm", "above": 2.0, "baseline_steps": 2, "action": "skip"}
    )  # fmt: skip
    guard.start(records("grad_norm", 1.0))
    assert not guard.should_skip({"grad_norm": 9.0})  # the second step belongs to the baseline
    guard.start(records("grad_norm", 1.0, 3.0))
    assert guard.should_skip({"grad_norm": 4.1}) and not guard.should_skip({"grad_norm": 3.9})


def test_warning_is_printed_once_for_steps_in_a_row(tmp_path, capsys):
    rule = {"metric": "repetition", "above": 0.5, "steps": 2, "action": "warn"}
    assert make_guard(tmp_path, rule).check(records("repetition", 0.6, 0.7, 0.8, 0.1, 0.9, 0.9), [0]) is None
    lines = [line for line in capsys.readouterr().err.splitlines() if "repetition" in line]
    assert (
        len(lines) == 2 and "step 2: repetition is above 0.5 (0.6, 0.7); the policy repeats itself; lower" in lines[0]
    )


def test_stop_gives_a_diagnosis_in_one_line(tmp_path):
    rule = {"metric": "truncated_rate", "above": 0.5, "action": "stop"}
    lines = [
        {"step": 1, "truncated_rate": 0.0, "reward_mean": -0.2, "mean_tokens": 31.0},
        {"step": 2, "truncated_rate": 0.75, "reward_mean": -0.9, "mean_tokens": 200.0},
    ]
    message = (
        r"^rl: stopped at step 2: truncated_rate is above 0.5 \(0.75\): responses grow until max_completion_length "
        r"cuts them off; set grpo.soft_punish_cache[^\n]* \(from step 1 to 2: reward_mean -0.2 to -0.9, "
        r"mean_tokens 31 to 200, truncated_rate 0 to 0.75\)$"
    )
    with pytest.raises(AstroError, match=message):
        make_guard(tmp_path, rule).check(lines, [0])


def test_rollback_without_an_older_checkpoint_stops(tmp_path):
    rule = {"metric": "kl", "above": 1.0, "action": "rollback"}
    with pytest.raises(AstroError, match=r"stopped at step 1, since no checkpoint is older \(grpo.save_steps\): kl is"):
        make_guard(tmp_path, rule).check(records("kl", 9.0), [0])


def test_rollbacks_are_bounded_and_survive_a_restart(tmp_path):
    rule = {"metric": "kl", "above": 1.0, "action": "rollback"}
    guard, lines = make_guard(tmp_path, rule, max_rollbacks=1, rollback_lr_factor=0.25), records("kl", 0.1, 0.1, 9.0)
    assert guard.learning_rate_factor == 1
    guard.roll_back(guard.check(lines, [0]))
    again = make_guard(tmp_path, rule, max_rollbacks=1, rollback_lr_factor=0.25)
    assert again.learning_rate_factor == guard.learning_rate_factor == 0.25
    (written,) = read_lines(tmp_path / "guard.jsonl")
    assert written["to"] == 0 and written["undone"] == lines
    with pytest.raises(
        AstroError, match=r"stopped at step 3 after 1 rollbacks \(grpo.guard.max_rollbacks\): kl is above"
    ):
        again.check(lines, [0])


def test_rollbacks_to_the_same_checkpoint_go_further_back(tmp_path):
    """Three rollbacks to one checkpoint did not help: the policy had drifted before it."""
    rule = {"metric": "kl", "above": 1.0, "action": "rollback"}
    guard = make_guard(tmp_path, rule, max_rollbacks=4)
    for to in (6, 3, 0, 0):  # nothing is older than the start
        guard.start(records("kl", *[0.1] * to))
        lines = [{"step": step, "kl": 9.0 if step == 8 else 0.1} for step in range(to + 1, 9)]
        rollback = guard.check(lines, [0, 3, 6])
        assert rollback["to"] == to
        guard.roll_back(rollback)
    guard = make_guard(tmp_path, rule, max_rollbacks=5)  # a later alarm goes to the last checkpoint before it
    guard.start(records("kl", *[0.1] * 9))
    assert guard.check([{"step": 10, "kl": 0.1}, {"step": 11, "kl": 9.0}], [0, 3, 6, 9])["to"] == 9


def test_enough_checkpoints_are_kept_for_a_rollback(tmp_path):
    rules = [("kl", steps, 1) for steps in (1, 2, 9, 10, 25)] + [("eval_solve_rate", 2, 5)]
    for metric, in_a_row, every in rules:
        guard = make_guard(tmp_path, {"metric": metric, "above": 1.0, "steps": in_a_row, "action": "rollback"})
        steps = in_a_row * every
        for save_steps in (1, 4, 10):
            kept = guard.num_checkpoints(save_steps, every)
            for step in range(steps + 1, 60):  # broken since step - steps + 1
                saved = list(range(0, step, save_steps))[-kept:]
                older = [s for s in saved if s < max(1, step - steps)]
                assert len(older) >= 2 or saved[0] == 0, (steps, save_steps, step)  # of two rollbacks, the default


def test_every_metric_has_a_diagnosis():
    for metric in cfg.GUARD_METRICS:
        assert "grpo." in collapse_guard._diagnosis(cfg.GuardRule(metric=metric, above=1, action="warn"))


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"metric": "entropie", "below": 1, "action": "warn"}, "grpo.guard.rules.0.metric: .*'entropy'"),
        ({"metric": "entropy", "action": "warn"}, "set one of above and below"),
        ({"metric": "entropy", "below": 1, "above": 2, "action": "warn"}, "set one of above and below"),
        ({"metric": "entropy", "below": 1, "steps": 2, "action": "skip"}, "leave steps out"),
        ({"metric": "reward_mean", "below": 0.6, "baseline_steps": 3, "action": "stop"}, "reward_mean may be negative"),
        ({"metric": "skipped_steps", "above": 0, "action": "skip"}, "known after the update"),
        ({"metric": "kl", "above": 1, "action": "stop"}, "kl is only measured with beta"),
        ({"metric": "eval_solve_rate", "below": 1, "action": "stop"}, "eval_solve_rate is only measured with eval_sh"),
        (
            {"metric": "eval_mean_backtracks", "below": 1, "action": "stop"},
            "eval_mean_backtracks is only measured with",
        ),
        ({"metric": "eval_solve_rate", "below": 1, "action": "skip"}, "known after the update"),
    ],
)
def test_rule_that_cannot_work_is_refused(rule, message):
    with pytest.raises(AstroError, match=message):
        cfg.parse({"grpo": {"guard": {"rules": [rule]}}})


# ---- In a run


@pytest.mark.slow
def test_skipped_update_leaves_the_state_as_it_was(tmp_path):
    for rule in ({"metric": "grad_norm", "above": 1e-9}, {"metric": "truncated_rate", "above": -1.0}):
        guard = make_guard(tmp_path, rule | {"action": "skip"})
        state, metrics = make_shared(steps_per_generation=2, guard=guard).step(fresh(), 0)
        assert_trees_equal(state, fresh())
        assert metrics["guard_skips"] == 2 and metrics["skipped_steps"] == 0 and metrics["grad_norm"] > 0
    guard = make_guard(tmp_path, {"metric": "grad_norm", "above": 1e9, "action": "skip"})
    (a, metrics), (b, _) = make_shared(guard=guard).step(fresh(), 0), make_shared().step(fresh(), 0)
    assert_trees_equal(a, b)
    assert metrics.get("guard_skips", 0) == 0


def train(folder, kill=None):
    """Seven steps that collapse at step 5 unless the learning rate is lower. Killed at a moment that `kill` names."""
    guard = make_guard(folder, {"metric": "kl", "above": 5.0, "action": "rollback"})
    trainer, record = make_shared(guard=guard), guard.roll_back

    def roll_back(rollback):
        if kill == "before the record":
            raise Killed
        record(rollback)
        if kill == "after the record":
            raise Killed

    guard.roll_back = roll_back

    def step(state, i):
        if kill == (i, len(guard.rollbacks)):
            raise Killed
        state, metrics = trainer.step(state, i)
        return state, metrics | {"kl": 9.0 if i == 4 and not guard.rollbacks else 0.1}

    return run_loop(folder, trainer, 7, step=step, collapse_guard=guard)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(folder)


def test_rollback_goes_on_from_the_good_checkpoint_with_a_lower_rate(uninterrupted):
    folder, state = uninterrupted
    (rollback,) = read_lines(folder / "guard.jsonl")
    assert (rollback["step"], rollback["to"]) == (5, 2) and [r["step"] for r in rollback["undone"]] == [3, 4, 5]
    lines = read_lines(folder / "metrics.jsonl")
    assert [r["step"] for r in lines] == list(range(1, 8)) and state.step == 7
    rates = [r["learning_rate"] for r in lines]
    np.testing.assert_allclose(rates[2:], [r["learning_rate"] / 2 for r in rollback["undone"]] + [rates[2]] * 2)
    assert rates[0] == pytest.approx(GRPO.learning_rate)


# Before the rollback, between its two writes, after it without a new checkpoint, and after a new checkpoint.
@pytest.mark.slow
@pytest.mark.parametrize("kill", [(3, 0), "before the record", "after the record", (3, 1), (6, 1)])
def test_resume_after_a_rollback_is_bitwise_equal(kill, uninterrupted, tmp_path):
    folder, expected = uninterrupted
    with pytest.raises(Killed):
        train(tmp_path, kill)
    assert_trees_equal(train(tmp_path), expected)
    for name in ("metrics.jsonl", "guard.jsonl"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
