"""The section `grpo.guard` of a run's configuration: rules that turn metrics of RL into actions."""

from __future__ import annotations

from typing import Literal, Self, get_args

import pydantic

from astro_jax.config.keys import Section, key

# The metrics of a step of GRPO, as in metrics.jsonl (docs/metrics.md).
GuardMetric = Literal[
    "approx_kl", "clip_fraction", "clip_high", "clip_low", "correct_logprob", "entropy", "eval_mean_backtracks",
    "eval_solve_rate", "eval_solve_rate_greedy", "gen_batches", "grad_norm", "kl", "logp_gap", "loss",
    "max_logp_gap", "max_ratio", "max_tokens", "mean_backtracks", "mean_tokens", "mean_tokens_stopped",
    "no_gradient_steps", "p95_tokens", "repeat_rate", "repetition", "reward_mean", "reward_std", "sampled_entropy",
    "skipped_steps", "solve_rate", "truncated_rate", "unjudged_rate", "valid_rate", "zero_std_rate",
]  # fmt: skip
GUARD_METRICS: tuple[str, ...] = get_args(GuardMetric)
SIGNED = ("reward_mean", "correct_logprob", "loss")  # metrics that may be negative
AFTER_UPDATE = (
    "skipped_steps",
    "no_gradient_steps",
    "eval_solve_rate",
    "eval_solve_rate_greedy",
    "eval_mean_backtracks",
)


class GuardRule(Section):
    """One rule: a metric, a threshold and an action."""

    metric: GuardMetric = key(..., "Metric of a step, by its name in metrics.jsonl.", "required")
    above: float | None = key(None, "The rule is broken by a value above this threshold.")
    below: float | None = key(None, "The rule is broken by a value below this threshold.")
    baseline_steps: int = key(
        0, "0: the threshold is a value of the metric. n: a factor of its mean over the first n steps.", ge=0
    )
    steps: int = key(1, "Steps in a row that break the rule before it acts.", ge=1)
    action: Literal["warn", "skip", "rollback", "stop"] = key(
        ..., "Print a line, skip the update, go back to the last good checkpoint, or stop the run.", "required"
    )

    @pydantic.model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("set one of above and below")
        if self.baseline_steps and self.metric in SIGNED:
            raise ValueError(
                f"baseline_steps: {self.metric} may be negative, where a factor turns around; use solve_rate"
            )
        if self.action == "skip" and self.steps > 1:
            raise ValueError("action=skip acts on the update of its own step; leave steps out")
        if self.action == "skip" and self.metric in AFTER_UPDATE:
            raise ValueError(f"action=skip: {self.metric} is known after the update; choose another action")
        return self


class Guard(Section):
    """The guard against collapse. Without rules it does nothing."""

    rules: tuple[GuardRule, ...] = key(
        (), "Rules, as in `[{metric: truncated_rate, above: 0.5, steps: 3, action: rollback}]`."
    )
    max_rollbacks: int = key(2, "Rollbacks of a stage. A rule that asks for one more stops the run.", ge=0)
    rollback_lr_factor: float = key(0.5, "Factor of the learning rate after each rollback.", gt=0, lt=1)
