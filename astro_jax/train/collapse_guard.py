"""The guard against collapse of RL: rules on the metrics of each step that warn, skip, roll back or stop.

The guard is a function of metrics.jsonl and of guard.jsonl, which records its rollbacks. So a killed run that starts
again makes the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import storage
from astro_jax.config import GuardRule
from astro_jax.errors import AstroError
from astro_jax.progress import log
from astro_jax.storage import Json

# What a broken rule means, and what to change: (metrics, meaning, advice).
_DIAGNOSES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("entropy", "sampled_entropy", "correct_logprob"),
     "the policy has nearly one response to a prompt (below), or writes at random (above)",
     "lower grpo.learning_rate; against low entropy set grpo.epsilon_high=0.28, grpo.clip_cov_ratio=2e-4 or "
     "grpo.temperature above 1"),
    (("mean_tokens", "mean_tokens_stopped", "p95_tokens", "max_tokens", "truncated_rate"),
     "responses grow until max_completion_length cuts them off",
     "set grpo.soft_punish_cache, lower grpo.learning_rate, or raise grpo.max_completion_length where they are sound"),
    (("repetition", "repeat_rate"), "the policy repeats itself",
     "lower grpo.learning_rate, or set grpo.beta or grpo.repeat_penalty"),
    (("grad_norm", "approx_kl", "max_ratio", "clip_low", "clip_high", "clip_fraction", "loss"),
     "the updates are too large", "lower grpo.learning_rate or grpo.steps_per_generation, or set grpo.delta"),
    (("kl",), "the policy is far from the model that RL began with", "raise grpo.beta, or lower grpo.learning_rate"),
    (("logp_gap", "max_logp_gap"), "sampler and trainer disagree about the probabilities",
     "set grpo.dtype=float32, or grpo.importance_sampling_cap=2"),
    (("reward_mean", "reward_std", "solve_rate", "valid_rate", "mean_backtracks", "eval_solve_rate",
      "eval_solve_rate_greedy", "eval_mean_backtracks"),
     "the policy unlearns what it could do", "lower grpo.learning_rate, or set grpo.beta"),
    (("zero_std_rate", "no_gradient_steps", "gen_batches"), "most prompts are too easy or too hard",
     "set grpo.max_num_gen_batches, or choose prompts by problems.difficulty_samples"),
    (("unjudged_rate", "skipped_steps"), "responses have no reward, or gradients are not finite",
     "look at the verifier or at grpo.reward, and lower grpo.learning_rate"),
)  # fmt: skip
# The metrics whose course a diagnosis shows.
_COURSE = ("reward_mean", "sampled_entropy", "mean_tokens", "truncated_rate", "repetition", "grad_norm", "logp_gap")


class CollapseGuard:
    """Watches the metrics of a stage.

    Args:
      stage: label of the messages.
      c: the rules.
      folder: of the stage, for guard.jsonl.

    Attributes:
      rollbacks: the records of guard.jsonl.
    """

    def __init__(self, stage: str, c: cfg.Guard, folder: epath.Path):
        self.stage, self.c, self._path = stage, c, folder / "guard.jsonl"
        self.rollbacks: list[Json] = list(storage.read_jsonl(self._path)) if self._path.exists() else []
        self._records: list[Json] = []

    @property
    def learning_rate_factor(self) -> float:
        """The factor of the learning rate, by the rollbacks so far."""
        return self.c.rollback_lr_factor ** len(self.rollbacks)

    @property
    def can_roll_back(self) -> bool:
        """Whether a rule may roll back."""
        return any(rule.action == "rollback" for rule in self.c.rules)

    @property
    def has_skips(self) -> bool:
        """Whether a rule may skip an update."""
        return any(rule.action == "skip" for rule in self.c.rules)

    def num_checkpoints(self, save_steps: int, eval_steps: int = 1) -> int:
        """Return how many checkpoints must be kept so that one lies before the steps that break a rule, and one more
        for each further rollback. Only those of multiples of `save_steps` count.

        Args:
          save_steps: steps between two checkpoints.
          eval_steps: steps between two values of a metric of held-out prompts.
        """
        longest = max(
            (
                rule.steps * (eval_steps if rule.metric.startswith("eval_") else 1)
                for rule in self.c.rules
                if rule.action == "rollback"
            ),
            default=0,
        )
        return self.c.max_rollbacks + math.ceil((longest + 1) / save_steps) if longest else 0

    def start(self, records: Sequence[Json]) -> None:
        """Begin after these records, the lines of metrics.jsonl up to a checkpoint."""
        self._records = list(records)

    def should_skip(self, metrics: Mapping[str, Any]) -> bool:
        """Return whether a rule skips the update with these metrics, and say so."""
        for rule in self.c.rules:
            if rule.action == "skip" and self._is_broken(rule, metrics):
                log(f"{self.stage}: step {len(self._records) + 1}: {self._describe(rule, [metrics])}; update skipped")
                return True
        return False

    def check(self, records: Sequence[Json], checkpoints: Sequence[int]) -> Json | None:
        """Look at the metrics of new steps.

        Args:
          records: lines of metrics.jsonl, in order.
          checkpoints: the steps of the checkpoints.

        Returns:
          a rollback for `roll_back`, whose `to` is the step to go back to. None: go on.

        Raises:
          AstroError: with a diagnosis, when a rule stops the run, or asks for a rollback that is not left.
        """
        for record in records:
            self._records.append(record)
            for rule in self.c.rules:
                is_judged = rule.metric in record and len(self._records) > rule.baseline_steps
                if rule.action != "skip" and is_judged and (rollback := self._act(rule, checkpoints)):
                    return rollback
        return None

    def _act(self, rule: GuardRule, checkpoints: Sequence[int]) -> Json | None:
        """Do what a rule asks for after the last record. Return a rollback, if the rule asks for one."""
        broken, step = self._broken_in_a_row(rule), self._records[-1]["step"]
        if len(broken) < rule.steps:
            return None
        reason = self._describe(rule, broken[-rule.steps :])
        if rule.action == "warn":
            if len(broken) == rule.steps:
                log(f"{self.stage}: step {step}: {reason}; {_diagnosis(rule)}")
            return None
        # The state before the first of these steps wrote their responses: the checkpoint must be older.
        older = [saved for saved in checkpoints if saved < broken[0]["step"] - 1]
        # A rule is broken again at a step that the last rollback undid: the policy had drifted before its checkpoint.
        if self.rollbacks and broken[0]["step"] <= self.rollbacks[-1]["step"]:
            older = [saved for saved in older if saved < self.rollbacks[-1]["to"]] or older[:1]
        good = max(older, default=None)
        is_spent = len(self.rollbacks) >= self.c.max_rollbacks
        if rule.action == "rollback" and good is not None and not is_spent:
            return {"step": step, "to": good, "reason": reason, "rule": rule.model_dump(mode="json")}
        why = ""
        if rule.action == "rollback" and is_spent:
            why = f" after {len(self.rollbacks)} rollbacks (grpo.guard.max_rollbacks)"
        elif rule.action == "rollback":
            why = ", since no checkpoint is older (grpo.save_steps)"
        raise AstroError(f"{self.stage}: stopped at step {step}{why}: {self._report(rule, reason)}")

    def roll_back(self, rollback: Json) -> None:
        """Record a rollback in guard.jsonl, with the metrics of the steps that it undoes."""
        undone = [record for record in self._records if record["step"] > rollback["to"]]
        self.rollbacks.append(rollback | {"undone": undone})
        storage.write_jsonl(self._path, self.rollbacks)
        log(
            f"{self.stage}: step {rollback['step']}: {rollback['reason']}; back to step {rollback['to']} with "
            f"{self.learning_rate_factor:g} of the learning rate"
        )

    def _broken_in_a_row(self, rule: GuardRule) -> list[Json]:
        """Return the last records that break a rule without a break. Records without the metric do not count."""
        broken: list[Json] = []
        for record in reversed([r for r in self._records if rule.metric in r]):
            if not self._is_broken(rule, record):
                break
            broken.insert(0, record)
        return broken

    def _is_broken(self, rule: GuardRule, metrics: Mapping[str, Any]) -> bool:
        threshold = self._threshold(rule)
        if threshold is None or rule.metric not in metrics:
            return False
        value = float(metrics[rule.metric])
        return value > threshold if rule.above is not None else value < threshold

    def _threshold(self, rule: GuardRule) -> float | None:
        """The threshold as a value of the metric. None: the baseline is not complete."""
        bound = rule.above if rule.above is not None else rule.below
        assert bound is not None
        if not rule.baseline_steps:
            return bound
        first = [r[rule.metric] for r in self._records[: rule.baseline_steps] if rule.metric in r]
        if len(self._records) < rule.baseline_steps or not first:
            return None
        return bound * sum(first) / len(first)

    def _describe(self, rule: GuardRule, broken: Sequence[Mapping[str, Any]]) -> str:
        values = ", ".join(f"{float(record[rule.metric]):.4g}" for record in broken)
        side = "above" if rule.above is not None else "below"
        return f"{rule.metric} is {side} {self._threshold(rule):.4g} ({values})"

    def _report(self, rule: GuardRule, reason: str) -> str:
        first, last = self._records[0], self._records[-1]
        course = ", ".join(f"{k} {first[k]:.3g} to {last[k]:.3g}" for k in _COURSE if k in first and k in last)
        steps = f" (from step {first['step']} to {last['step']}: {course})" if course else ""
        return f"{reason}: {_diagnosis(rule)}{steps}"


def _diagnosis(rule: GuardRule) -> str:
    return next(f"{meaning}; {advice}" for metrics, meaning, advice in _DIAGNOSES if rule.metric in metrics)
