"""Shares and their 95% intervals in percent, as the tables of commands and pages show them."""

from __future__ import annotations

from collections.abc import Mapping


def points(fraction: float, sign: bool = False) -> str:
    """0.0123 as "1.2", in percent or percentage points; with a sign as "+1.2"."""
    return f"{100 * fraction:+.1f}" if sign else f"{100 * fraction:.1f}"


def rate(row: Mapping[str, float]) -> str:
    """The `mean` of a row with its interval, `low` to `high`: "79.1 [76.0, 82.0]"."""
    return f"{points(row['mean'])} [{points(row['low'])}, {points(row['high'])}]"


def difference(row: Mapping[str, float]) -> str:
    """The `difference` of a row in points, with its interval: "+6.8 [-1.0, +15.4]"."""
    d, low, high = (points(row[key], sign=True) for key in ("difference", "low", "high"))
    return f"{d} [{low}, {high}]"
