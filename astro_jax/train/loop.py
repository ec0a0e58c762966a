"""The loop around a training step: checkpoints, exact resume, metrics and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from astro_jax import distributed, storage
from astro_jax.progress import ProgressBar
from astro_jax.train.metrics_logger import MetricsLogger
from astro_jax.train.skip_guard import SkipGuard
from astro_jax.train.state import Metrics, TrainState

StepFn = Callable[[TrainState, int], tuple[TrainState, Metrics | dict[str, Any]]]

# A checkpoint is proven good by the step after it, so the one before is kept too.
CHECKPOINTS = 2


def run(
    folder: epath.Path,
    stage: str,
    state: TrainState,
    abstract_state: TrainState,
    step_fn: StepFn,
    examples: Callable[[int], Sequence[str]],
    max_steps: int,
    save_steps: int,
    max_skipped_steps: int,
    data_iterator: Any = None,
) -> TrainState:
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
      save_steps: steps between two checkpoints. The last step is saved too. A skipped step is not saved.
      max_skipped_steps: skipped steps in a row that stop the run.
      data_iterator: a grain iterator that `step_fn` draws from. Its position is saved beside the state.

    Returns:
      the state at step `max_steps`.

    Raises:
      AstroError: when `max_skipped_steps` steps in a row have no finite loss and gradient.
    """
    latest = ocp.training.preservation_policies.LatestN(CHECKPOINTS)
    with (
        ocp.training.Checkpointer(folder / "checkpoints", preservation_policy=latest) as checkpointer,
        contextlib.closing(MetricsLogger(folder)) as logger,
    ):
        first = 0
        if checkpointer.latest is not None:
            first = checkpointer.latest.step
            jax.tree.map(lambda x: x.delete(), state)  # the restored state takes its place on the devices
            state = _restore(checkpointer, first, abstract_state, data_iterator)
        logger.start(first)
        guard = SkipGuard(stage, max_skipped_steps)
        with ProgressBar(stage, max_steps, "steps", done=first) as bar:
            for i in range(first, max_steps):
                state, metrics = step_fn(state, i)
                guard.add(i + 1, examples(i))
                records = logger.add(i + 1, metrics)
                bar.advance(1, **logger.latest)
                is_saved = (i + 1) % save_steps == 0 or i + 1 == max_steps
                if is_saved:
                    records += logger.flush()
                guard.check(records, [checkpoint.step for checkpoint in checkpointer.checkpoints])
                if is_saved and not guard.in_a_row:
                    distributed.assert_equal_across_processes(f"{stage}, step {i + 1}", logger.latest)
                    checkpointer.save_checkpointables(i + 1, _checkpointables(state, data_iterator))
                    storage.mark_write()
    return state


def _checkpointables(state: TrainState, data_iterator: Any) -> dict[str, Any]:
    """The contents of a checkpoint.

    It holds the state of the iterator, not the iterator: Orbax would write one file a process for an iterator, but the
    batches are equal in all processes.
    """
    return {"state": state} | ({"data": data_iterator.get_state()} if data_iterator is not None else {})


def _restore(checkpointer: Any, step: int, abstract_state: TrainState, data_iterator: Any) -> TrainState:
    """Load the state of a checkpoint, and set the iterator to its position."""
    abstract = {"state": abstract_state} | ({"data": None} if data_iterator is not None else {})
    loaded = checkpointer.load_checkpointables(step, abstract)
    if data_iterator is not None:
        data_iterator.set_state(loaded["data"])
    return loaded["state"]
