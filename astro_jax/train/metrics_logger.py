"""Metrics of training: metrics.jsonl and timings.jsonl, one line a step, and the metrics as curves for TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from astro_jax import distributed, storage
from astro_jax.progress import log


class MetricsLogger:
    """Writes metrics.jsonl, timings.jsonl and tensorboard/ in the folder of a stage. Only the main process writes.

    The values of metrics.jsonl follow from the config: a repeated or resumed run writes the same bytes. The values of
    timings.jsonl depend on the clock: metrics named `seconds_...` go there. A value that is not a finite number is left
    out.

    Metrics on a device are fetched a few steps at a time, so that the host does not wait for each step. Metrics on the
    host are written at once.

    Attributes:
      latest: the metrics of the last fetched step that the progress bar shows, and the last ones of held-out prompts.
    """

    FETCH_STEPS = 5
    SHOWN = ("loss", "solve_rate", "mean_tokens")
    SHOWN_ON = ("eval_loss", "eval_solve_rate", "eval_solve_rate_greedy")  # until the next measurement

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self.latest: dict[str, float] = {}
        self._metrics, self._timings = StepFile(folder / "metrics.jsonl"), StepFile(folder / "timings.jsonl")
        self._pending: list[tuple[int, Any]] = []
        self._events: Any = None
        self._clock = 0.0

    def start(self, step: int) -> list[storage.Json]:
        """Keep the records up to a step; a resumed run writes the later records again.

        The event file is made anew from the kept records: it never holds a step twice.

        Returns:
          The kept records.
        """
        self.close()
        records = self._metrics.start(step)
        self._timings.start(step)
        self._clock = time.monotonic()
        self.latest = {k: r[k] for r in records for k in self.SHOWN_ON if k in r}
        if not distributed.is_main_process():
            return records
        if storage.is_remote(self.folder):
            log(f"{self.folder}: no TensorBoard curves, which need a local disk; the values are in metrics.jsonl")
            return records
        from astro_jax.train.tensorboard import EventWriter  # slow to import where torch is installed

        self._events = EventWriter(self.folder / "tensorboard")
        self._events.write(records)
        return records

    def add(self, step: int, metrics: Any) -> list[storage.Json]:
        """Add the metrics of a step: scalars, which may still be in computation on the devices.

        Returns:
          The records of the steps that were fetched now, none in most calls.
        """
        self._pending.append((step, metrics))
        on_device = any(isinstance(value, jax.Array) for value in metrics.values())
        return [] if on_device and len(self._pending) < self.FETCH_STEPS else self._fetch()

    def flush(self) -> list[storage.Json]:
        """Fetch all metrics, and write all records to the files.

        Returns:
          The records of the steps that were fetched now.
        """
        records = self._fetch()
        self._metrics.flush()
        self._timings.flush()
        return records

    def _fetch(self) -> list[storage.Json]:
        fetched = jax.device_get(self._pending)
        self._pending = []
        if not fetched:
            return []
        values = [{k: float(v) for k, v in metrics.items() if math.isfinite(v)} for _, metrics in fetched]
        timings = [{k: v.pop(k) for k in list(v) if k.startswith("seconds_")} for v in values]
        records = [{"step": step} | v for (step, _), v in zip(fetched, values, strict=True)]
        self._metrics.append(records)
        self._timings.append([clock | t for clock, t in zip(self._time(records), timings, strict=True)])
        if self._events is not None:
            self._events.write(records)
        measured = {k: r[k] for r in (self.latest, *records) for k in self.SHOWN_ON if k in r}
        self.latest = {k: records[-1][k] for k in self.SHOWN if k in records[-1]} | measured
        return records

    def _time(self, records: Sequence[storage.Json]) -> list[storage.Json]:
        """Spread the time since the last fetch evenly over the steps since then."""
        seconds = time.monotonic() - self._clock
        self._clock += seconds
        speed = {"tokens_per_s": round(sum(r.get("tokens", 0) for r in records) / seconds, 1)}
        return [{"step": r["step"], "seconds": round(seconds / len(records), 4)} | speed for r in records]

    def close(self) -> None:
        """Close the event file. Metrics that were added and not flushed are dropped."""
        if self._events is not None:
            self._events.close()


class StepFile:
    """A JSONL file with one record a step. Records are appended on a disk.

    Nothing can be appended to an object in a bucket: there `flush` writes the whole file.
    """

    def __init__(self, path: epath.Path):
        self.path, self._remote = path, storage.is_remote(path)
        self._records: list[storage.Json] = []  # in a bucket: all of them

    def start(self, step: int) -> list[storage.Json]:
        """Drop the records after a step, and a last line without an end. Return the kept records."""
        lines = storage.read_jsonl(self.path, allow_truncated=True) if self.path.exists() else ()
        records = [record for record in lines if record["step"] <= step]
        storage.write_jsonl(self.path, records)
        self._records = records if self._remote else []
        return records

    def append(self, records: Sequence[storage.Json]) -> None:
        """Add records at the end."""
        if self._remote:
            self._records = [*self._records, *records]
        else:
            storage.append_text(self.path, storage.to_lines(records))

    def flush(self) -> None:
        """Write the file of a bucket."""
        if self._remote:
            storage.write_jsonl(self.path, self._records)
