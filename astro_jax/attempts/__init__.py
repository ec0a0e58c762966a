"""The attempts of a response, which are the texts between its backtracks and restarts, and those that come again."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from astro_jax.attempts import detector
from astro_jax.attempts.detector import Event

# A run of text without a comma or a full stop, except within a number, and the rest of the equation if it is the left
# side of one. A run that is none is passed over as a whole: a search that tried each of its characters would take
# minutes on an answer that repeats one word.
_RUN = re.compile(r"[^\s=,;.](?:[^=\n,;.]|[.,](?=\d))*(=\s*(?:[^\s=,;.]|[.,](?=\d))+)?")


def ends(response: str, events: Sequence[Event] | None = None) -> list[int]:
    """Where attempts end: at each backtrack, with the doubts just before it.

    Backtracks without a number between them belong together ("That is wrong. Let me try again. From the beginning:").
    A backtrack before the first number of a response leaves no attempt behind.

    Args:
      events: of the response. None: find them.

    Returns:
      Positions in the response: the end of each attempt but the last.
    """
    events = detector.find(response) if events is None else events
    positions: list[int] = []
    reflections: list[Event] = []
    last = 0
    for event in events:
        if event.kind == "reflection":
            reflections.append(event)
            continue
        if any(c.isdigit() for c in response[last : event.begin]):
            positions.append(_with_doubts(event.begin, reflections, response))
        last = event.end
    return positions


def split(response: str, events: Sequence[Event] | None = None) -> list[str]:
    """Split a response into its attempts, at least one. Their texts, one after the other, are the whole response."""
    borders = [0, *ends(response, events), len(response)]
    return [response[a:b] for a, b in itertools.pairwise(borders)]


def count_repeats(attempts: Sequence[str]) -> int:
    """Count the attempts with the equations of an earlier attempt, or with its words where it has no equation."""
    contents = [content for attempt in attempts if (content := _content(attempt))]
    return len(contents) - len(set(contents))


def count_repeats_in(response: str) -> int:
    """Count the attempts of a response that repeat an earlier one."""
    return count_repeats(split(response))


def _with_doubts(begin: int, reflections: Sequence[Event], response: str) -> int:
    """Move the end of an attempt before the reflections that lead to its backtrack."""
    for event in reversed(reflections):
        if event.end > begin:
            continue
        if response[event.end : begin].strip():
            break
        begin = event.begin
    return begin


def _content(attempt: str) -> tuple[str, ...]:
    """What an attempt does: its equations without spaces, or its words if it has none."""
    equations = tuple(re.sub(r"\s", "", run[0]) for run in _RUN.finditer(attempt) if run[1])
    return equations or tuple(re.findall(r"\w+", attempt.lower()))
