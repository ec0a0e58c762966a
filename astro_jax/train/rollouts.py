"""The rollouts of a step of GRPO: their metrics, and the file with their texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.storage import Json
from astro_jax.train.advantages import has_variance
from astro_jax.train.metrics_logger import StepFile
from astro_jax.types import Problem, Verdict

NGRAM = 4  # tokens of the sequences whose repetition is counted


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One sampled completion, its verdict and its reward.

    Attributes:
      prompt_ids: the tokens of the prompt, and of the beginning of the response where it is given (`restarts`).
      completion_ids: int32 [T].
      logprobs: float32 [T], of the completion's tokens under the distribution that they were sampled from.
      verdict: the verifier's judgement.
      stopped: whether an end token ended the completion. False: it was truncated.
      reward: +1 or -1 by the verdict, or of `grpo.reward`. None: no reward.
      beginning: the text of the beginning of the response, where it is given.
      repeats: attempts that repeat an earlier one, in the beginning too (attempts.count_repeats).
    """

    prompt_ids: tuple[int, ...]
    completion_ids: np.ndarray
    logprobs: np.ndarray
    verdict: Verdict
    stopped: bool
    reward: float | None
    beginning: str = ""
    repeats: int = 0


def reward_array(groups: Sequence[Sequence[Rollout]]) -> np.ndarray:
    """Return the rewards of groups, float64 [G, M]. NaN: no reward."""
    return np.asarray([[r.reward for r in group] for group in groups], np.float64)  # None becomes NaN


def group_metrics(rewards: np.ndarray) -> dict[str, float]:
    """The spread of the rewards of a step, and the share of groups from which nothing can be learned.

    Args:
      rewards: float64 [G, M]. NaN: no reward.

    Returns:
      `reward_std` over all rewards, and missing if there are none; `zero_std_rate`.
    """
    rewarded = rewards[~np.isnan(rewards)]
    spread = {"reward_std": float(rewarded.std())} if len(rewarded) else {}
    return spread | {"zero_std_rate": 1 - float(has_variance(rewards).mean())}


def sampling_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What the sampler knows of all completions of a step, also of those without an advantage.

    `sampled_entropy` is minus the mean log-probability of the sampled tokens: an estimate without bias of the entropy
    of the policy at the tokens of its own completions, with no forward pass. `correct_logprob` is the mean
    log-probability of the tokens of correct completions, and missing if there are none.
    """
    logprobs = np.concatenate([r.logprobs for r in rollouts])
    correct = [r.logprobs for r in rollouts if r.verdict.correct]
    optional = {"correct_logprob": float(np.concatenate(correct).mean(dtype=np.float64))} if correct else {}
    return optional | {"tokens": float(len(logprobs)), "sampled_entropy": -float(logprobs.mean(dtype=np.float64))}


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over all rollouts of a step, truncated rollouts included (see docs/metrics.md).

    The mean reward is over the rollouts with a reward, and missing if there are none; so is the mean length of the
    rollouts that an end token has ended.
    """
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    rewards = [r.reward for r in rollouts if r.reward is not None]
    lengths = np.asarray([len(r.completion_ids) for r in rollouts])
    stopped = np.asarray([r.stopped for r in rollouts])
    optional = {"reward_mean": mean(rewards)} if rewards else {}
    optional |= {"mean_tokens_stopped": float(lengths[stopped].mean())} if stopped.any() else {}
    return optional | {
        "unjudged_rate": mean(r.reward is None for r in rollouts),
        "solve_rate": mean(r.verdict.correct for r in rollouts),
        "mean_tokens": float(lengths.mean()),
        "p95_tokens": float(np.quantile(lengths, 0.95)),
        "max_tokens": float(lengths.max()),
        "mean_backtracks": mean(r.verdict.backtracks for r in rollouts),
        "repeat_rate": mean(r.repeats > 0 for r in rollouts),
        "valid_rate": mean(r.verdict.valid for r in rollouts),
        "truncated_rate": mean(~stopped),
        "repetition": mean(repetition(r.completion_ids) for r in rollouts),
    }


def repetition(ids: np.ndarray) -> float:
    """Return the share of the sequences of four tokens in a completion that came before in it.

    Example: `a b c d a b c d` has five such sequences, and the last one is the first again: 0.2.

    Args:
      ids: int32 [T].
    """
    if len(ids) < NGRAM:
        return 0.0
    ngrams = np.lib.stride_tricks.sliding_window_view(np.ascontiguousarray(ids, np.int32), NGRAM)
    keys = np.ascontiguousarray(ngrams).view(np.dtype((np.void, 4 * NGRAM)))
    return 1 - len(np.unique(keys)) / len(ngrams)


class RolloutLog:
    """Writes rollouts.jsonl: the texts of some rollouts of each step, with verdicts and rewards.

    A step that runs again, after a kill or a rollback, replaces what it and later steps have written.
    """

    def __init__(self, folder: epath.Path):
        self._file, self._next = StepFile(folder / "rollouts.jsonl"), 0

    def write(self, step: int, records: Sequence[Json]) -> None:
        """Write the records of a step, from 1. A bucket has them after `flush`."""
        if step != self._next:
            self._file.start(step - 1)
        self._file.append([{"step": step} | record for record in records])
        self._next = step + 1

    def flush(self) -> None:
        """Write the file of a bucket."""
        if self._next:
            self._file.flush()


def record(problem: Problem, group: Sequence[Rollout], advantages: np.ndarray, tokenizer: Tokenizer) -> Json:
    """Describe a group for rollouts.jsonl.

    Args:
      advantages: float [M].
    """
    return {
        "problem": problem.id,
        "prompt": problem.prompt,
        "beginning": group[0].beginning,
        "completions": [
            {
                "text": tokenizer.decode(r.completion_ids.tolist()), "status": r.verdict.status, "reward": r.reward,
                "advantage": round(float(a), 4), "tokens": len(r.completion_ids), "stopped": r.stopped,
                "backtracks": r.verdict.backtracks,
            }
            for r, a in zip(group, advantages, strict=True)
        ],
    }  # fmt: skip
