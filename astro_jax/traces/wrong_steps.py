"""The steps of wrong attempts in a trace: those that the trace leaves by a backtrack."""

from __future__ import annotations

from astro_jax.storage import Json


def wrong_spans(example: Json) -> list[tuple[int, int]]:
    """Return the character spans of the response of an example that hold steps of wrong attempts.

    A step is right when its node lies on the path from the root to the last node of the trace. Example: the trace of
    the sequence [1, 3, 4], where 4 is a child of 1, has the steps of 1, 3 and 4, and the step of 3 is wrong. Backtracks
    and reflections are not steps of an attempt.

    Args:
      example: a record of astro.jsonl or direct.jsonl.
    """
    parents: dict[int, int] = {}
    at = 0  # the node that the trace is at; 0 is the root
    for segment in example["segments"]:
        if segment["kind"] == "step" and segment["node"] is not None:
            parents.setdefault(segment["node"], at)
            at = segment["node"]
        elif segment["kind"] == "backtrack":
            at = segment["node"]
    path: set[int | None] = {None}  # a sampled solution has no tree
    while at in parents and at not in path:
        path.add(at)
        at = parents[at]
    spans, start = [], 0
    for segment in example["segments"]:
        end = start + len(segment["text"])
        if segment["kind"] == "step" and segment["node"] not in path:
            spans.append((start, end))
        start = end
    return spans
