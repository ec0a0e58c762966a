"""`astro plan`: a run's programs compiled for a TPU slice that is not there: what they need, how fast they can be."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import jax

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, paths
from astro_jax.llama.config import LlamaConfig, llama3_8b, llama3_70b
from astro_jax.mesh import make_mesh
from astro_jax.plan import collectives, topology
from astro_jax.plan.programs import Plan, Program, size
from astro_jax.plan.recipe import recipe
from astro_jax.progress import ProgressBar
from astro_jax.storage import Json

STAGES = ("search", "sft", "grpo")
GIB = topology.GIB
# Published shapes, by a part of a model's name: a plan needs no weights.
PUBLISHED = {"llama-3.1-8b": llama3_8b, "llama-3.1-70b": llama3_70b, "llama-3.3-70b": llama3_70b}


def run(
    c: cfg.Config, name: str, stages: Sequence[str] = STAGES, prompt: int = 512, reached: float = 0.4,
    compile_only: bool = False,
) -> Json:  # fmt: skip
    """Compile the programs of some stages for a slice.

    Args:
      name: of the topology, as in v5p:4x4x8.
      prompt: tokens of a problem's prompt.
      reached: share of the roofline that the whole recipe is assumed to reach.
      compile_only: leave out what is read off the compiled programs, but their memory, and the recipe.

    Returns:
      topology, chips, hbm_gib (that programs can use of a chip), mesh, prompt, fits; `programs`: of each its stage and
      name, GiB a chip of arguments, temporaries, peak, what is held beside and both at once, whether that fits, seconds
      to compile; collectives by kind (calls and GiB of one call; None where libtpu does not print the program), and
      links_s, the time of those bytes at the speed of a chip's links; and of those that compute FLOPs and bytes a chip,
      the roofline's seconds, tokens/s of the slice and the highest possible MFU, all three without the links, and of
      decoding tokens/s if no prefix were shared; `recipe`: see recipe.recipe.

    Raises:
      AstroError: for an unknown topology, a mesh that is not its size, or dimensions that do not divide.
    """
    if prompt < 1 or not 0 < reached <= 1:
        raise AstroError("plan: --prompt is at least 1, --reached above 0 and at most 1")
    chip, chips = topology.parse(name)
    if (n := c.mesh.data * c.mesh.fsdp * c.mesh.tp) != chips:
        raise AstroError(f"plan: the mesh data x fsdp x tp has {n} devices and {name} has {chips} chips: set mesh.*")
    config = shape_of(c.model)
    slice_ = topology.get(name)
    plan = Plan(c, config, make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp, devices=slice_.devices), prompt)
    programs = [p for stage in stages for p in plan.programs(stage)]
    rows = []
    with ProgressBar("compiling", len(programs), "programs") as bar:
        for program in programs:
            rows.append(_compiled(program, chip, compile_only))
            bar.advance(peak_gib=rows[-1]["peak_gib"])
    return {
        "topology": name, "chips": chips, "hbm_gib": round(chip.hbm / GIB, 2), "prompt": prompt,
        "mesh": c.mesh.model_dump(), "fits": all(row["fits"] for row in rows), "programs": rows,
        "recipe": {} if compile_only else recipe(c, prompt, chips, rows, reached),
    }  # fmt: skip


def shape_of(model: str) -> LlamaConfig:
    """The shape of a model: from its folder or .gguf file, else by its name.

    Raises:
      AstroError: when it is neither there nor one of the published shapes.
    """
    for part, published in PUBLISHED.items():
        if part in model.lower():
            return published()
    try:
        path = paths.resolve(model)
    except AstroError as e:
        raise AstroError(f"plan: {e}; published shapes are {', '.join(PUBLISHED)}") from e
    return checkpoint.read_config(path)


def _compiled(program: Program, chip: topology.Chip, compile_only: bool) -> Json:
    start = time.monotonic()
    row: Json = {"stage": program.stage, "program": program.name}
    held = size(program.held)
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        need = re.search(r"Used ([\d.]+)([GM]) of", str(e))
        peak = float(need[1]) / (1 if need[2] == "G" else 1024) if need else chip.hbm / GIB
        sizes = {"peak_gib": peak, "held_gib": held / GIB, "at_once_gib": peak + held / GIB}
        return row | {k: round(v, 2) for k, v in sizes.items()} | {"fits": False} | _took(start)
    m = compiled.memory_analysis()
    # A donated argument and its result are one array.
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    sizes = {
        "arguments_gib": m.argument_size_in_bytes, "temporaries_gib": m.temp_size_in_bytes, "peak_gib": peak,
        "held_gib": held, "at_once_gib": peak + held,
    }  # fmt: skip
    row |= {k: round(v / GIB, 2) for k, v in sizes.items()} | {"fits": peak + held <= chip.hbm} | _took(start)
    if compile_only:
        return row
    if (w := program.work) is not None:
        seconds = w.seconds(chip)
        row |= {
            "tflops": round(w.executed / 1e12, 3), "read_gb": round(w.read / 1e9, 3),
            "seconds": float(f"{seconds:.4g}"), "tokens_per_s": round(w.tokens / seconds),
            "max_mfu": round(w.mfu(chip), 3),
        }  # fmt: skip
    if (alone := program.unshared) is not None:
        row["unshared_tokens_per_s"] = round(alone.tokens / alone.seconds(chip))
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # libtpu does not print all that it compiles
        return row | {"collectives": None}
    moved = collectives.count(text, program.trips)
    row["links_s"] = float(f"{sum(m.bytes for m in moved.values()) / chip.links:.4g}")
    return row | {"collectives": {k: {"calls": m.calls, "gib": round(m.bytes / GIB, 3)} for k, m in moved.items()}}


def _took(start: float) -> Json:
    return {"compile_s": round(time.monotonic() - start, 1)}


def advice(found: Json) -> str:
    """What to change so that the programs that do not fit may."""
    ways = {
        "step": "lower sft.batch_size or sft.max_length, or set sft.remat_policy=full",
        "gradient": "lower grpo.micro_batch_size or grpo.max_length, or set grpo.remat_policy=full",
        "decode": "lower sampler.max_num_seqs, or set sampler.kv_cache_gib",
        "prefill": "lower sampler.max_num_seqs, or set sampler.kv_cache_gib",
        "pack": "lower sampler.max_num_seqs, or set sampler.kv_cache_gib",
    }
    parts = [
        f"{row['stage']} {row['program']} needs {row['at_once_gib']} of {found['hbm_gib']} GiB a chip: "
        f"{ways.get(row['program'], 'split the parameters further')}"
        for row in found["programs"]
        if not row["fits"]
    ]
    return "; ".join(parts) + "; or raise mesh.fsdp or mesh.tp on a larger slice"
