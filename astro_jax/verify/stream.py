"""`astro verify`: read lines of JSON, write one verdict for each line."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from typing import IO

from astro_jax.errors import AstroError
from astro_jax.verify.answer import Rule
from astro_jax.verify.pool import Call, Outcome, WorkerPool
from astro_jax.verify.verifier import to_verdict

BATCH_LINES = 64  # lines that are read before their verdicts are written


def open_lines(path: str) -> IO[str]:
    """Open a file of lines.

    Raises:
      AstroError: if the file cannot be read.
    """
    try:
        return open(path, encoding="utf-8-sig")
    except OSError as e:
        raise AstroError(f"{path}: cannot be read ({e.strerror or e})") from e


def verdicts(lines: Iterable[str], rule: Rule, seconds: float, memory: float, num_workers: int) -> Iterator[str]:
    """Judge lines of JSON, in order.

    Args:
      lines: objects {"gold": text or number, "response": text}. Blank lines are skipped.
      seconds: the deadline of one answer.
      memory: GiB that one worker may take.
      num_workers: the number of worker processes. 0: one for each CPU core.

    Yields:
      One line {"verdict", "extracted", "seconds"} for each line. The verdict is correct, wrong, unparsed, timeout or
      error. `extracted` is the answer as the response writes it, or null.

    Raises:
      AstroError: for any other line, with its number. The verdicts of the lines before are written first.
    """
    numbered = ((i, line) for i, line in enumerate(lines, 1) if line.strip())
    with contextlib.closing(WorkerPool(num_workers or os.cpu_count() or 1, seconds, int(memory * 2**30))) as pool:
        while batch := list(itertools.islice(numbered, BATCH_LINES)):
            calls, error = [], None
            for number, line in batch:
                try:
                    calls.append(Call("math", (*_parse_line(line, number), rule)))
                except AstroError as e:
                    error = e
                    break
            for outcome in pool.run(calls):
                yield json.dumps(_record(outcome))
            if error:
                raise error


def _parse_line(line: str, number: int) -> tuple[str, str]:
    """Parse a line into (gold answer, response)."""
    try:
        record = json.loads(line)
        gold, response = record["gold"], record["response"]
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise AstroError(f"verify, line {number}: must be an object with `gold` and `response` ({e!r})") from e
    if isinstance(gold, bool) or not isinstance(gold, str | int | float) or not isinstance(response, str):
        raise AstroError(f"verify, line {number}: `gold` must be a text or a number, `response` a text")
    return str(gold), response


def _record(outcome: Outcome) -> dict[str, str | float | None]:
    written = None if isinstance(outcome.result, Exception) else outcome.result.written
    return {"verdict": to_verdict(outcome).status, "extracted": written, "seconds": round(outcome.seconds, 4)}
