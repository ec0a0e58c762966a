"""A plan: a run's programs compiled for a TPU slice, with their memory, roofline and collectives."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Sequence

import jax

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, paths
from astro_jax.llama.config import LlamaConfig, llama3_1b, llama3_8b, llama3_70b, smollm2_135m
from astro_jax.mesh import make_mesh
from astro_jax.plan import collectives, topology
from astro_jax.plan.programs import Plan, Program, size
from astro_jax.plan.run_cost import run_cost
from astro_jax.progress import ProgressBar
from astro_jax.sampler.kv_cache import CacheLayout
from astro_jax.stages import PLANNED
from astro_jax.storage import Json

GIB = topology.GIB
USABLE = 0.95  # share of a chip's memory that `rows_that_fit` fills
# Published architectures by a substring of the model's name, so that a plan needs no weights.
PUBLISHED = {
    "llama-3.1-8b": llama3_8b, "llama-3.1-70b": llama3_70b, "llama-3.3-70b": llama3_70b, "llama-3.2-1b": llama3_1b,
    "smollm2-135m": smollm2_135m,
}  # fmt: skip


def plan_run(
    c: cfg.Config,
    topology_name: str,
    stages: Sequence[str] = PLANNED,
    prompt_tokens: int = 512,
    roofline_share: float = 0.4,
    compile_only: bool = False,
    compiles: bool = True,
    mean_length: float = 0.5,
) -> Json:
    """Compile the programs of some stages for a slice.

    Args:
      c: config of the run. The product of its mesh's axes must be the number of chips.
      topology_name: such as "v5p:4x4x8".
      stages: some of stages.PLANNED.
      prompt_tokens: length of a problem's prompt, the chat template included.
      roofline_share: share of the roofline's speed that the cost of the whole run assumes.
      compile_only: report memory and compile times only.
      compiles: whether to compile. Without it the programs have rooflines only, and `fits` is missing.
      mean_length: mean length of samples, as a share of the most that they may have.

    Returns:
      the object that `astro plan --json` prints. `topology`, `chips`, `hbm_gib` (of a chip, for programs), `mesh`,
      `prompt`, `fits`, `libtpu` (versions that compile the plan and the run). `programs`: one object a program, see
      `_compile_program`. `recipe`: see run_cost.run_cost.

    Raises:
      AstroError: for an unknown topology, a mesh of another size, or dimensions that the mesh does not divide.
    """
    if prompt_tokens < 1 or not 0 < roofline_share <= 1:
        raise AstroError("plan: --prompt must be at least 1, --reached above 0 and at most 1")
    if not 0 < mean_length <= 1:
        raise AstroError("plan: --mean-length must be above 0 and at most 1")
    chip, chips = topology.parse(topology_name)
    if (devices := c.mesh.num_devices) != chips:
        raise AstroError(
            f"plan: the mesh data x fsdp x tp has {devices} devices and {topology_name} has {chips} chips: set mesh.*"
        )
    config = model_config(c.model)
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp, devices=topology.get(topology_name).devices)
    plan = Plan(c, config, mesh, prompt_tokens, judge=judge_config(c))
    programs = [program for stage in stages for program in plan.programs(stage)]
    rows: list[Json] = []
    if compiles:
        with ProgressBar("compiling", len(programs), "programs") as bar:
            for program in programs:
                rows.append(_compile_program(program, chip, compile_only))
                bar.advance(peak_gib=rows[-1]["peak_gib"])
    else:
        rows = [{"stage": program.stage, "program": program.name} | _roofline(program, chip) for program in programs]
    return {
        "topology": topology_name, "chips": chips, "hbm_gib": round(chip.hbm_bytes / GIB, 2), "prompt": prompt_tokens,
        "mesh": c.mesh.model_dump(), "libtpu": libtpu_versions(), "programs": rows,
        "recipe": {} if compile_only else run_cost(c, prompt_tokens, chips, rows, roofline_share, mean_length),
    } | ({"fits": all(row["fits"] for row in rows)} if compiles else {})  # fmt: skip


def libtpu_versions() -> dict[str, str]:
    """Return the version of libtpu that compiles a plan, and the one that jax's extra `tpu` installs for a run."""
    requirements = importlib.metadata.requires("jax") or []
    run = next((r.partition(";")[0].strip() for r in requirements if r.startswith("libtpu")), "libtpu")
    return {"plan": importlib.metadata.version("libtpu"), "run": run.removeprefix("libtpu").strip("= ")}


