"""The loop around a training step: checkpoints, exact resume, metrics and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, host_memory, termination
from astro_jax.progress import ProgressBar, log
from astro_jax.train.checkpoints import Checkpoints
from astro_jax.train.collapse_guard import CollapseGuard
from astro_jax.train.metrics_logger import MetricsLogger
from astro_jax.train.skip_guard import SkipGuard
from astro_jax.train.state import Metrics, TrainState

StepFn = Callable[[TrainState, int], tuple[TrainState, Metrics | dict[str, Any]]]


def run(
    folder: epath.Path,
    stage: str,
    state: TrainState,
    abstract_state: TrainState,
    step_fn: StepFn,
    examples: Callable[[int], Sequence[str]],
    max_steps: int,
    c: cfg.Sft | cfg.Grpo,
    data_iterator: Any = None,
    collapse_guard: CollapseGuard | None = None,
    flush: Callable[[], object] = lambda: None,
) -> tuple[TrainState, int]:
    """Train to step `max_steps`, from the last checkpoint in `folder` if one exists.

    A run that is killed at any moment and started again ends bitwise equal to a run without interruption. A checkpoint
    holds the state and the position in the data; the metrics of later steps are dropped and written again.

    Args:
      folder: of the stage, for checkpoints/, metrics.jsonl, timings.jsonl and tensorboard/.
      stage: label of the progress bar.
      state: the initial state. It is donated. With a checkpoint it is deleted: a resumed run holds one state too.
      abstract_state: shapes and shardings of the state, for the restore.
      step_fn: (state, i) -> (state, metrics), step i from 0.
      examples: the names of the examples of step i, called after the step.
      c: the settings: when checkpoints are saved (the last step is saved too, a skipped step is not), which are kept,
        how many skipped steps in a row stop the run, and whether the best state is returned.
      data_iterator: a grain iterator that `step_fn` draws from. Its position is saved beside the state.
      collapse_guard: looks at the metrics of each step. It may stop the run, or let it go back to a checkpoint.
      flush: called before a checkpoint is saved, to write what the steps have logged.

    Returns:
      (a state, its step). With `load_best_model_at_end` the best state by `metric_for_best_model`, else the last one.

    Raises:
      AstroError: when `max_skipped_steps` steps in a row have no finite loss and gradient; when the guard stops; when
        no checkpoint can be read.
      Terminated: after SIGTERM, with a checkpoint of the last step that has ended.
    """
    keep_last = collapse_guard.num_checkpoints(c.save_steps, c.eval_steps) if collapse_guard is not None else 0
    with (
        contextlib.closing(Checkpoints(folder / "checkpoints", stage, c, data_iterator, keep_last)) as checkpoints,
        contextlib.closing(MetricsLogger(folder)) as logger,
    ):
        training = _Training(stage, state, abstract_state, max_steps, c, checkpoints, logger, collapse_guard, flush)
        del state  # donated by the first step
        with ProgressBar(stage, max_steps, "steps", done=training.i) as bar:
            while training.i < max_steps:
                training.step(step_fn, examples, bar)
        checkpoints.wait()
        training.take_best()
    host_memory.give_back()
    return training.state, training.i


class _Training:
    """The state of a training with its checkpoints, its metrics and its guards. Arguments as of `run`.

    Attributes:
      i: the step of the state.
      saved: the step of the last checkpoint.
    """

    def __init__(
        self, stage: str, state: TrainState, abstract_state: TrainState, max_steps: int, c: cfg.Sft | cfg.Grpo,
        checkpoints: Checkpoints, logger: MetricsLogger, collapse_guard: CollapseGuard | None,
        flush: Callable[[], object],
    ):  # fmt: skip
        self.stage, self.abstract_state, self.max_steps, self.c = stage, abstract_state, max_steps, c
        self.checkpoints, self.logger, self.collapse_guard, self.flush = checkpoints, logger, collapse_guard, flush
        self.i, self.state = checkpoints.restore(state, abstract_state)
        self.saved = self.i
        if collapse_guard is not None and collapse_guard.can_roll_back and not checkpoints.steps:
            checkpoints.save(0, self.state)  # to go back to the start, if need be
        self._start_guards()

    def _start_guards(self) -> None:
        """Drop the metrics of later steps, and let the guards begin with those of the others."""
        records = self.logger.start(self.i)
        if self.collapse_guard is not None:
            self.collapse_guard.start(records)
        updates = self.c.steps_per_generation if isinstance(self.c, cfg.Grpo) else 1
        self.skip_guard = SkipGuard(self.stage, self.c.max_skipped_steps, updates)

    def step(self, step_fn: StepFn, examples: Callable[[int], Sequence[str]], bar: ProgressBar) -> None:
        """Train one step. Then save, go back, or stop where it is due."""
        host_memory.give_back()  # what the last step has freed by now
        try:
            self.state, metrics = step_fn(self.state, self.i)
        except termination.Terminated:
            self._save_before_the_end()
            termination.end(f"{self.stage}, in step {self.i + 1}")
        if jax.default_backend() == "cpu":  # there each step that is dispatched ahead has temporary arrays of its own
            jax.block_until_ready(metrics)
        self.skip_guard.add(self.i + 1, examples(self.i))
        self.i += 1
        records = self.logger.add(self.i, metrics)
        bar.advance(1, **self.logger.latest)
        is_stopped = termination.is_due()
        best = self.checkpoints.new_best(metrics)
        is_saved = self.checkpoints.is_due(self.i) or self.i == self.max_steps or is_stopped or bool(best)
        if is_saved:
            records += self.logger.flush()
        self.skip_guard.check(records, self.checkpoints.steps)
        if not self._roll_back(records, bar) and is_saved and not self.skip_guard.in_a_row:
            self._save(best)
        if is_stopped:
            self.checkpoints.wait()
            termination.end(f"{self.stage}, after step {self.i}")

    def _save(self, best: Mapping[str, float] | None = None) -> None:
        distributed.assert_equal_across_processes(f"{self.stage}, step {self.i}", self.logger.latest)
        self.flush()
        self.checkpoints.save(self.i, self.state, best)
        self.saved = self.i

    def _save_before_the_end(self) -> None:
        """Save after SIGTERM in a step that sampled, unless an update has taken the state before the step."""
        is_taken = any(x.is_deleted() for x in jax.tree.leaves(self.state))
        if self.i != self.saved and not self.skip_guard.in_a_row and not is_taken:
            self.logger.flush()
            self._save()
        self.checkpoints.wait()

    def _roll_back(self, records: Sequence[dict[str, Any]], bar: ProgressBar) -> bool:
        """Go back to a checkpoint where the collapse guard says so. Return whether it does.

        A kill before the guard's record repeats the steps and comes here again. A kill after it goes on from the step
        `to`, whose checkpoint is the last one now.
        """
        if self.collapse_guard is None:
            return False
        # A checkpoint of SIGTERM or of the clock is no target: other runs of this config do not have it.
        steps = [step for step in self.checkpoints.steps if step % self.c.save_steps == 0]
        if (rollback := self.collapse_guard.check(records, steps)) is None:
            return False
        self.checkpoints.delete_after(rollback["to"])
        self.collapse_guard.roll_back(rollback)
        distributed.assert_equal_across_processes(f"{self.stage}: back to step {rollback['to']}")
        self.i, self.state = self.checkpoints.restore(self.state, self.abstract_state)
        self.saved = self.i
        self._start_guards()
        bar.advance(self.i - rollback["step"])
        return True

    def take_best(self) -> None:
        """With `load_best_model_at_end` go to the best checkpoint."""
        if self.c.load_best_model_at_end and (step := self.checkpoints.best) not in (None, self.i):
            self.i, self.state = self.checkpoints.restore(self.state, self.abstract_state, first=step)
            if self.i == step:
                log(f"{self.stage}: the model is that of step {step}, the best by {self.c.metric_for_best_model}")


def model_step(c: cfg.Sft | cfg.Grpo, step: int) -> dict[str, int]:
    """The step of a stage's model for the stage's manifest, where it may differ from the last step."""
    return {"model_step": step} if c.load_best_model_at_end else {}
