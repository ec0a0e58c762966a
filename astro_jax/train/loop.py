"""The loop around a training step: checkpoints, exact resume, a log of metrics, a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from astro_jax import distributed, storage
from astro_jax.progress import ProgressBar
from astro_jax.train.state import Metrics, TrainState

# Metrics are fetched this many steps at a time, so that the host does not wait for each step.
FETCH_EVERY = 5

Advance = Callable[[TrainState, int], tuple[TrainState, Metrics | dict[str, Any]]]


def run(
    folder: epath.Path,
    label: str,
    state: TrainState,
    like: TrainState,
    advance: Advance,
    steps: int,
    save_every: int,
    data: Any = None,
) -> TrainState:
    """Advance `state` to `steps`, from the last checkpoint in `folder` if there is one.

    Killed at any moment and called again, it ends bitwise the same: a checkpoint holds the state and the position in
    the data, and the log is cut back to it.

    Args:
      folder: where checkpoints/ and metrics.jsonl go.
      label: the stage's name, for the bar.
      state: the initial state; donated.
      like: its abstract_state, for the restore.
      advance: (state, i) -> (state, metrics): the i-th step, from 0.
      data: a grain iterator that `advance` draws from, saved beside the state.
    """
    log = _Log(folder / "metrics.jsonl")
    keep = ocp.training.preservation_policies.LatestN(1)
    with ocp.training.Checkpointer(folder / "checkpoints", preservation_policy=keep) as checkpointer:
        first = 0
        if checkpointer.latest is not None:
            first = checkpointer.latest.step
            wanted = {"state": like} | ({"data": None} if data is not None else {})
            loaded = checkpointer.load_checkpointables(first, wanted)
            state = loaded["state"]
            if data is not None:
                data.set_state(loaded["data"])
        log.cut(first)
        with ProgressBar(label, steps, "steps", done=first) as bar:
            for i in range(first, steps):
                state, metrics = advance(state, i)
                log.add(i + 1, metrics)
                bar.advance(1, **log.last)
                if (i + 1) % save_every == 0 or i + 1 == steps:
                    log.flush()
                    distributed.assert_equal_across_processes(f"{label}, step {i + 1}", log.last)
                    # Not the iterator itself: Orbax would write a file a process, and the batches are the same in all.
                    saved = {"state": state} | ({"data": data.get_state()} if data is not None else {})
                    checkpointer.save_checkpointables(i + 1, saved)
    return state


class _Log:
    """metrics.jsonl: one line a step, fetched from the devices a few steps at a time. The file is written whole each
    time, since nothing can be appended to one in a bucket."""

    SHOWN = ("loss", "solve_rate", "mean_tokens")

    def __init__(self, path: epath.Path):
        self.path = path
        self.kept: list[storage.Json] = []
        self.pending: list[tuple[int, Any]] = []
        self.last: dict[str, float] = {}

    def cut(self, step: int) -> None:
        """Keep the lines up to a step; a resumed run writes the later ones again."""
        lines = storage.read_jsonl(self.path, allow_truncated=True) if self.path.exists() else ()
        self.kept = [record for record in lines if record["step"] <= step]
        storage.write_jsonl(self.path, self.kept)

    def add(self, step: int, metrics: Any) -> None:
        self.pending.append((step, metrics))
        if len(self.pending) >= FETCH_EVERY:
            self.flush()

    def flush(self) -> None:
        records = [{"step": s} | {k: float(v) for k, v in m.items()} for s, m in jax.device_get(self.pending)]
        self.pending = []
        if records:
            self.kept += records
            storage.write_jsonl(self.path, self.kept)
            self.last = {k: records[-1][k] for k in self.SHOWN if k in records[-1]}
