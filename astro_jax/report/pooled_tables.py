"""Tables of models pooled over their seeds (evaluate.pooled), as Markdown and as a page."""

from __future__ import annotations

from collections.abc import Iterator

from astro_jax import markdown, static_page
from astro_jax.evaluate.pooled import NUMBERS, SECTIONS, SLOPE, without_floor
from astro_jax.percent import points
from astro_jax.stages import MODELS, title
from astro_jax.storage import Json


def cell(section: str, name: str, figure: Json | None) -> str:
    """A figure with its interval: "52.5 [49.0, 56.1]" in percent, "+1.3 [+0.2, +2.4]" in points, or a number."""
    if figure is None:
        return "–"
    signed = section.startswith(SLOPE)

    def text(value: float) -> str:
        return f"{value:.2f}" if name in NUMBERS else points(value, sign=signed)

    return f"{text(figure['value'])} [{text(figure['low'])}, {text(figure['high'])}]"


def tables(pooled: Json) -> Iterator[tuple[str, tuple[str, ...], list[list[str]]]]:
    """The tables: for each suite the figures of each model, then the differences between models.

    Yields:
      (heading, header, rows).
    """
    for suite, result in pooled.items():
        models = result["models"]
        names = [f"{_title(model)} ({m['seeds']} seed{'s' * (m['seeds'] > 1)})" for model, m in models.items()]
        columns = [m["figures"] for m in models.values()]
        labels = dict.fromkeys((section, name) for x in columns for section, rows in x.items() for name in rows)
        rows = [
            [f"{s}: {n}", *(cell(s, n, x.get(s, {}).get(n)) for x in columns)] for s, n in sorted(labels, key=_place)
        ]
        yield f"{suite}, {result['problems']} problems", ("figure", *names), rows
        if rows := [_difference(pair, n, d) for pair, x in result["differences"].items() for n, d in x.items()]:
            yield f"{suite}, differences in points", ("models", "figure", "difference", "each seed"), rows


def _place(label: tuple[str, str]) -> int:
    return SECTIONS.index(label[0])


def _difference(pair: str, name: str, d: Json) -> list[str]:
    seeds = ", ".join(points(x, sign=True) for x in d["seeds"])
    return [" - ".join(map(_title, pair.split(" - "))), name, cell(SLOPE, name, d), seeds]


def _title(model: str) -> str:
    name, floor = without_floor(model)
    return (title(name) if name in MODELS else name) + floor


def markdown_tables(pooled: Json) -> str:
    """Write all tables."""
    return "\n\n".join(f"## {name}\n\n{markdown.table(header, rows)}" for name, header, rows in tables(pooled)) + "\n"


def html(command: str, pooled: Json) -> str:
    """Write one page without scripts."""
    return static_page.render(
        "report/pooled.html", "ASTRO models pooled over seeds", command, tables=list(tables(pooled))
    )
