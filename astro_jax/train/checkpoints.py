"""The checkpoints of a training stage: saved in the background, kept by policy, passed over when they are damaged.

Orbax writes a checkpoint into a temporary folder and renames it at the end. So a kill leaves no half of a checkpoint
under its final name, only a temporary folder, which the next start removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from astro_jax import config as cfg
from astro_jax import distributed, sessions, storage
from astro_jax.errors import AstroError, TransientError, is_transient, lacks_space
from astro_jax.progress import log
from astro_jax.train.state import TrainState


@dataclasses.dataclass
class _LatestPeriodic(ocp.training.preservation_policies.PreservationPolicy):
    """Preserves the last n checkpoints of multiples of `every` steps. SIGTERM may add checkpoints at any other step."""

    n: int
    every: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Return for each checkpoint whether it must be kept."""
        periodic = [c.step for c in checkpoints if c.step % self.every == 0]
        kept = periodic[max(0, len(periodic) - self.n) :]
        return [c.step in kept for c in checkpoints]


class _WriteErrors(logging.Filter):
    """Hides the errors that Orbax logs, since it raises them too, and ends a process of several whose write has failed.

    That process would raise its error behind a barrier, while the other processes wait for it in another barrier.
    """

    def __init__(self, stage: str):
        super().__init__()
        self._stage = stage

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        if not record.exc_info or "orbax" not in record.pathname:
            return True
        if record.threadName == "async_save" and distributed.process_count() > 1:
            message = _not_written(self._stage, record.exc_info[1])
            with contextlib.suppress(OSError):  # standard error may be a file on the same disk
                log(message)
            distributed.exit_all(2 if lacks_space(message) else 1, message)
        return False


