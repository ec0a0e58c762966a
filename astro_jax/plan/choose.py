"""`astro plan --search`: a mesh for a slice, with batches that fit."""

from __future__ import annotations

from collections.abc import Sequence

from astro_jax import config as cfg
from astro_jax import plan
from astro_jax.errors import AstroError
from astro_jax.mesh import make_mesh, train_sharding
from astro_jax.plan import programs, tables, topology
from astro_jax.storage import Json

# What each program's memory grows with.
BATCHES = {
    "step": ("sft", "batch_size"), "gradient": ("grpo", "micro_batch_size"), "decode": ("sampler", "max_num_seqs"),
    "prefill": ("sampler", "max_num_seqs"), "pack": ("sampler", "max_num_seqs"),
}  # fmt: skip


def search(
    c: cfg.Config, name: str, stages: Sequence[str] = plan.STAGES, prompt: int = 512, reached: float = 0.4
) -> list[Json]:
    """Every fsdp x tp of a slice that the model and the batches divide over, each with its batches halved until all
    programs fit.

    Returns:
      the best first: mesh; changes, of batches; fits; at_once_gib, the most of a chip; hours of the whole recipe, by
      the slowest of computing, memory and links.

    Raises:
      AstroError: when they divide over no mesh.
    """
    slice_, (_, chips) = topology.get(name), topology.parse(name)
    config, found, last = plan.shape_of(c.model), [], None
    for tp in (n for n in range(1, chips + 1) if chips % n == 0):
        mesh = cfg.Mesh(fsdp=chips // tp, tp=tp)
        trial = c.model_copy(update={"mesh": mesh})
        try:
            sharding = train_sharding(make_mesh(1, mesh.fsdp, mesh.tp, devices=slice_.devices), c.attention)
            programs.check(trial, config, sharding)
        except AstroError as e:
            last = e
            continue
        found.append(_fitted(trial, name, stages, prompt, reached))
    if not found:
        raise AstroError(f"plan: no fsdp x tp of {chips} chips will do, as {last}")
    return sorted(found, key=lambda f: (not f["fits"], f["hours"]))


def _fitted(c: cfg.Config, name: str, stages: Sequence[str], prompt: int, reached: float) -> Json:
    """One mesh, its batches halved stage by stage."""
    changes: dict[str, int] = {}
    fits, at_once, hours = True, 0.0, 0.0
    for stage in stages:
        while True:
            tried = plan.run(c, name, (stage,), prompt, reached)
            smaller = _halved(c, tried)
            if tried["fits"] or not smaller:
                break
            changes |= smaller
            for key, value in smaller.items():
                section, field = key.split(".")
                c = c.model_copy(update={section: getattr(c, section).model_copy(update={field: value})})
        fits, at_once = fits and tried["fits"], max(at_once, *(row["at_once_gib"] for row in tried["programs"]))
        hours += sum(_hours(row, tried["recipe"]) for row in tried["programs"])
    found = {"mesh": f"{{fsdp: {c.mesh.fsdp}, tp: {c.mesh.tp}}}", "changes": changes, "fits": fits}
    return found | {"at_once_gib": at_once, "hours": round(hours, 2)}


def _halved(c: cfg.Config, tried: Json) -> dict[str, int]:
    """The batches of programs that do not fit, halved; none where one of these cannot be."""
    devices, found = c.mesh.data * c.mesh.fsdp, {}
    for row in tried["programs"]:
        if row["fits"]:
            continue
        if row["program"] not in BATCHES:
            return {}
        section, field = BATCHES[row["program"]]
        half, rest = divmod(getattr(getattr(c, section), field), 2)
        if rest or half % devices or not half:
            return {}
        found[f"{section}.{field}"] = half
    return found


def _hours(row: Json, recipe: Json) -> float:
    """Of one program in the whole recipe, where links may be slower than the roofline."""
    told = recipe.get(f"{row['stage']} {row['program']}")
    if told is None:
        return 0.0
    return told["hours"] * max(1.0, row.get("links_s", 0.0) / row["seconds"])


def show(found: Sequence[Json]) -> None:
    """Print the meshes as a table, and the overrides of the best."""
    rows = []
    for f in found:
        changed = ", ".join(f"{key}={value}" for key, value in f["changes"].items())
        rows.append({
            "mesh": f["mesh"], "batches": changed or "as they are", "fits": "yes" if f["fits"] else "NO",
            "GiB a chip at once": f["at_once_gib"], "hours of the recipe": f["hours"],
        })  # fmt: skip
    tables.print_tables(
        tables.table("meshes, the best first; hours by the slowest of computing, memory and links", rows)
    )
    if (best := found[0])["fits"]:
        print(" ".join([f'"mesh={best["mesh"]}"', *(f"{key}={value}" for key, value in best["changes"].items())]))
