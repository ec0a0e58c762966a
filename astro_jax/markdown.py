"""Markdown of pages and cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a table: `table(("a", "b"), [(1, 2)])` has the lines `| a | b |`, `| --- | --- |` and `| 1 | 2 |`."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *rows))
