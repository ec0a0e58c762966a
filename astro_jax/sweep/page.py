"""The result of a sweep as Markdown tables, and as one HTML page with a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astro_jax import markdown, static_page
from astro_jax.percent import difference, points
from astro_jax.stages import title
from astro_jax.sweep.variants import DEFAULT

Row = dict[str, Any]


def by_model(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Group the rows by (model, metric), in the order in which they come."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["metric"]), []).append(row)
    return groups


def cells(row: Row) -> list[str]:
    """A row of a table: variant, mean, difference and interval, and the figure of each seed."""
    delta = difference(row) if "difference" in row else ""
    return [row["variant"], points(row["mean"]), delta, ", ".join(map(points, row["seeds"]))]


HEADER = ("variant", "mean %", "difference from the default, 95% interval", "each seed %")


def markdown_tables(rows: Sequence[Row]) -> str:
    """Write a table for each model and metric."""
    return "\n\n".join(
        f"## {title(model)}, {metric}\n\n{markdown.table(HEADER, map(cells, group))}"
        for (model, metric), group in by_model(rows).items()
    ) + "\n"  # fmt: skip


def html(name: str, command: str, rows: Sequence[Row]) -> str:
    """Write one page without scripts: a picture of the differences with their intervals, and the tables."""
    groups = [
        {"title": f"{title(model)}, {metric}", "cells": list(map(cells, group)),
         "plot": _plot([row for row in group if row["variant"] != DEFAULT])}
        for (model, metric), group in by_model(rows).items()
    ]  # fmt: skip
    return static_page.render("sweep/template.html", f"ASTRO sweep {name}", command, header=HEADER, groups=groups)


def _plot(rows: Sequence[Row]) -> dict[str, Any]:
    """The positions in a picture: the zero line, ticks, and a dot with a bar for each variant."""
    rows = [row for row in rows if "difference" in row]
    if not rows:
        return {}
    reach = max(0.01, *(abs(row[key]) for row in rows for key in ("low", "high")))
    width, left, step = 460, 250, 22

    def x(value: float) -> float:
        return round(left + width * (value + reach) / (2 * reach), 1)

    tick = next(t for t in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if reach / t <= 4)
    ticks = [i * tick for i in range(-int(reach / tick), int(reach / tick) + 1)]
    return {
        "width": left + width + 20, "height": step * len(rows) + 34,
        "left": left, "zero": x(0), "bottom": step * len(rows) + 8,
        "ticks": [{"x": x(t), "label": points(t, sign=bool(t))} for t in ticks],
        "bars": [
            {"name": row["variant"], "y": step * i + 16, "x": x(row["difference"]), "low": x(row["low"]),
             "high": x(row["high"]), "excludes_zero": row["low"] > 0 or row["high"] < 0, "text": cells(row)[2]}
            for i, row in enumerate(rows)
        ],
    }  # fmt: skip