def model_config(model: str) -> LlamaConfig:
    """Return the architecture of a model: a published one by name, else from the model's folder or .gguf file.

    Raises:
      AstroError: when neither exists.
    """
    for name, published in PUBLISHED.items():
        if name in model.lower():
            return published()
    try:
        path = paths.resolve(model)
    except AstroError as e:
        raise AstroError(f"plan: {e}; published shapes are {', '.join(PUBLISHED)}") from e
    return checkpoint.read_config(path)


def judge_config(c: cfg.Config) -> LlamaConfig | None:
    """Return the architecture of the model of `verify.judge`; None without one. Raises as `model_config`."""
    return None if c.verify.judge is None else model_config(c.verify.judge.model)


def _compile_program(program: Program, chip: topology.Chip, compile_only: bool) -> Json:
    """Compile a program and collect what the compiler reports.

    Returns:
      `stage`, `program` (its name), `compile_s`, and in GiB a chip `arguments_gib`, `temporaries_gib`, `peak_gib` (of
      the program), `held_gib` (arrays of the run that stay resident), `at_once_gib` (peak and resident arrays); `fits`.
      A program that the compiler refuses for its memory has no `arguments_gib` and `temporaries_gib`. Decoding also has
      `rows` and `rows_that_fit` (see `rows_that_fit`). Without `compile_only` also the fields of `_roofline` and
      `_collectives`.
    """
    start = time.monotonic()
    row: Json = {"stage": program.stage, "program": program.name}
    resident = size(program.resident)
    if program.lower is None:
        row |= _gib(arguments_gib=0, temporaries_gib=0, peak_gib=resident, held_gib=0, at_once_gib=resident)
        row |= {"fits": resident <= chip.hbm_bytes, "compile_s": 0.0}
        return row if compile_only else row | _roofline(program, chip)
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        used = re.search(r"(?:Used |memory required .*?\()([\d.]+)([GM])", str(e))
        peak = float(used[1]) * (GIB if used[2] == "G" else GIB / 1024) if used else chip.hbm_bytes
        row |= _gib(peak_gib=peak, held_gib=resident, at_once_gib=peak + resident)
        return row | {"fits": False, "compile_s": _seconds_since(start)}
    m = compiled.memory_analysis()
    assert m is not None  # libtpu and XLA for CPU both have this analysis
    # A donated argument and its result are one array.
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    row |= _gib(
        arguments_gib=m.argument_size_in_bytes, temporaries_gib=m.temp_size_in_bytes, peak_gib=peak,
        held_gib=resident, at_once_gib=peak + resident,
    )  # fmt: skip
    row |= {"fits": peak + resident <= chip.hbm_bytes, "compile_s": _seconds_since(start)}
    if program.layout is not None:
        fit = rows_that_fit(program.layout, program.row_bytes, peak + resident, chip)
        row |= {"rows": program.layout.num_seqs, "rows_that_fit": fit}
    return row if compile_only else row | _roofline(program, chip) | _collectives(compiled, program, chip)


def rows_that_fit(layout: CacheLayout, row_bytes: float, total: int, chip: topology.Chip) -> int:
    """Return the most rows whose caches fit in `USABLE` of a chip's memory, in whole prefix groups on each device.

    An estimate: the rest is for temporaries, which grow with the rows, but much less than the caches.

    Args:
      layout: of the compiled program.
      row_bytes: of the cache of a row, on one chip.
      total: bytes of the compiled program and the resident arrays, on one chip.
      chip: of the slice.
    """
    others = total - layout.num_seqs * row_bytes
    unit = layout.group_size * layout.devices
    return max(int((USABLE * chip.hbm_bytes - others) / row_bytes), 0) // unit * unit


