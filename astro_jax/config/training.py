"""The keys that SFT and RL have in common."""

from __future__ import annotations

from typing import Literal, Self

import pydantic

from astro_jax.config.keys import Section, key


class Training(Section):
    """The keys that SFT and RL have in common."""

    warmup_ratio: float = key(0.05, "Share of the steps with a rising learning rate.", ge=0, lt=1)
    betas: tuple[float, float] = key((0.9, 0.95), "Moment decay rates of AdamW.")
    mu_dtype: Literal["float32", "bfloat16"] = key(
        "float32",
        "Data type of AdamW's first moment. bfloat16 saves 2 bytes a parameter. The second moment stays float32.",
    )
    max_grad_norm: float = key(1.0, "Largest global gradient norm; a larger one is scaled down.", gt=0)
    remat_policy: Literal["none", "minimal_with_context", "save_dot_except_mlp", "save_out_proj", "full"] = key(
        "none",
        "Rematerialization, from most to least memory: keep all activations; the results of matmuls and attention; "
        "these without the MLP; the output of attention alone; or none, so that the backward pass computes all again.",
        effect="rounding",
    )
    dtype: Literal["float32", "bfloat16"] = key("float32", "Data type of the computation. Parameters stay float32.")
    eval_share: float = key(
        0.0, "Share of the prompts that are held out, to measure the model on them. 0: none.", ge=0, lt=1
    )
    eval_steps: int = key(
        50, "Steps between two measurements on the held-out prompts; the last step has one too.", ge=1
    )
    metric_for_best_model: str | None = key(None, "Metric of the held-out prompts that names the best step.")
    load_best_model_at_end: bool = key(
        False, "Make the best step by `metric_for_best_model` the model of the stage, and not the last step."
    )
    save_minutes: float | None = key(
        None, "Minutes after which a checkpoint is saved, also between `save_steps`. Null: by steps alone.",
        effect="none", gt=0,
    )  # fmt: skip
    save_total_limit: int = key(
        2, "Last checkpoints that are kept. The step after a checkpoint proves it, so the one before is needed.",
        effect="none", ge=2,
    )  # fmt: skip
    keep_every_steps: int | None = key(
        None,
        "Of the saved checkpoints, those of each multiple of so many steps are kept too. Null: none.",
        effect="none",
        ge=1,
    )
    max_skipped_steps: int = key(
        3,
        "Steps in a row without a finite loss and gradient after which a run stops. Each of them is skipped.",
        effect="none",
        ge=1,
    )

    @pydantic.model_validator(mode="after")
    def _best_model_is_measured(self) -> Self:
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            raise ValueError("load_best_model_at_end: name the metric with metric_for_best_model")
        if self.metric_for_best_model is not None and not self.eval_share:
            raise ValueError("metric_for_best_model: no prompts are held out to measure it; set eval_share")
        return self
