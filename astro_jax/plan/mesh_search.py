"""`astro plan --search`: find a mesh for a slice, and batch sizes that fit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.plan import planner, programs, tables, topology
from astro_jax.stages import PLANNED
from astro_jax.storage import Json

# The config key that a program's memory grows with, as (section, field). A smaller micro-batch keeps the results.
BATCH_KEYS = {
    "step": ("sft", "micro_batch_size"), "gradient": ("grpo", "micro_batch_size"),
    "decode": ("sampler", "max_num_seqs"), "prefill": ("sampler", "max_num_seqs"), "pack": ("sampler", "max_num_seqs"),
    "judge": ("sampler", "max_num_seqs"),
}  # fmt: skip


def search_meshes(
    c: cfg.Config,
    topology_name: str,
    stages: Sequence[str] = PLANNED,
    prompt_tokens: int = 512,
    roofline_share: float = 0.4,
    mean_length: float = 0.5,
) -> list[Json]:
    """Plan a run for every mesh fsdp x tp of a slice that divides the model and the batches.

    Batch sizes are halved until all programs fit. Several slices split the data axis.

    Args:
      c: config of the run; its mesh is replaced.
      topology_name: such as "v5p:4x4x8".
      stages: some of stages.PLANNED.
      prompt_tokens: length of a problem's prompt.
      roofline_share: share of the roofline's speed that the cost of the whole run assumes.
      mean_length: mean length of samples, as a share of the most that they may have.

    Returns:
      one object a mesh, best first: `mesh`; `changes`, the new batch sizes by config key; `fits`; `at_once_gib`, of the
      program that needs most; `hours` of the whole run, each program by the slowest of compute, HBM and links.

    Raises:
      AstroError: when no mesh divides the model and the batches.
    """
    slice_, (_, chips) = topology.get(topology_name), topology.parse(topology_name)
    config, judge, candidates, error = planner.model_config(c.model), planner.judge_config(c), [], None
    data = topology.slices(topology_name)
    for tp in (n for n in range(1, chips // data + 1) if chips // data % n == 0):
        mesh = cfg.Mesh(data=data, fsdp=chips // data // tp, tp=tp)
        trial = c.model_copy(update={"mesh": mesh})
        try:
            sharding = train_sharding(make_mesh(data, mesh.fsdp, mesh.tp, devices=slice_.devices), c.attention)
            programs.check(trial, config, sharding, judge)
        except AstroError as e:
            error = e
            continue
        plan = functools.partial(
            planner.plan_run, topology_name=topology_name, prompt_tokens=prompt_tokens, roofline_share=roofline_share,
            mean_length=mean_length,
        )  # fmt: skip
        candidates.append(_fit_batches(trial, stages, plan))
    if not candidates:
        raise AstroError(f"plan: no mesh fsdp x tp of {chips} chips divides the model and the batches; {error}")
    return sorted(candidates, key=lambda candidate: (not candidate["fits"], candidate["hours"]))


def _fit_batches(c: cfg.Config, stages: Sequence[str], plan_run: Callable[..., Json]) -> Json:
    """Plan one mesh, stage by stage, and halve the batch sizes of a stage until its programs fit."""
    changes: dict[str, int] = {}
    fits, total_gib, hours = True, 0.0, 0.0
    for stage in stages:
        while True:
            plan = plan_run(c, stages=(stage,))
            smaller = _halve_batches(c, plan)
            if plan["fits"] or not smaller:
                break
            changes |= smaller
            for key, value in smaller.items():
                section, field = key.split(".")
                c = c.model_copy(update={section: getattr(c, section).model_copy(update={field: value})})
        fits, total_gib = fits and plan["fits"], max([total_gib, *(row["at_once_gib"] for row in plan["programs"])])
        hours += sum(_hours(row, plan["recipe"]) for row in plan["programs"])
    mesh = f"{{fsdp: {c.mesh.fsdp}, tp: {c.mesh.tp}}}"
    return {"mesh": mesh, "changes": changes, "fits": fits, "at_once_gib": total_gib, "hours": round(hours, 2)}


def _halve_batches(c: cfg.Config, plan: Json) -> dict[str, int]:
    """Return half the batch size of each program that does not fit, by config key.

    Empty when a program has no batch size, or when its half does not divide over data x fsdp.
    """
    devices, halves = c.mesh.data * c.mesh.fsdp, {}
    for row in plan["programs"]:
        if row["fits"]:
            continue
        if row["program"] not in BATCH_KEYS:
            return {}
        section, field = BATCH_KEYS[row["program"]]
        if row["stage"] == "base":
            section = "pretrain" if c.model == "scratch" else "base_sft"
        settings = getattr(c, section)
        rows = settings.gradient_rows if isinstance(settings, cfg.Sft) else getattr(settings, field)
        half, rest = divmod(rows, 2)
        if rest or half % devices or not half:
            return {}
        halves[f"{section}.{field}"] = half
    return halves


def _hours(row: Json, run_cost: Json) -> float:
    """Return the hours of a program in the whole run; the links may be slower than the roofline."""
    of = [row["stage"], row["program"]]
    hours = sum(cost["hours"] for cost in run_cost.values() if isinstance(cost, dict) and cost.get("of") == of)
    return hours * max(1.0, row.get("links_s", 0.0) / row["seconds"]) if hours else 0.0


def print_meshes(candidates: Sequence[Json]) -> None:
    """Print the meshes as a table, then the overrides of the best mesh if its programs fit."""
    rows = []
    for candidate in candidates:
        changes = ", ".join(f"{key}={value}" for key, value in candidate["changes"].items())
        rows.append({
            "mesh": candidate["mesh"], "batches": changes or "unchanged", "fits": "yes" if candidate["fits"] else "NO",
            "total GiB a chip": candidate["at_once_gib"], "hours of the whole run": candidate["hours"],
        })  # fmt: skip
    tables.print_tables(tables.table("meshes, best first; hours by the slowest of compute, HBM and links", rows))
    if (best := candidates[0])["fits"]:
        print(" ".join([f'"mesh={best["mesh"]}"', *(f"{key}={value}" for key, value in best["changes"].items())]))
