"""The keys that SFT and RL have in common."""

from __future__ import annotations

from typing import Literal

from astro_jax.config.keys import Section, key


class Training(Section):
    """The keys that SFT and RL have in common."""

    warmup_ratio: float = key(0.05, "Share of the steps with a rising learning rate.", ge=0, lt=1)
    betas: tuple[float, float] = key((0.9, 0.95), "Moment decay rates of AdamW.")
    max_grad_norm: float = key(1.0, "Largest global gradient norm; a larger one is scaled down.", gt=0)
    remat_policy: Literal["none", "full"] = key(
        "none",
        "Rematerialization: keep all activations, or recompute each layer in the backward pass.",
        effect="rounding",
    )
    dtype: Literal["float32", "bfloat16"] = key("float32", "Data type of the computation. Parameters stay float32.")
    max_skipped_steps: int = key(
        3,
        "Steps in a row without a finite loss and gradient after which a run stops. Each of them is skipped.",
        effect="none",
        ge=1,
    )
