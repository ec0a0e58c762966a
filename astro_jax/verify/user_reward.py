"""A user-written reward: its calls in worker processes, with deadlines, and what is wrong with it as one line.

The function has the signature of TRL's reward functions. It is the user's own code: it runs with all rights of the
user, and without the fence of the other workers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from astro_jax import distributed
from astro_jax.errors import AstroError
from astro_jax.progress import log
from astro_jax.verify.pool import Call, CallStream, Outcome, Timeout, WorkerPool, WorkerStartError
from astro_jax.verify.reward_function import UserError

RETRIES = 2  # how often a call runs again after a missed deadline or a dead worker
Columns = Mapping[str, Sequence[Any]]  # argument: one value for each completion


class UserReward:
    """A reward function that the user wrote.

    Args:
      entry_point: `module:function` or `path/to/file.py:function`, in the working folder or on PYTHONPATH.
      columns: names of the keyword arguments that each call has.
      seconds: the deadline of one call.
      num_workers: the number of worker processes. 0: one for each CPU core.
    """

    def __init__(self, entry_point: str, columns: Sequence[str], seconds: float, num_workers: int = 0):
        self.entry_point, self.columns, self.seconds = entry_point, tuple(columns), seconds
        self._folder = os.getcwd()
        self._check = Call("check reward", (entry_point, self._folder, self.columns))
        self._pool = WorkerPool(
            num_workers or os.cpu_count() or 1, seconds, memory=None, initializer=self._check, retries=RETRIES
        )

    def check(self) -> str:
        """Import the function in a worker, and log that it is code of the user. The function is not called.

        Returns:
          the SHA-256 of the function's file, in hexadecimal digits.

        Raises:
          AstroError: if the import fails, if the function does not take the columns, or if the processes of the run
            have different files.
        """
        (source,) = self._run([self._check])
        distributed.assert_equal_across_processes(f"grpo.reward={self.entry_point}", source.sha256)
        log(
            f"grpo.reward={self.entry_point} runs your own code ({source.path}, sha256 {source.sha256[:8]}) "
            "in worker processes, with all your rights"
        )
        return source.sha256

    def score(self, groups: Sequence[Columns]) -> list[list[float | None]]:
        """Call the function once for each group of completions.

        Process i of n calls the function for the groups i, i + n, i + 2n, ... and all processes gather all rewards.

        Args:
          groups: the keyword arguments for each group.

        Returns:
          The rewards of each group. None: the function gives no reward to this completion.

        Raises:
          AstroError: if the function raises, if it does not return a number or None for each completion, or if it
            does not return in time. All processes raise the same error.
        """
        own = [i for i in range(len(groups)) if distributed.is_own(i)]
        return self._gather(lambda: zip(own, self._run([self.call(groups[i]) for i in own]), strict=True), len(groups))

    @contextlib.contextmanager
    def stream(self) -> Iterator[RewardStream]:
        """Call the function for groups while other groups are still sampled. Inside, nothing else may use it."""
        with self._pool.stream() as calls:
            yield RewardStream(self, calls)

    def call(self, group: Columns) -> Call:
        """Make the call of the function for one group."""
        return Call("reward", (self.entry_point, self._folder, dict(group)))

    def _gather(self, run: Callable[[], Iterable[tuple[int, Any]]], num_groups: int) -> list[list[float | None]]:
        """Gather the rewards of all processes.

        Args:
          run: returns the result of each group of this process, by its number.
        """
        try:
            local: list[Any] | str = [(i, result.values) for i, result in run()]
        except AstroError as e:
            local = str(e)
        scored: list[list[float | None]] = [[]] * num_groups
        for rewards in distributed.all_gather("rewards", local):
            if isinstance(rewards, str):
                raise AstroError(rewards)
            for i, values in rewards:
                scored[i] = values
        return scored

    def close(self) -> None:
        """End the workers. The next call starts new workers."""
        self._pool.close()

    def _run(self, calls: Sequence[Call]) -> list[Any]:
        """Run calls and return their results. The first error ends all calls."""
        return self._results(lambda: self._pool.run(calls, self._raise_error))

    def _results(self, run: Callable[[], list[Outcome]]) -> list[Any]:
        """Return the results of calls, or raise an AstroError for the first that failed."""
        try:
            outcomes = run()
        except WorkerStartError as e:
            raise self._error("a worker did not start: does the import of the module end?") from e
        for i, outcome in enumerate(outcomes):
            self._raise_error(i, outcome)
        return [outcome.result for outcome in outcomes]

    def _raise_error(self, _: int, outcome: Outcome) -> None:
        """Raise an AstroError if a call failed."""
        result, tries = outcome.result, f"in {RETRIES + 1} calls"
        if isinstance(result, UserError):
            raise self._error(result.message)
        if isinstance(result, Timeout):
            raise self._error(f"no result within {self.seconds:g} s {tries}; raise grpo.reward_timeout_seconds")
        if isinstance(result, Exception):
            raise self._error(f"{result} {tries}; does it need too much memory?")

    def _error(self, message: str) -> AstroError:
        return AstroError(f"grpo.reward={self.entry_point}: {message}")


class RewardStream:
    """Calls a reward function for groups while others are still sampled, from `UserReward.stream`.

    The rewards are those of `UserReward.score`, and so are the errors, which `score` raises.
    """

    def __init__(self, user_reward: UserReward, calls: CallStream):
        self._user_reward, self._calls = user_reward, calls
        self._groups: list[int] = []  # of the calls

    def add(self, group: int, columns: Columns) -> None:
        """Call the function for a group of this process.

        Args:
          group: its number. Process i of n adds the groups i, i + n, ...
        """
        self._calls.add(self._user_reward.call(columns))
        self._groups.append(group)

    def score(self, num_groups: int) -> list[list[float | None]]:
        """Wait for the rewards of all groups, in order."""
        results = self._user_reward._results
        return self._user_reward._gather(
            lambda: zip(self._groups, results(self._calls.outcomes), strict=True), num_groups
        )
