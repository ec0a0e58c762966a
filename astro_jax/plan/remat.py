"""`astro plan --remat`: the memory and the speed limit of SFT under each rematerialization policy."""

from __future__ import annotations

import typing
from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax.plan import planner, tables
from astro_jax.storage import Json

HBM_SHARE = 0.9  # of a chip's memory that a policy may need: XLA fragments memory, and a run has other arrays too


def compare(c: cfg.Config, topology_name: str, prompt_tokens: int = 512) -> list[Json]:
    """Compile SFT's step for a slice under each policy of `sft.remat_policy`.

    Args:
      c: config of the run.
      topology_name: such as "v5p:4x4x8".
      prompt_tokens: length of a problem's prompt.

    Returns:
      one object a policy, from most to least memory: `remat_policy`, `at_once_gib` of `hbm_gib`, `fits`, `max_mfu`
      (0 for a program that does not fit the chip), `compile_s`, and `best`: the highest MFU within 0.9 of the memory.

    Raises:
      AstroError: as planner.plan_run.
    """
    rows: list[Json] = []
    for policy in typing.get_args(cfg.Sft.model_fields["remat_policy"].annotation):
        trial = c.model_copy(update={"sft": c.sft.model_copy(update={"remat_policy": policy})})
        plan = planner.plan_run(trial, topology_name, ("sft",), prompt_tokens)
        (step,) = (row for row in plan["programs"] if row["program"] == "step")
        rows.append(
            {"remat_policy": policy, "hbm_gib": plan["hbm_gib"], "max_mfu": 0.0}
            | {key: step[key] for key in ("at_once_gib", "fits", "max_mfu", "compile_s") if key in step}
        )
    within = [row for row in rows if row["at_once_gib"] <= HBM_SHARE * row["hbm_gib"]]
    best = max(within, key=lambda row: row["max_mfu"], default=None)
    return [row | {"best": row is best} for row in rows]


def print_policies(rows: Sequence[Json]) -> None:
    """Print the policies as a table, then the override of the best one."""
    cells = [
        {
            "remat policy": row["remat_policy"], "total GiB a chip": row["at_once_gib"],
            "of HBM": f"{row['at_once_gib'] / row['hbm_gib']:.0%}", "fits": "yes" if row["fits"] else "NO",
            "MFU bound": row["max_mfu"], "compile s": row["compile_s"],
        }
        for row in rows
    ]  # fmt: skip
    tables.print_tables(tables.table("sft step under each remat_policy", cells))
    for row in rows:
        if row["best"]:
            print(f"sft.remat_policy={row['remat_policy']}")