class Checkpoints:
    """The checkpoints of one stage.

    A checkpoint holds the train state and the state of the data iterator, not the iterator: Orbax would write one file
    a process for an iterator, but the batches are equal in all processes.

    Args:
      folder: of the checkpoints.
      stage: label of the messages.
      c: when checkpoints are saved, and which are kept.
      data_iterator: a grain iterator, or None.
      keep_last: keep so many of the last checkpoints of multiples of `save_steps`, whatever else is kept.
    """

    def __init__(
        self, folder: epath.Path, stage: str, c: cfg.Sft | cfg.Grpo, data_iterator: Any = None, keep_last: int = 0
    ):
        policies = ocp.training.preservation_policies
        kept: list[Any] = [policies.LatestN(c.save_total_limit), _LatestPeriodic(keep_last, c.save_steps)]
        kept += [policies.EveryNSteps(c.keep_every_steps)] if c.keep_every_steps else []
        if c.metric_for_best_model:
            kept += [policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False)]
        self._folder, self._stage, self._c, self._data_iterator = folder, stage, c, data_iterator
        self._checkpointer = ocp.training.Checkpointer(
            folder, preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
        )
        self._interval = None if c.save_minutes is None else 60 * c.save_minutes
        self._saving: Any = None
        self._write_errors = _WriteErrors(stage)
        logging.getLogger("absl").addFilter(self._write_errors)
        self._clock = time.monotonic()

    @property
    def steps(self) -> Sequence[int]:
        """The steps of the checkpoints, in order."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint by `metric_for_best_model`. None: no checkpoint has this metric."""
        _, step = max(self._scores(), default=(0.0, None))
        return step

    def new_best(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Return the metric of a step that is as good as the best checkpoint, or better; empty if the step is not."""
        name = self._c.metric_for_best_model
        if name is None or name not in metrics or not math.isfinite(value := float(metrics[name])):
            return {}
        best, _ = max(self._scores(), default=(-math.inf, 0))
        return {name: value} if self._score({name: value}) >= best else {}

    def _scores(self) -> list[tuple[float, int]]:
        """(the score, the step) of each checkpoint that has the metric."""
        return [(self._score(c.metrics), c.step) for c in self._checkpointer.checkpoints if c.metrics]

    def _score(self, metrics: Any) -> float:
        """The metric, so that more is better."""
        value = metrics[self._c.metric_for_best_model]
        return -value if self._c.metric_for_best_model == "eval_loss" else value

    def restore(self, state: TrainState, abstract: TrainState, first: int | None = None) -> tuple[int, TrainState]:
        """Load the last checkpoint that can be read, and set the iterator to its position.

        Args:
          state: the initial state. With a checkpoint it is deleted first: the devices never hold two states.
          abstract: shapes and shardings of the state.
          first: a step that is tried before the last.

        Returns:
          (the step of the checkpoint, its state); (0, `state`) when there is no checkpoint.

        Raises:
          AstroError: when no checkpoint can be read.
        """
        steps = self.steps
        if not steps:
            return 0, state
        jax.tree.map(lambda x: x.delete(), state)
        reason = ""
        for step in sorted(steps, key=lambda step: (step != first, -step)):
            with sessions.restoring():
                state_or_reason = self._load(step, abstract)
            reasons = distributed.all_gather(f"{self._stage}: checkpoint {step}", _reason(state_or_reason))
            if not any(reasons):
                assert isinstance(state_or_reason, TrainState)
                return step, state_or_reason
            reason = next(filter(None, reasons))
            log(f"{self._stage}: the checkpoint of step {step} cannot be read and is passed over ({reason})")
        raise AstroError(
            f"{self._folder}: no checkpoint can be read ({reason}); if they are of another model or optimizer, choose "
            "another folder with out=DIR, else delete this one, and training starts anew"
        )

    def _load(self, step: int, abstract: TrainState) -> TrainState | str:
        """Load a checkpoint. Return the reason where it cannot be read."""
        expected = {"state": abstract} | ({"data": None} if self._data_iterator is not None else {})
        try:
            loaded = self._checkpointer.load_checkpointables(step, expected)
            if self._data_iterator is not None:
                self._data_iterator.set_state(loaded["data"])
        except jax.errors.JaxRuntimeError:  # the devices have no memory left: the checkpoint is not to blame
            raise
        except Exception as e:  # Orbax, tensorstore and json each have exceptions of their own
            if is_transient(e):
                raise
            return " ".join(str(e).split())[:200] or type(e).__name__
        return loaded["state"]

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step, by `save_steps` or `save_minutes`."""
        if step % self._c.save_steps == 0:
            return True
        if self._interval is None:
            return False
        # The clocks of the processes differ: the first one decides.
        seconds = distributed.all_gather("time since the last checkpoint", time.monotonic() - self._clock)[0]
        return seconds >= self._interval

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Copy a state to the host, and write it in the background. The state may be donated afterwards.

        Wait first for the checkpoint before, and raise the error where its write has failed.

        Args:
          metrics: of `new_best`.
        """
        self.wait()
        contents: dict[str, Any] = {"state": state}
        if self._data_iterator is not None:
            contents["data"] = self._data_iterator.get_state()
        # A checkpoint of this step that could not be read is replaced.
        self._saving = self._checkpointer.save_checkpointables_async(
            step, contents, force=True, overwrite=step in self.steps, metrics=dict(metrics) if metrics else None
        )
        self._clock = time.monotonic()
        storage.mark_write()

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        self.wait()
        for later in (s for s in self.steps if s > step):
            self._checkpointer.delete(later)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
          TransientError: when the write has failed, as on a full disk.
        """
        if (saving := self._saving) is not None:
            self._saving = None
            try:
                saving.result()
            except Exception as e:  # Orbax and tensorstore each have exceptions of their own
                raise TransientError(_not_written(self._stage, e)) from e

    def close(self) -> None:
        """Wait until the last checkpoint is written, and end the threads of Orbax.

        Raises:
          TransientError: as `wait`.
        """
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # the error that `wait` has raised
                self._checkpointer.close()
            logging.getLogger("absl").removeFilter(self._write_errors)


def _not_written(stage: str, error: BaseException | None) -> str:
    reason = " ".join(str(error).split())
    return f"{stage}: the last checkpoint was not written ({reason}); the same command goes on from the one before"


def _reason(state_or_reason: TrainState | str) -> str:
    return state_or_reason if isinstance(state_or_reason, str) else ""
