"""The progress bar of every stage (units done, rate, time left, metrics), and log lines beside the bar."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from astro_jax import distributed

LOG_SECONDS = 15.0  # seconds between two lines where standard error is no terminal (a log file, CI)


class ProgressBar:
    """A progress bar on standard error, as a context manager.

    On a terminal the bar is live. Elsewhere a line is printed every `LOG_SECONDS`. In a run of several processes only
    the main process prints.

    Args:
      label: name of the work, such as "search".
      total: number of units.
      unit: name of a unit, plural, such as "trees".
      done: units that an earlier run finished. The rate does not count them.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0):
        self.label, self.total, self.unit, self.count, self._note = label, total, unit, done, ""
        self._in_progress = 0.0
        self._first, self._start, self._last = done, time.monotonic(), time.monotonic()
        self._console = Console(file=sys.stderr)
        self._live = self._console.is_terminal and distributed.is_main_process()
        self._progress = Progress(
            TextColumn("{task.description:>15}"), BarColumn(30),
            TextColumn("{task.fields[done]}/{task.total}"), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console,
        )  # fmt: skip
        self._task = self._progress.add_task(label, total=total, completed=done, done=done, note="")

    def __enter__(self) -> ProgressBar:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._progress.stop()
        elif kind is None:
            self._print_line()

    def advance(self, n: int = 1, in_progress: float = 0.0, **metrics: float) -> None:
        """Count `n` more finished units.

        Args:
          n: units that have finished since the last call.
          in_progress: work done on unfinished units, in units. Only the rate and the time left count this work.
          metrics: numbers that are shown beside the rate.
        """
        self.count, self._in_progress = self.count + n, in_progress
        rate = (self.count + in_progress - self._first) / max(time.monotonic() - self._start, 1e-9)
        shown = "  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items())
        self._note = f"{rate:,.1f} {self.unit}/s  {shown}"
        if self._live:
            self._progress.update(self._task, completed=self.count + in_progress, done=self.count, note=self._note)
        elif time.monotonic() - self._last > LOG_SECONDS:
            self._print_line()

    def _print_line(self) -> None:
        if not distributed.is_main_process():
            return
        self._last = time.monotonic()
        seconds = self._last - self._start
        worked = self.count + self._in_progress - self._first
        left = seconds * (self.total - self._first - worked) / worked if worked else 0.0
        text = f"{self.label:>15} {self.count}/{self.total} {self._note} {seconds:.0f} s, {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)


def log(text: str) -> None:
    """Print a line on standard error. In a run of several processes only the main process prints."""
    if distributed.is_main_process():
        print(text, file=sys.stderr, flush=True)
