"""The result of a sweep as Markdown tables, and as one HTML page with a picture."""

from __future__ import annotations

import math
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
    """Write one page without scripts: pictures of the differences and of the cost of the search, and the tables."""
    groups = [
        {"title": f"{title(model)}, {metric}", "cells": list(map(cells, group)),
         "plot": _plot([row for row in group if row["variant"] != DEFAULT]), "tokens": _tokens_plot(group)}
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


def _tokens_plot(rows: Sequence[Row]) -> dict[str, Any]:
    """The positions in a picture: accuracy over the logarithm of the search's tokens. Empty where these are equal."""
    rows = [row for row in rows if row.get("search_tokens")]
    if len({row["search_tokens"] for row in rows}) < 2:
        return {}
    tokens = [row["search_tokens"] for row in rows]
    least, most = math.log(min(tokens)), math.log(max(tokens))
    bottom, top = min(row["mean_low"] for row in rows), max(row["mean_high"] for row in rows)
    width, height, left, margin = 460, 200, 60, 12

    def x(value: float) -> float:
        return round(left + margin + (width - 2 * margin) * (math.log(value) - least) / (most - least), 1)

    def y(value: float) -> float:
        return round(margin + height * (top - value) / max(top - bottom, 0.01), 1)

    dots = [
        {"name": row["variant"], "x": x(row["search_tokens"]), "y": y(row["mean"]), "low": y(row["mean_low"]),
         "high": y(row["mean_high"]), "text": f"{points(row['mean'])}%, {row['search_tokens']:,.0f} tokens"}
        for row in rows
    ]  # fmt: skip
    step = next(t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 1.0) if (top - bottom) / t <= 6)
    levels = [i * step for i in range(math.ceil(bottom / step), math.floor(top / step) + 1)]
    return {
        "width": left + width + 170, "height": height + 68, "left": left, "right": left + width,
        "bottom": height + 2 * margin,
        "x_ticks": [{"x": x(t), "label": f"{t:,}"} for t in static_page.log_ticks(min(tokens), max(tokens))],
        "y_ticks": [{"y": y(v), "label": points(v)} for v in levels],
        "dots": [dot | {"label_y": label_y} for dot, label_y in zip(dots, _label_heights(dots), strict=True)],
    }  # fmt: skip


def _label_heights(dots: Sequence[dict[str, Any]]) -> list[float]:
    """The height of each dot's label, to the right of the dot, or a line or two off where another label stands."""
    line, letter = 14, 7  # pixels, at most
    placed: list[tuple[float, float, float]] = []  # left, right, height
    for dot in dots:
        left, right = dot["x"], dot["x"] + letter * (len(dot["name"]) + 2)
        heights = [dot["y"] + line * offset for offset in (0, 1, -1, 2, -2, 3)]
        free = (
            height
            for height in heights
            if not any(a < right and left < b and abs(height - other) < line for a, b, other in placed)
        )
        placed.append((left, right, next(free, dot["y"])))
    return [height for _, _, height in placed]
