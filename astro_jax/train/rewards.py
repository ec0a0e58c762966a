"""Rewards of GRPO: judge and reward the completions of a step, and record both for a replay after a kill.

A deadline decides by the clock whether a completion gets a verdict. A step that runs again after a kill must not judge
again: the step uses its record, and so ends bitwise equal.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, storage
from astro_jax.sampler import Completion
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier
from astro_jax.verify.user_reward import RewardStream, UserReward
from astro_jax.verify.verifier import VerdictStream

# The keyword arguments of a user-written reward, before those that the problems' `meta` has.
COLUMNS = ("prompts", "completions", "completion_ids", "answer", "problem_id", "stopped", "correct")

Group = Sequence[tuple[Response, Completion]]  # the completions of one prompt


class Judgement(NamedTuple):
    """The verdict on a completion, and its reward.

    Attributes:
      verdict: of the verifier.
      reward: any number. None: no reward; the completion is left out of its group.
    """

    verdict: Verdict
    reward: float | None


class Rewarder:
    """Judges and rewards the completions of a step.

    Args:
      verifier: judges the responses.
      user_reward: rewards the responses. None: the verdict gives the reward.
      folder: of the stage, for the records of its steps. None: nothing is recorded.
      keep_steps: number of steps whose records are kept: more than those since the last checkpoint.
      max_batches: batches of prompts that a step may have. Each batch has a record of its own.
    """

    def __init__(
        self,
        verifier: Verifier,
        user_reward: UserReward | None = None,
        folder: epath.Path | None = None,
        keep_steps: int = 1,
        max_batches: int = 1,
    ):
        self.verifier, self.user_reward, self.keep_steps = verifier, user_reward, keep_steps
        self.max_batches = max_batches
        self.records = storage.Shards(folder / "rewards", "step") if folder is not None else None

    @contextlib.contextmanager
    def stream(
        self, step: int, problems: Sequence[Problem], num_generations: int, batch: int = 0
    ) -> Iterator[JudgementStream | None]:
        """Judge and reward the completions of a batch of a step while others are still sampled, for `judge`.

        Args:
          problems: of the groups.
          num_generations: completions of each group.

        Yields:
          The stream to add completions to. None where the step has a record, whose judgements count, and where a reward
          of the user must wait for the judge.
        """
        is_recorded = self.records is not None and self.records.has(step * self.max_batches + batch)
        if is_recorded or (self.user_reward is not None and self.verifier.has_judge):
            yield None
            return
        with contextlib.ExitStack() as stack:
            verdicts = stack.enter_context(self.verifier.stream(problems))
            rewards = stack.enter_context(self.user_reward.stream()) if self.user_reward is not None else None
            columns = self.user_reward.columns if self.user_reward is not None else ()
            yield JudgementStream(verdicts, rewards, columns, num_generations)

    def judge(
        self, step: int, groups: Sequence[Group], batch: int = 0, stream: JudgementStream | None = None
    ) -> list[list[Judgement]]:
        """Judge and reward the completions of a batch of a step, or read what was recorded before a kill.

        Args:
          stream: has all completions already. None: all are judged now.
        """
        if self.records is None:
            return self._judge(groups, stream)
        digest, index = _digest(groups), step * self.max_batches + batch
        if (judgements := self._read(index, digest)) is None:
            judgements = self._judge(groups, stream)
            self.verifier.counts.save()
            self._write(index, digest, judgements)
        if distributed.is_main_process() and step >= self.keep_steps and batch == 0:
            first = (step - self.keep_steps) * self.max_batches
            for old in range(first, first + self.max_batches):
                self.records.path(old).unlink(missing_ok=True)
        return judgements

    def _judge(self, groups: Sequence[Group], stream: JudgementStream | None) -> list[list[Judgement]]:
        judge = self.verifier.judge if stream is None else stream.judge
        remaining = iter(judge([response for group in groups for response, _ in group]))
        verdicts = [[next(remaining) for _ in group] for group in groups]
        if self.user_reward is None:
            return [[Judgement(v, verifier_reward(v)) for v in group] for group in verdicts]
        if stream is None:
            names = self.user_reward.columns
            rewards = self.user_reward.score([_columns(names, *pair) for pair in zip(groups, verdicts, strict=True)])
        else:
            rewards = stream.score(len(groups))
        return [list(map(Judgement, *pair)) for pair in zip(verdicts, rewards, strict=True)]

    def _read(self, index: int, digest: str) -> list[list[Judgement]] | None:
        """Read a record. None if there is none, or one of other completions."""
        assert self.records is not None
        if not self.records.has(index):
            return None
        recorded, *groups = storage.read_jsonl(self.records.path(index))
        if recorded["completions"] != digest:
            return None
        return [[Judgement(Verdict(**verdict), reward) for verdict, reward in group["judgements"]] for group in groups]

    def _write(self, index: int, digest: str, judgements: Sequence[Sequence[Judgement]]) -> None:
        """Write a record: the digest of its completions, then one line a group."""
        assert self.records is not None
        lines = [{"judgements": [(vars(j.verdict), j.reward) for j in group]} for group in judgements]
        self.records.write(index, [{"completions": digest}, *lines])


class JudgementStream:
    """Judges completions while others are still sampled, and rewards each group whose completions are all judged.

    Verdicts and rewards are those without a stream: a reward follows from the group alone.

    Args:
      verdicts: judges the responses.
      rewards: calls the user-written reward. None: the verdict gives the reward.
      columns: names of the keyword arguments of the user-written reward.
      num_generations: completions of each group.
    """

    def __init__(
        self, verdicts: VerdictStream, rewards: RewardStream | None, columns: Sequence[str], num_generations: int
    ):
        self._verdicts, self._rewards, self._columns = verdicts, rewards, columns
        self._num_generations = num_generations
        # Of this process and without a reward: by group and place in it.
        self._waiting: dict[int, dict[int, tuple[Response, Completion]]] = {}

    def add(self, group: int, place: int, response: Response, completion: Completion) -> None:
        """Begin to judge a completion.

        Args:
          group: the number of its group.
          place: of the completion in its group.
        """
        index = group * self._num_generations + place
        if self._rewards is None:
            self._verdicts.add(index, response)
            return
        self._verdicts.add(index, response, part=group)  # the process that rewards a group has its verdicts
        if distributed.is_own(group):
            self._waiting.setdefault(group, {})[place] = response, completion
        self._reward(self._rewards)

    def judge(self, responses: Sequence[Response]) -> list[Verdict]:
        """Wait for the verdicts on all completions, and count them."""
        return self._verdicts.judge(responses)

    def score(self, num_groups: int) -> list[list[float | None]]:
        """Wait for the rewards of all groups, in order. Call `judge` before."""
        assert self._rewards is not None
        self._reward(self._rewards)
        assert not self._waiting
        return self._rewards.score(num_groups)

    def _reward(self, rewards: RewardStream) -> None:
        """Call the function for the groups whose completions are all judged."""
        for group, members in list(self._waiting.items()):
            if len(members) < self._num_generations:
                continue
            pairs = [members[place] for place in range(self._num_generations)]
            first = group * self._num_generations
            verdicts = [self._verdicts.peek(first + place, response) for place, (response, _) in enumerate(pairs)]
            judged = [verdict for verdict in verdicts if verdict is not None]
            if len(judged) == len(pairs):
                rewards.add(group, _columns(self._columns, pairs, judged))
                del self._waiting[group]


def verifier_reward(verdict: Verdict) -> float | None:
    """+1 for a correct response, -1 for any other (paper, section 3.2); None where the verifier has failed."""
    return None if verdict.failure else 1.0 if verdict.correct else -1.0


def column_names(problems: Sequence[Problem]) -> tuple[str, ...]:
    """Return the keyword arguments of a user-written reward for these problems."""
    return (*COLUMNS, *sorted({name for p in problems for name in p.meta} - set(COLUMNS)))


def user_reward(c: cfg.Config, entry_point: str, problems: Sequence[Problem]) -> UserReward:
    """Make the reward function that `grpo.reward` names. The caller closes it."""
    return UserReward(entry_point, column_names(problems), c.grpo.reward_timeout_seconds, c.verify.num_workers)


def _columns(names: Sequence[str], group: Group, verdicts: Sequence[Verdict]) -> dict[str, list[Any]]:
    """Return the keyword arguments of a user-written reward for one group."""
    problems = [response.problem for response, _ in group]
    columns: dict[str, list[Any]] = {name: [p.meta.get(name) for p in problems] for name in names}
    return columns | {
        "prompts": [p.prompt for p in problems],
        "completions": [response.text for response, _ in group],
        "completion_ids": [completion.token_ids.tolist() for _, completion in group],
        "answer": [p.answer for p in problems],
        "problem_id": [p.id for p in problems],
        "stopped": [response.stopped for response, _ in group],
        "correct": [None if v.failure else v.correct for v in verdicts],
    }


def _digest(groups: Sequence[Group]) -> str:
    """Hash the problems and the tokens of all completions."""
    digest = hashlib.sha256()
    for response, completion in (pair for group in groups for pair in group):
        digest.update(f"{response.problem.id!r} {len(completion.token_ids)}\n".encode())
        digest.update(completion.token_ids.tobytes())
    return digest.hexdigest()
