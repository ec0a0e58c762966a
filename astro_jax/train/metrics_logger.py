"""Metrics of training: metrics.jsonl, one line a step, and the same values as curves for TensorBoard."""

from __future__ import annotations

from typing import Any

import jax
from etils import epath

from astro_jax import distributed, storage
from astro_jax.progress import log


class MetricsLogger:
    """Writes metrics.jsonl and tensorboard/ in the folder of a stage. Only the main process writes.

    Metrics are fetched from the devices a few steps at a time, so that the host does not wait for each step. The file
    metrics.jsonl is written whole each time, since nothing can be appended to an object in a bucket.

    Attributes:
      latest: the metrics of the last fetched step that the progress bar shows.
    """

    FETCH_STEPS = 5
    SHOWN = ("loss", "solve_rate", "mean_tokens")

    def __init__(self, folder: epath.Path):
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.latest: dict[str, float] = {}
        self._records: list[storage.Json] = []
        self._pending: list[tuple[int, Any]] = []
        self._events: Any = None

    def start(self, step: int) -> None:
        """Keep the records up to a step; a resumed run writes the later records again.

        The event file is made anew from the kept records: it never holds a step twice.
        """
        lines = storage.read_jsonl(self.path, allow_truncated=True) if self.path.exists() else ()
        self._records = [record for record in lines if record["step"] <= step]
        storage.write_jsonl(self.path, self._records)
        if not distributed.is_main_process():
            return
        if storage.is_remote(self.folder):
            log(f"{self.folder}: no TensorBoard curves, which need a local disk; the values are in metrics.jsonl")
            return
        from astro_jax.train.tensorboard import EventWriter  # slow to import where torch is installed

        self._events = EventWriter(self.folder / "tensorboard")
        self._events.write(self._records)

    def add(self, step: int, metrics: Any) -> None:
        """Add the metrics of a step: scalars, which may still be in computation on the devices."""
        self._pending.append((step, metrics))
        if len(self._pending) >= self.FETCH_STEPS:
            self.flush()

    def flush(self) -> None:
        """Fetch and write the metrics that were added since the last flush."""
        fetched = jax.device_get(self._pending)
        records = [{"step": step} | {k: float(v) for k, v in metrics.items()} for step, metrics in fetched]
        self._pending = []
        if not records:
            return
        self._records += records
        storage.write_jsonl(self.path, self._records)
        if self._events is not None:
            self._events.write(records)
        self.latest = {k: records[-1][k] for k in self.SHOWN if k in records[-1]}

    def close(self) -> None:
        """Close the event file. Metrics that were added and not flushed are dropped."""
        if self._events is not None:
            self._events.close()
