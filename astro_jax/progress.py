"""One progress bar for all long work: share done, rate, time left, and what the stage measures."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from astro_jax import distributed

# Where there is no terminal (a log file, CI), a line is printed this often instead.
LOG_SECONDS = 15.0


class ProgressBar:
    """A context manager around one stage's bar.

    Args:
      label: the stage.
      total: units of work; `done` of them stood before (a resumed stage).
      unit: what is counted, plural.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0):
        self.label, self.total, self.unit, self.count, self._note = label, total, unit, done, ""
        self._part = 0.0
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
            self._line()

    def advance(self, n: int = 1, part: float = 0.0, **measures: float) -> None:
        """n more units are done.

        Args:
          part: what the work on units under way makes up of whole ones; only the rate and the time left count it.
          measures: are shown beside the rate.
        """
        self.count, self._part = self.count + n, part
        rate = (self.count + part - self._first) / max(time.monotonic() - self._start, 1e-9)
        shown = "  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in measures.items())
        self._note = f"{rate:,.1f} {self.unit}/s  {shown}"
        if self._live:
            self._progress.update(self._task, completed=self.count + part, done=self.count, note=self._note)
        elif time.monotonic() - self._last > LOG_SECONDS:
            self._line()

    def _line(self) -> None:
        if not distributed.is_main_process():
            return
        self._last = time.monotonic()
        seconds = self._last - self._start
        worked = self.count + self._part - self._first
        left = seconds * (self.total - self._first - worked) / worked if worked else 0.0
        text = f"{self.label:>15} {self.count}/{self.total} {self._note} {seconds:.0f} s, {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)


def log(text: str) -> None:
    """A line for the person who waits, beside the bars; of several processes, the first one says it."""
    if distributed.is_main_process():
        print(text, file=sys.stderr, flush=True)
