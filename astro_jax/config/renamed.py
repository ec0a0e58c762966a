"""Keys of older versions, and the keys to write today."""

from __future__ import annotations

from typing import Any

_TRAINING = {
    "warmup": "warmup_ratio",
    "final_lr": "min_lr_rate",
    "clip_norm": "max_grad_norm",
    "length": "max_length",
    "remat": "remat_policy",
    "save_every": "save_steps",
}
_SFT = _TRAINING | {"epochs": "num_train_epochs", "batch": "batch_size", "attend_across": "packing_strategy"}

# By section: the old name, and the new name or names.
RENAMED: dict[str, dict[str, str]] = {
    "": {"warm_up": "base_sft"},
    "problems": {"where": "filters", "near": "overlap_threshold", "rl_samples": "difficulty_samples"},
    "verify": {
        "seconds": "timeout_seconds",
        "memory": "memory_gib",
        "workers": "num_workers",
        "max_failed": "max_failed_share",
        "reward": "reward_rule",
        "report": "report_rule",
    },
    "sampler": {
        "slots": "max_num_seqs",
        "memory": "kv_cache_gib",
        "chunk": "num_scheduler_steps",
        "block": "block_size",
        "reuse": "prefix_cache_gib",
    },
    "search": {
        "proposals": "num_proposals",
        "rollouts": "num_rollouts",
        "iterations": "num_simulations",
        "depth": "max_depth",
        "leaves": "num_parallel_leaves",
        "wave": "max_concurrent_trees and shard_size",
        "max_tokens": "max_rollout_tokens",
        "enough": "early_stop",
        "samples": "num_samples",
    },
    "traces": {"wave": "shard_size", "backtracks": "backtrack_weights", "leave": "leave_at", "merge": "merge_at"},
    "pretrain": _SFT,
    "base_sft": _SFT,
    "sft": _SFT,
    "grpo": _TRAINING
    | {
        "steps": "max_steps",
        "prompts": "prompts_per_step",
        "group": "num_generations",
        "max_tokens": "max_completion_length",
        "clip": "epsilon",
        "updates": "steps_per_generation",
        "normalize_std": "scale_rewards",
        "micro_batch": "micro_batch_size",
    },
    "eval": {"wave": "shard_size"},
}
# Old keys whose values have other names too.
VALUES = {"remat": {True: "full", False: "none"}, "attend_across": {True: "wrapped", False: "first-fit"}}


def new_key(section: str, name: str, value: Any) -> str | None:
    """Return what to write for an old key, for example `sft.remat_policy=full` for `sft.remat: true`.

    Returns:
      None when no version had the key.
    """
    names = RENAMED.get(section, {}).get(name)
    if names is None:
        return None
    prefix = f"{section}." if section else ""
    text = " and ".join(prefix + new for new in names.split(" and "))
    new_value = VALUES.get(name, {}).get(value) if isinstance(value, bool) else None
    return text if new_value is None else f"{text}={new_value}"
