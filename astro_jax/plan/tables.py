"""A plan as tables, for a terminal and for a Markdown page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from astro_jax import markdown
from astro_jax.storage import Json

RUN_COST_TITLE = "A whole run at {reached} of the roofline's speed, samples at {mean_length} of their greatest length"


def print_plan(plan: Json) -> None:
    """Print a plan as tables: memory and roofline of each program, its collectives, and the cost of a whole run."""
    if "fits" in plan:
        title = f"{plan['topology']}, {plan['chips']} chips with {plan['hbm_gib']} GiB each for programs; GiB a chip"
        print_tables(table(title, [_program_row(row) for row in plan["programs"]]))
    if not plan["recipe"]:
        return
    collectives = [
        {
            "stage": row["stage"],
            "program": row["program"],
            "collective": kind,
            "calls": stats["calls"],
            "GiB a call": stats["gib"],
        }
        for row in plan["programs"]
        for kind, stats in (row.get("collectives") or {}).items()
    ]
    print_tables(table("collectives in one call of each program", collectives))
    if unprinted := [f"{r['stage']} {r['program']}" for r in plan["programs"] if r.get("collectives", ()) is None]:
        print(f"collectives unknown, because libtpu does not print the program: {', '.join(unprinted)}")
    costs = [
        {"stage": name, "tokens": cost["tokens"], "hours": cost["hours"], "chip hours": cost["chip_hours"],
         "hours at most": cost.get("longest_hours", "")}
        for name, cost in plan["recipe"].items()
        if isinstance(cost, dict)
    ]  # fmt: skip
    print_tables(table(RUN_COST_TITLE.format(**plan["recipe"]), costs))
    print(total(plan))


def total(plan: Json) -> str:
    """Say how long a run takes, and which libtpu the figures are from where the run has another."""
    recipe, versions = plan["recipe"], plan["libtpu"]
    text = (
        f"these programs take {recipe['total_hours']:,} hours, {recipe['total_chip_hours']:,} chip-hours; if every "
        f"sample has its greatest length and no tree ends early, {recipe['longest_total_hours']:,} hours, "
        f"{recipe['longest_total_chip_hours']:,} chip-hours"
    )
    if versions["plan"] != versions["run"] and not versions["plan"].startswith(versions["run"].rstrip("*")):
        text += f"; compiled by libtpu {versions['plan']}, and a run has {versions['run']}: its memory may differ"
    return text


def format_markdown(plan: Json) -> str:
    """Format a plan for a page: a table of its programs and a table of the cost of a whole run."""
    mesh = ", ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1)
    programs = [
        {
            "stage": row["stage"], "program": row["program"], "peak, GiB a chip": row["peak_gib"],
            "with resident arrays": row["at_once_gib"], "of HBM": f"{row['at_once_gib'] / plan['hbm_gib']:.0%}",
            "roofline, tokens/s": f"{row['tokens_per_s']:,}" if "tokens_per_s" in row else "",
            "MFU bound": row.get("max_mfu", ""), "compile time, s": row["compile_s"],
        }
        for row in plan["programs"]
    ]  # fmt: skip
    costs = [
        {"stage": name, "tokens": f"{v['tokens']:.3g}", "hours": v["hours"], "chip-hours": f"{v['chip_hours']:,}",
         "hours at most": v.get("longest_hours", "")}
        for name, v in plan["recipe"].items()
        if isinstance(v, dict)
    ]  # fmt: skip
    heading = f"{plan['topology']}: {plan['chips']} chips with {plan['hbm_gib']} GiB each for programs; mesh {mesh}."
    cost_heading = f"{RUN_COST_TITLE.format(**plan['recipe'])}:"
    return (
        "\n\n".join((heading, _markdown_table(programs), cost_heading, _markdown_table(costs), f"{total(plan)}."))
        + "\n"
    )


def _markdown_table(rows: Sequence[Json]) -> str:
    return markdown.table(list(rows[0]), (row.values() for row in rows))


def print_tables(*tables: Table) -> None:
    """Print tables as wide as the terminal, or 160 columns wide into a file."""
    Console(width=None if sys.stdout.isatty() else 160).print(*tables)


def _program_row(row: Json) -> Json:
    titles = {
        "arguments_gib": "arguments", "temporaries_gib": "temporaries", "peak_gib": "peak", "held_gib": "resident",
        "at_once_gib": "total", "tflops": "TFLOPs", "read_gb": "GB read", "seconds": "roofline s",
        "tokens_per_s": "tokens/s", "max_mfu": "MFU bound", "rows": "rows", "rows_that_fit": "rows that fit",
        "links_s": "links s", "compile_s": "compile s",
    }  # fmt: skip
    cells = {"stage": row["stage"], "program": row["program"], "fits": "yes" if row["fits"] else "NO"}
    return cells | {title: row.get(key, "") for key, title in titles.items()}


def table(title: str, rows: Sequence[Json]) -> Table:
    """Make a table whose columns are the keys of its rows."""
    table = Table(title=title)
    for column in rows[0] if rows else ():
        table.add_column(
            column.replace("_", " "), justify="left" if column in ("stage", "program", "mesh", "batches") else "right"
        )
    for row in rows:
        table.add_row(*(f"{x:,}" if isinstance(x, int) else str(x) for x in row.values()))
    return table