def _roofline(program: Program, chip: topology.Chip) -> Json:
    """Return the roofline of a program that computes.

    Returns:
      `tflops` and `read_gb` of one call, a chip; `seconds` of the roofline, which leaves out the links between chips;
      `tokens_per_s` of the slice; `max_mfu`. For decoding also `unshared_tokens_per_s`, the speed if each sample had
      its own copy of its prefix. Empty for a program that only moves arrays.
    """
    fields: Json = {}
    if (cost := program.cost) is not None:
        seconds = cost.seconds(chip)
        fields |= {
            "tflops": round(cost.executed_flops / 1e12, 3), "read_gb": round(cost.hbm_bytes / 1e9, 3),
            "seconds": float(f"{seconds:.4g}"), "tokens_per_s": round(cost.tokens / seconds),
            "max_mfu": round(cost.mfu(chip), 3),
        }  # fmt: skip
    if (unshared := program.unshared_cost) is not None:
        fields["unshared_tokens_per_s"] = round(unshared.tokens / unshared.seconds(chip))
    return fields


def _collectives(compiled: jax.stages.Compiled, program: Program, chip: topology.Chip) -> Json:
    """Return the collectives of one call.

    Returns:
      `collectives`: calls and GiB by kind, or None when libtpu does not print the program. `links_s`: seconds for
      these bytes at the bandwidth of a chip's links.
    """
    if (text := _text(compiled)) is None:
        return {"collectives": None}
    stats = collectives.count(text, program.trip_count)
    seconds = sum(s.bytes for s in stats.values()) / chip.ici_bandwidth
    by_kind = {kind: {"calls": s.calls, "gib": round(s.bytes / GIB, 3)} for kind, s in stats.items()}
    return {"links_s": float(f"{seconds:.4g}"), "collectives": by_kind}


def _text(compiled: jax.stages.Compiled) -> str | None:
    """Return the text of a compiled program, or None when libtpu does not print it.

    libtpu then writes a stack trace of its own to standard error, which is not redirected by Python: hide it.
    """
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
            return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    finally:
        os.dup2(before, 2)
        os.close(before)


def _gib(**sizes: float) -> Json:
    return {name: round(value / GIB, 2) for name, value in sizes.items()}


def _seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 1)


def suggest_changes(plan: Json) -> str:
    """Return which config keys to change so that every program of a plan fits."""
    keys = {
        "gradient": "lower grpo.micro_batch_size or grpo.max_length, or set grpo.remat_policy=full",
        "decode": "lower sampler.max_num_seqs, or set sampler.kv_cache_gib",
        "prefill": "lower sampler.max_num_seqs, or set sampler.kv_cache_gib",
        "pack": "lower sampler.max_num_seqs, or set sampler.kv_cache_gib",
        "judge": "name a smaller verify.judge.model, lower sampler.max_num_seqs, or set sampler.kv_cache_gib",
    }

    def advice(row: Json) -> str:
        if row["program"] != "step":
            return keys.get(row["program"], "split the parameters over more chips")
        if row["stage"] == "base":
            return "lower base_sft.micro_batch_size or base_sft.max_length, or set base_sft.remat_policy"
        return "lower sft.micro_batch_size or sft.max_length, or set sft.remat_policy (--remat compares)"

    suggestions = [
        f"{row['stage']} {row['program']} needs {row['at_once_gib']} of {plan['hbm_gib']} GiB a chip: {advice(row)}"
        for row in plan["programs"]
        if not row["fits"]
    ]
    return "; ".join(suggestions) + "; or raise mesh.fsdp or mesh.tp on a larger slice"
