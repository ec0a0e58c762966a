"""The section `grpo` of a run's configuration. The names are TRL's where TRL has the option."""

from __future__ import annotations

import re
from typing import Literal, Self

import pydantic

from astro_jax.config.guard import Guard
from astro_jax.config.keys import key
from astro_jax.config.training import Training

_LITERATURE = "ours; the paper has only the loss of GRPO"  # of options that the paper does not use


class Grpo(Training):
    """Group relative policy optimization (paper, section 3.2)."""

    max_steps: int = key(100, "Rollout batches.", ge=1)
    prompts_per_step: int = key(64, "Prompts of a rollout batch.", ge=1)
    num_generations: int = key(4, "Responses to each prompt (the group size).", "paper, section 3.2", ge=2)
    max_completion_length: int = key(
        256, "Most tokens of a response.", "ours; the paper has 15,360 (section 3.2)", ge=1
    )
    temperature: float = key(
        1.0, "Sampling temperature of the responses. The trainer's probabilities have it too.", gt=0
    )
    max_num_gen_batches: int = key(
        1,
        "Batches of prompts that a step may sample until `prompts_per_step` groups have different rewards: the dynamic "
        "sampling of DAPO (arXiv 2503.14476, section 3.2). 1: none.",
        _LITERATURE, ge=1,
    )  # fmt: skip
    restart_rate: float = key(
        0.0,
        "Share of the prompts with a trace whose responses begin inside the trace (restart and explore of Satori, "
        "arXiv 2502.02508).",
        _LITERATURE, ge=0, le=1,
    )  # fmt: skip
    learning_rate: float = key(2e-7, "Peak learning rate.", "paper, section 3.2 (recalled)", gt=0)
    min_lr_rate: float = key(1.0, "Last learning rate, as a share of the peak. 1: constant after warmup.", ge=0, le=1)
    weight_decay: float = key(0.0, "Weight decay of AdamW, on matrices only.", ge=0)
    loss_type: Literal["dapo", "grpo", "dr_grpo", "cispo"] = key(
        "dapo",
        "Mean over tokens (dapo), mean over responses (grpo), a constant (dr_grpo), or CISPO's loss over tokens.",
        "ours; DAPO, arXiv 2503.14476, section 3.3",
    )
    importance_sampling_level: Literal["token", "sequence"] = key(
        "token", "Probability ratio of each token, or of the whole response (GSPO, arXiv 2507.18071).",
        "GRPO, arXiv 2402.03300",
    )  # fmt: skip
    epsilon: float = key(0.2, "Clip range of the probability ratio.", "GRPO, arXiv 2402.03300", gt=0)
    epsilon_high: float | None = key(
        None,
        "Upper clip range, if it differs from `epsilon` (clip-higher of DAPO, section 3.1). With cispo: the largest "
        "weight. Null: `epsilon`.",
        _LITERATURE, gt=0,
    )  # fmt: skip
    delta: float | None = key(
        None, "Upper bound of the ratio where the advantage is negative (dual clip, arXiv 1912.09729). Null: none.",
        _LITERATURE, gt=1,
    )  # fmt: skip
    max_log_ratio: float | None = key(
        None, "Bound of the absolute log-ratio, before the exponential. Null: none.", _LITERATURE, gt=0
    )
    importance_sampling_cap: float | None = key(
        None,
        "Largest weight by which a token is corrected for the gap between sampler and trainer. Null: no correction, "
        "and the ratio is to the sampler's probabilities.",
        _LITERATURE, gt=0,
    )  # fmt: skip
    geometric_mask_bounds: tuple[float, float] | None = key(
        None,
        "Least and largest geometric mean of a response's ratios to the policy that sampled it. A response outside has "
        "no gradient (SkyRL: 0.99 and 1.01). Null: none.",
        _LITERATURE,
    )  # fmt: skip
    clip_cov_ratio: float = key(
        0.0,
        "Share of the tokens of an update whose gradient is left out, drawn among those with a high covariance between "
        "log-probability and advantage (Clip-Cov, arXiv 2505.22617; 2e-4 there). 0: none.",
        _LITERATURE, ge=0, lt=1,
    )  # fmt: skip
    clip_cov_bounds: tuple[float, float] = key(
        (1.0, 5.0), "Least and largest covariance of the tokens that `clip_cov_ratio` draws from.",
        "ours; the bounds of verl's Clip-Cov (arXiv 2505.22617)",
    )  # fmt: skip
    kl_cov_ratio: float = key(
        0.0,
        "Share of the tokens of an update, those with the highest covariance, that pay for their distance to the "
        "policy that sampled them (KL-Cov, arXiv 2505.22617; 2e-3 for 7B, 2e-4 for 32B there). 0: none.",
        _LITERATURE, ge=0, lt=1,
    )  # fmt: skip
    kl_cov_coef: float = key(
        1.0, "Weight of that KL divergence.", "ours; KL-Cov is arXiv 2505.22617, its weight is recalled", gt=0
    )
    quantized_rollouts: bool = key(
        False,
        "Round weights, keys and values in RL too, as `sampler.quantization` and `sampler.kv_cache_dtype` say. Needs "
        "`importance_sampling_cap`.",
        _LITERATURE,
    )
    beta: float = key(
        0.0, "Weight of the KL divergence to the model from which RL starts. 0: none.", "paper, section 3.2", ge=0
    )
    steps_per_generation: int = key(
        1, "Optimizer steps per generation: each takes an equal share of the completions.", ge=1
    )
    reward: str | None = key(
        None,
        "Reward function, `module:function` or `path/to/file.py:function`: code of yours that the run executes. "
        "Null: +1 for a correct response, -1 for any other.",
        "paper, section 3.2",
    )
    reward_timeout_seconds: float = key(60.0, "Deadline of one call of `reward`, in seconds.", gt=0, effect="none")
    scale_rewards: bool = key(
        True, "Divide the advantages by the group's standard deviation.", "GRPO, arXiv 2402.03300"
    )
    positive_advantages_only: bool = key(
        False, "Learn only from responses that are better than their group.", _LITERATURE
    )
    mask_truncated_completions: bool = key(
        False, "Leave responses without an end token out of the loss (DAPO, arXiv 2503.14476, section 3.4).",
        _LITERATURE,
    )  # fmt: skip
    soft_punish_cache: int = key(
        0,
        "Last tokens before `max_completion_length` over which a penalty of length rises to 1 (DAPO, equation 13). "
        "0: none.",
        _LITERATURE, ge=0,
    )  # fmt: skip
    repeat_penalty: float = key(
        0.0,
        "Penalty of each attempt of a response that repeats an earlier one, at most 1 a response "
        "(docs/findings.md, \"The price of a repeated attempt\"). 0: none.",
        ge=0,
    )  # fmt: skip
    max_length: int = key(512, "Tokens of a packed row: at least a prompt with its response.", ge=8)
    micro_batch_size: int = key(32, "Packed rows of one gradient computation.", ge=1, effect="rounding")
    logged_groups: int = key(
        1, "Groups of responses of each step whose texts are written to rollouts.jsonl.", ge=0, effect="none"
    )
    guard: Guard = key(Guard(), "Guard against collapse.")
    eval_steps: int = key(
        10, "Steps between two measurements of the solve rate of the held-out prompts; the last step has one too.", ge=1
    )
    metric_for_best_model: Literal["eval_solve_rate", "eval_solve_rate_greedy"] | None = key(
        None, "Metric of the held-out prompts by which the best checkpoint is kept beside the last ones. Null: none."
    )
    save_steps: int = key(10, "Steps between checkpoints.", ge=1, effect="none")

    @pydantic.field_validator("reward")
    @classmethod
    def _is_entry_point(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(.+\.py|\w+(\.\w+)*):\w+(\.\w+)*", value):
            raise ValueError("name the function as module:function or path/to/file.py:function")
        return value

    @pydantic.model_validator(mode="after")
    def _options_fit_each_other(self) -> Self:
        high = self.epsilon_high
        if self.loss_type == "cispo" and (high is None or high < 1):
            raise ValueError("loss_type=cispo: epsilon_high is the largest weight of a token; set it to 1 or more")
        if self.loss_type == "cispo" and (self.delta or self.importance_sampling_level == "sequence"):
            raise ValueError("loss_type=cispo has no delta and no ratio of sequences; leave both out")
        if self.delta is not None and self.delta <= 1 + (high or self.epsilon):
            raise ValueError(f"delta={self.delta:g} must be above 1 + epsilon_high = {1 + (high or self.epsilon):g}")
        if (bounds := self.geometric_mask_bounds) is not None and not 0 < bounds[0] < 1 < bounds[1]:
            raise ValueError(
                f"geometric_mask_bounds={list(bounds)}: the first must be between 0 and 1 and the second above 1, "
                "as in [0.99, 1.01]"
            )
        if self.clip_cov_ratio and self.kl_cov_ratio:
            raise ValueError("clip_cov_ratio and kl_cov_ratio are two remedies for one cause; set one of them")
        if self.clip_cov_bounds[0] >= self.clip_cov_bounds[1]:
            raise ValueError(f"clip_cov_bounds={list(self.clip_cov_bounds)}: the first must be less than the second")
        if self.kl_cov_ratio and self.steps_per_generation == 1:
            raise ValueError(
                "kl_cov_ratio: the only update of a step has no distance to the policy that sampled; set "
                "steps_per_generation to 2 or more, or take clip_cov_ratio"
            )
        if self.quantized_rollouts and self.importance_sampling_cap is None:
            raise ValueError(
                "quantized_rollouts: rounded weights sample from another policy than the one that is trained; set "
                "importance_sampling_cap, such as 2, which corrects for the gap"
            )
        if self.soft_punish_cache >= self.max_completion_length:
            raise ValueError(
                f"soft_punish_cache={self.soft_punish_cache} must be less than max_completion_length="
                f"{self.max_completion_length}"
            )
        held_out = ("eval_share", self.eval_share > 0)
        measured = {
            "kl": ("beta", self.beta > 0), "gen_batches": ("max_num_gen_batches", self.max_num_gen_batches > 1),
            "eval_solve_rate": held_out, "eval_solve_rate_greedy": held_out, "eval_mean_backtracks": held_out,
        }  # fmt: skip
        for rule in self.guard.rules:
            if rule.metric in measured and not measured[rule.metric][1]:
                raise ValueError(f"guard: {rule.metric} is only measured with {measured[rule.metric][0]}; set it")
            if measured.get(rule.metric) == held_out and 0 < rule.baseline_steps < self.eval_steps:
                raise ValueError(
                    f"guard: {rule.metric} is first measured at step eval_steps={self.eval_steps}; set baseline_steps "
                    "to that or more"
                )
        return self
