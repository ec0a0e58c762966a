"""A plan as tables: for a terminal, and for a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from astro_jax.storage import Json

WHOLE = "The whole recipe, all samples as long as they may be, at {} of the roofline"


def show(found: Json) -> None:
    """Print a plan as tables."""
    title = f"{found['topology']}, {found['chips']} chips, {found['hbm_gib']} GiB of each for programs; GiB a chip"
    print_tables(table(title, [_cells(row) for row in found["programs"]]))
    moved = [
        {
            "stage": row["stage"],
            "program": row["program"],
            "collective": kind,
            "calls": m["calls"],
            "GiB a call": m["gib"],
        }
        for row in found["programs"]
        for kind, m in (row.get("collectives") or {}).items()
    ]
    if not found["recipe"]:
        return
    print_tables(table("collectives of one call", moved))
    if unread := [f"{r['stage']} {r['program']}" for r in found["programs"] if r.get("collectives", ()) is None]:
        print(f"collectives not known, since libtpu does not print the program: {', '.join(unread)}")
    whole = [{"stage": k} | v for k, v in found["recipe"].items() if isinstance(v, dict)]
    print_tables(table(WHOLE.format(found["recipe"]["reached"]), whole))


def markdown(found: Json) -> str:
    """A plan for a page: what each program needs and how fast it can be, and the whole recipe."""
    mesh = ", ".join(f"{key} {n}" for key, n in found["mesh"].items() if n > 1)
    programs = [
        {
            "stage": row["stage"], "program": row["program"], "peak, GiB a chip": row["peak_gib"],
            "with what is held beside": row["at_once_gib"], "share": f"{row['at_once_gib'] / found['hbm_gib']:.0%}",
            "roofline, tokens/s": f"{row['tokens_per_s']:,}" if "tokens_per_s" in row else "",
            "highest MFU": row.get("max_mfu", ""), "compiled in, s": row["compile_s"],
        }
        for row in found["programs"]
    ]  # fmt: skip
    whole = [
        {"stage": name, "tokens": f"{v['tokens']:.3g}", "hours": v["hours"], "chip-hours": f"{v['chip_hours']:,}"}
        for name, v in found["recipe"].items()
        if isinstance(v, dict)
    ]
    slice_ = f"{found['topology']}, {found['chips']} chips of {found['hbm_gib']} GiB for programs; {mesh}."
    parts = (slice_, _lines(programs), f"{WHOLE.format(found['recipe']['reached'])}:", _lines(whole))
    return "\n\n".join(parts) + "\n"


def _lines(rows: Sequence[Json]) -> str:
    each = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in each)


def print_tables(*tables: Table) -> None:
    """Print tables as wide as the terminal, or as a file may be."""
    Console(width=None if sys.stdout.isatty() else 160).print(*tables)


def _cells(row: Json) -> Json:
    names = {
        "arguments_gib": "arguments", "temporaries_gib": "temporaries", "peak_gib": "peak", "held_gib": "held beside",
        "at_once_gib": "at once", "tflops": "TFLOPs", "read_gb": "GB read", "seconds": "roofline s",
        "tokens_per_s": "tokens/s", "max_mfu": "max MFU", "links_s": "links s", "compile_s": "compiled s",
    }  # fmt: skip
    cells = {"stage": row["stage"], "program": row["program"], "fits": "yes" if row["fits"] else "NO"}
    return cells | {title: row.get(key, "") for key, title in names.items()}


def table(title: str, rows: Sequence[Json]) -> Table:
    """A table with the columns of its rows."""
    table = Table(title=title)
    for column in rows[0] if rows else ():
        table.add_column(
            column.replace("_", " "), justify="left" if column in ("stage", "program", "mesh", "batches") else "right"
        )
    for row in rows:
        table.add_row(*(f"{x:,}" if isinstance(x, int) else str(x) for x in row.values()))
    return table
