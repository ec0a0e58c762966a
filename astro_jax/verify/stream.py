"""`astro verify`: verdicts on lines of JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from typing import IO

from astro_jax.errors import AstroError
from astro_jax.verify import judged
from astro_jax.verify.answer import Rule
from astro_jax.verify.pool import Outcome, Pool

LINES = 64  # that are read before their verdicts are written


def opened(path: str) -> IO[str]:
    """A file of lines."""
    try:
        return open(path, encoding="utf-8")
    except OSError as e:
        raise AstroError(f"{path}: cannot be read ({e.strerror or e})") from e


def verdicts(lines: Iterable[str], rule: Rule, seconds: float, memory: float, workers: int) -> Iterator[str]:
    """For each line {"gold": text or number, "response": text} one {"verdict", "extracted", "seconds"}, in order.

    verdict: correct, wrong, unparsed, timeout or error; extracted: the answer as it stands in the response, or null.

    Raises:
      AstroError: for a line that is anything else, by its number, after the verdicts of those before.
    """
    numbered = enumerate(lines, 1)
    with contextlib.closing(Pool(workers or os.cpu_count() or 1, seconds, int(memory * 2**30))) as pool:
        while batch := list(itertools.islice(numbered, LINES)):
            pairs, error = [], None
            for number, line in batch:
                try:
                    pairs.append(_pair(line, number))
                except AstroError as e:
                    error = e
                    break
            for outcome in pool.ask([("math", (gold, response, rule)) for gold, response in pairs]):
                yield json.dumps(_verdict(outcome))
            if error:
                raise error


def _pair(line: str, number: int) -> tuple[str, str]:
    try:
        record = json.loads(line)
        gold, response = record["gold"], record["response"]
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise AstroError(f"verify, line {number}: an object with `gold` and `response` is wanted ({e!r})") from e
    if isinstance(gold, bool) or not isinstance(gold, str | int | float) or not isinstance(response, str):
        raise AstroError(f"verify, line {number}: `gold` is a text or a number, `response` a text")
    return str(gold), response


def _verdict(outcome: Outcome) -> dict[str, str | float | None]:
    written = None if isinstance(outcome.result, Exception) else outcome.result.written
    return {"verdict": judged(outcome).status, "extracted": written, "seconds": round(outcome.seconds, 4)}
