"""The loop around a training step: checkpoints, exact resume, metrics and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, termination
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
        i, state = checkpoints.restore(state, abstract_state)
        saved = i  # the step of the last checkpoint
        if collapse_guard is not None and collapse_guard.can_roll_back and not checkpoints.steps:
            checkpoints.save(0, state)  # to go back to the start, if need be
        records = logger.start(i)
        if collapse_guard is not None:
            collapse_guard.start(records)
        guard = SkipGuard(stage, c.max_skipped_steps)

        def save(best: Mapping[str, float] | None = None) -> None:
            nonlocal saved
            distributed.assert_equal_across_processes(f"{stage}, step {i}", logger.latest)
            flush()
            checkpoints.save(i, state, best)
            saved = i

        with ProgressBar(stage, max_steps, "steps", done=i) as bar:
            while i < max_steps:
                try:
                    state, metrics = step_fn(state, i)
                except termination.Terminated:
                    # The step sampled: the state is that before the step, unless an update has taken it.
                    is_taken = any(x.is_deleted() for x in jax.tree.leaves(state))
                    if i != saved and not guard.in_a_row and not is_taken:
                        logger.flush()
                        save()
                    checkpoints.wait()
                    termination.end(f"{stage}, in step {i + 1}")
                guard.add(i + 1, examples(i))
                i += 1
                records = logger.add(i, metrics)
                bar.advance(1, **logger.latest)
                is_stopped = termination.is_due()
                best = checkpoints.new_best(metrics)
                is_saved = checkpoints.is_due(i) or i == max_steps or is_stopped or bool(best)
                if is_saved:
                    records += logger.flush()
                guard.check(records, checkpoints.steps)
                # A checkpoint of SIGTERM or of the clock is no target: other runs of this config do not have it.
                steps = [step for step in checkpoints.steps if step % c.save_steps == 0]
                if collapse_guard is not None and (rollback := collapse_guard.check(records, steps)) is not None:
                    # A kill before the record repeats these steps and comes here again. A kill after the record goes
                    # on from the step `to`, whose checkpoint is the last one now.
                    checkpoints.delete_after(rollback["to"])
                    collapse_guard.roll_back(rollback)
                    distributed.assert_equal_across_processes(f"{stage}: back to step {rollback['to']}")
                    i, state = checkpoints.restore(state, abstract_state)
                    saved = i
                    collapse_guard.start(logger.start(i))
                    guard = SkipGuard(stage, c.max_skipped_steps)
                    bar.advance(i - rollback["step"])
                elif is_saved and not guard.in_a_row:
                    save(best)
                if is_stopped:
                    checkpoints.wait()
                    termination.end(f"{stage}, after step {i}")
        checkpoints.wait()
        if c.load_best_model_at_end and (step := checkpoints.best) not in (None, i):
            i, state = checkpoints.restore(state, abstract_state, first=step)
            if i == step:
                log(f"{stage}: the model is that of step {i}, the best by {c.metric_for_best_model}")
    return state, i


def model_step(c: cfg.Sft | cfg.Grpo, step: int) -> dict[str, int]:
    """The step of a stage's model for the stage's manifest, where it may differ from the last step."""
    return {"model_step": step} if c.load_best_model_at_end else {}
