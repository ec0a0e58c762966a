"""Prompts that are too long for RL or for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.progress import log
from astro_jax.types import Problem


def max_prompt_tokens(c: cfg.Config, model: LlamaConfig, stage: Literal["grpo", "eval"] = "grpo") -> int:
    """Return the length of the longest prompt that RL or the evaluation can take.

    A prompt and a completion of RL must fit a row (grpo.max_length) and the model's context. In the evaluation, and
    where difficulty is measured, an answer of `eval.max_tokens` must fit the model's context too.
    """
    if stage == "eval":
        return model.max_positions - c.eval.max_tokens
    limit = min(c.grpo.max_length, model.max_positions) - c.grpo.max_completion_length
    return min(limit, max_prompt_tokens(c, model, "eval")) if c.problems.difficulty_samples else limit


_ADVICE = {
    "grpo": "raise grpo.max_length or lower grpo.max_completion_length",
    "eval": "lower eval.max_tokens",
}


def drop_too_long(
    problems: Sequence[Problem], tokenizer: Tokenizer, limit: int, stage: Literal["grpo", "eval"] = "grpo"
) -> tuple[list[Problem], dict[str, int]]:
    """Drop the prompts of more than `limit` tokens.

    Returns:
      (the prompts that stay, their number and the number of those that are too long).

    Raises:
      AstroError: when no prompt stays.
    """
    lengths = [len(tokenizer.prompt(p.prompt)) for p in problems]
    kept = [p for p, length in zip(problems, lengths, strict=True) if length <= limit]
    if not kept:
        raise AstroError(
            f"{stage}: none of {len(problems)} prompts fits: the shortest has {min(lengths)} tokens, and the limits "
            f"leave {limit} beside an answer; {_ADVICE[stage]}"
        )
    if too_long := len(problems) - len(kept):
        log(f"{stage}: {too_long} of {len(problems)} prompts have more than {limit} tokens and are left out")
    return kept, {"prompts": len(kept), "too long": too_long}
