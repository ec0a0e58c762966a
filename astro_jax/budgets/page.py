"""The figures of `astro budgets` as Markdown tables, and as one HTML page with a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from astro_jax import markdown, percent, static_page
from astro_jax.stages import title

Row = Mapping[str, Any]
HEADER = ("method", "tokens", "verdicts", "right %, 95% interval", "minus one answer")
_LEFT, _WIDTH, _TOP, _HEIGHT = 48, 620, 26, 320  # of the picture's axes


def method_title(row: Row) -> str:
    """A method with its model and its number of answers, as in "Direct-RL, majority vote of 6.48"."""
    k = f"{row['answers']:g}" if row.get("answers") is not None else ""
    names = {
        "one answer": "one answer", "majority vote": f"majority vote of {k}",
        "best of N": f"best of {k}, chosen by the verifier", "tree search": "tree search with the verifier",
    }  # fmt: skip
    return f"{title(row['model'])}, {names[row['method']]}"


def cells(row: Row) -> list[str]:
    """A row of the table at equal budgets."""
    delta = percent.difference(d) if (d := row.get("difference")) else ""
    verdicts = f"{row['verdicts']:.1f}" if row["verdicts"] else "0"
    return [method_title(row), f"{row['tokens']:,.1f}", verdicts, percent.rate(row), delta]


def at_equal_tokens(result: Mapping[str, Any]) -> list[Row]:
    """The rows at the tokens of one answer of the first model, and one answer of each other model."""
    return [row for row in result["table"] if row["multiple"] == 1]


def over_budgets(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of larger budgets.

    Returns:
      (header, rows): a column for each multiple of the budget, a row for each method. An empty cell has no answers.
    """
    multiples = sorted({row["multiple"] for row in result["table"]})
    first = next(iter(result["models"]))
    figures: dict[tuple[str, str], dict[int, str]] = {}
    for row in result["table"]:
        if row["method"] != "one answer":
            figures.setdefault((row["model"], row["method"]), {})[row["multiple"]] = percent.rate(row)
        elif row["model"] == first:  # k = 1 of its vote and of its best answer
            for method in ("majority vote", "best of N"):
                figures.setdefault((first, method), {})[1] = percent.rate(row)
    header = ["method", *(f"{m} x {result['budget']:,.1f} tokens" for m in multiples)]
    return header, [
        [f"{title(model)}, {method}", *(by_multiple.get(m, "") for m in multiples)]
        for (model, method), by_multiple in figures.items()
    ]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the tables, a sentence or two each."""
    models = result["models"]
    first = title(next(iter(models)))
    prompts = ", ".join(f"{title(name)} {m['prompt_tokens']:,.1f}" for name, m in models.items())
    lines = [
        f"{result['problems']} problems. The budget is {result['budget']:,.1f} generated tokens a problem: the mean of "
        f"one answer of {first}. Prompts are not in it (mean tokens: {prompts}).",
        "Methods with verdicts are told which answers are right. Best-of-N chosen by the verifier is pass@k: where the "
        "verifier needs the gold answer, nobody can use it on a new problem.",
    ]
    for name, m in models.items():
        if search := m.get("search"):
            lines.append(
                f"Trees of {title(name)}: {percent.points(search['solved'])}% solved within {search['max_tokens']:,} "
                f"tokens; {search['prefilled_per_token']:.2f} prompt tokens computed for each generated token."
            )
    if not any(row["method"] == "majority vote" for row in at_equal_tokens(result)):
        lines.append("No other model gives an answer for so few tokens, so no vote stands beside the one answer.")
    return lines


def markdown_tables(results: Mapping[str, Any]) -> str:
    """Write the tables of each set of problems."""
    parts = []
    for name, result in results["sets"].items():
        header, rows = over_budgets(result)
        parts += [
            f"## {name}", "\n".join(f"- {line}" for line in notes(result)),
            markdown.table(HEADER, map(cells, at_equal_tokens(result))), markdown.table(header, rows),
        ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def html(name: str, command: str, results: Mapping[str, Any]) -> str:
    """Write one page without scripts: for each set of problems a picture of the curves, and the tables."""
    sets = [
        {"name": name, "notes": notes(result), "plot": plot(result), "larger": over_budgets(result),
         "rows": [cells(row) for row in at_equal_tokens(result)]}
        for name, result in results["sets"].items()
    ]  # fmt: skip
    return static_page.render("budgets/template.html", f"Equal budgets: {name}", command, header=HEADER, sets=sets)


# ---- The picture


def plot(result: Mapping[str, Any]) -> dict[str, Any]:
    """The positions in the picture: accuracy over the logarithm of generated tokens.

    Returns:
      the sizes, the ticks, the place of the budget, and the lines: each with its points, the band of its intervals, and
      the classes of its method and its model.
    """
    curves, singles = result["curves"], [row for row in result["table"] if row["method"] == "one answer"]
    tokens = [point["tokens"] for curve in curves for point in curve["points"]] + [row["tokens"] for row in singles]
    low, high = math.log(min(tokens)), math.log(max(tokens) * 1.02)

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * (math.log(value) - low) / (high - low), 1)

    def y(share: float) -> float:
        return round(_TOP + _HEIGHT * (1 - share), 1)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x(a)},{y(b)}" for a, b in points)

    order = list(result["models"])
    lines = []
    for curve in curves:
        points = curve["points"]
        band = [(p["tokens"], p["high"]) for p in points] + [(p["tokens"], p["low"]) for p in reversed(points)]
        lines.append({
            "title": f"{title(curve['model'])}, {curve['method']}", "band": path(band),
            "points": path([(p["tokens"], p["mean"]) for p in points]), "method": curve["method"].replace(" ", "-"),
            "model": min(order.index(curve["model"]), 2),
        })  # fmt: skip
    dots = [
        {"title": f"{method_title(row)}: {percent.rate(row)}", "label": title(row["model"]), "x": x(row["tokens"]),
         "y": y(row["mean"]), "low": y(row["low"]), "high": y(row["high"])}
        for row in singles
    ]  # fmt: skip
    return {
        "width": _LEFT + _WIDTH + 24, "height": _TOP + _HEIGHT + 44, "left": _LEFT, "right": _LEFT + _WIDTH,
        "top": _TOP, "bottom": _TOP + _HEIGHT, "budget": x(result["budget"]), "lines": lines, "dots": dots,
        "x_ticks": [{"x": x(t), "label": f"{t:,}"} for t in static_page.log_ticks(min(tokens), max(tokens))],
        "y_ticks": [{"y": y(share / 100), "label": f"{share}"} for share in range(0, 101, 20)],
    }  # fmt: skip
