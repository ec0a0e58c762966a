"""Evaluation of any model on suites, outside of a run (`astro eval MODEL --suite NAME`)."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from astro_jax import config as cfg
from astro_jax import mesh as meshes
from astro_jax import stage_folder, storage
from astro_jax.errors import AstroError, is_transient
from astro_jax.evaluate import responses, suites
from astro_jax.llama import checkpoint, paths
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.policy import Policy
from astro_jax.problems import suites as problem_suites
from astro_jax.problems.draws import Draws
from astro_jax.progress import log
from astro_jax.sampler import Engine
from astro_jax.types import Problem
from astro_jax.verify import Verifier

RESULTS = "results.json"
BOXED_PROMPT = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
_CPU_CACHE_GIB = 4  # of the KV cache on a CPU, where all devices share the memory of the machine


def settings_of(folder: epath.Path, of_run: cfg.Config | None) -> list[str]:
    """The settings with which a model should be asked, as overrides of a config.

    A model of a run has the chat format of the run, and reads the bare problem as in training. Another model has its
    chat template, where its tokenizer has one, and a prompt that asks for a box.

    Args:
      folder: of the model.
      of_run: `run_config` of the model.
    """
    if of_run is not None:
        system = [] if of_run.chat.system is None else [f"chat.system={json.dumps(of_run.chat.system)}"]
        return [f"chat.template={json.dumps(of_run.chat.template)}", *system]
    if folder.parent == paths.SHIPPED_MODELS:
        return []
    template = tokenizers.load(str(folder)).hf.chat_template is not None
    return [f"chat.template={json.dumps(template)}", f"eval.prompt={json.dumps(BOXED_PROMPT)}"]


def folder_name(model: str) -> str:
    """A name for the folder of a model's results: "quickstart--astro-rl" for runs/quickstart/astro-rl/model."""
    name = re.sub(r"^(\./)?(runs/)?|/+$", "", model).removesuffix("/model")
    return name.strip("/").replace("/", "--") or "model"


def run_config(model: epath.Path, run: epath.Path | None = None) -> cfg.Config | None:
    """The config of the run that made a model; None for a model of no run, or of a run of another version.

    Args:
      run: a run that keeps the model from another run; by default the folder in which the model lies.
    """
    path = (run or model.parent.parent) / "config.json"
    if not (model.parent / stage_folder.MANIFEST).exists() or not path.exists():
        return None
    try:
        # The budgets of a config that was written are scaled already.
        return cfg.parse(storage.read_json(path).get("config", {}) | {"scale": 1.0}, str(path))
    except AstroError as e:
        log(f"{path}: a run of another version, so its chat format and its training problems are not known ({e})")
        return None


def training_problems(draws: Draws) -> list[Problem]:
    """The problems that a run has searched, and its prompts of RL; empty where they cannot be drawn any more."""
    try:
        return [*{p.id: p for use in ("search", "rl") for p in draws.draw(use)}.values()]
    except AstroError as e:
        if is_transient(e):
            raise
        log(f"the training problems are not compared with the suites ({e})")
        return []


def run(
    c: cfg.Config, model: str, folder: epath.Path, of_run: cfg.Config | None, out: epath.Path,
    against: epath.Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a model on the suites of `c.eval.suites`, and write out/results.json and a folder for each suite.

    Args:
      c: the settings: seed, chat, mesh, attention, sampler, verify and eval.
      model: the name of the model: a checkpoint, a Hugging Face folder, a GGUF file, a shipped model or a hub id.
      folder: its files.
      of_run: `run_config` of the model.
      out: the folder of the results. What an earlier call has sampled there is kept.
      against: the folder of another evaluation, for paired differences.

    Returns:
      the content of results.json: `model`, `settings`, `suites` (suites.evaluate, by name) and, with `against`,
      `differences` by suite.

    Raises:
      AstroError: for a model or a suite that cannot be read, before anything is sampled.
    """
    responses.require_parquet()
    if (out / "config.json").exists():
        raise AstroError(f"out={out}: a run, whose {RESULTS} would be lost; choose another folder")
    loaded = [problem_suites.load(spec, c.eval.limit) for spec in c.eval.suites]
    if against is not None and not (against / RESULTS).exists():
        raise AstroError(f"--against {against}: no evaluation is there; give the out= of another `astro eval`")
    policy = load_policy(c, folder)
    training = [] if of_run is None else training_problems(Draws.of(of_run.problems, of_run.seed))
    settings = model_settings(c, model, folder)
    results: dict[str, Any] = {"model": model, "settings": settings, "suites": {}}
    with contextlib.closing(Verifier(c.verify)) as verifier:
        for suite in loaded:
            result = suites.evaluate(out / suite.name, suite, c.eval, policy, verifier, settings, training)
            report_doubts(result)
            results["suites"][suite.name] = result
    if against is not None:
        results["against"] = str(against)
        results["differences"] = differences(out, against, list(results["suites"]), c.verify.report_rule)
    storage.write_json(out / RESULTS, results)
    return results


def load_policy(c: cfg.Config, folder: epath.Path) -> Policy:
    """Load a model with an engine, onto the devices of `c.mesh`.

    Raises:
      AstroError: for a model that cannot be read, and a mesh of too many devices.
    """
    meshes.set_cpu_device_count(c.mesh.num_devices)
    mesh = meshes.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp)
    sharding = meshes.decode_sharding(mesh, c.attention)
    sampler = c.sampler
    if sampler.kv_cache_gib is None and jax.default_backend() == "cpu":
        sampler = sampler.model_copy(update={"kv_cache_gib": _CPU_CACHE_GIB})
    config, params = checkpoint.load(folder, sharding, jnp.dtype(c.sampler.dtype))
    engine = Engine.from_config(sampler, config, sharding, c.seed)
    return Policy(engine, engine.quantize(params), tokenizers.load(str(folder), c.chat))


def model_settings(c: cfg.Config, model: str, folder: epath.Path) -> dict[str, Any]:
    """What a result says about the model: name, hash of its files, chat format, seed, data type and versions."""
    return {
        "model": model, "model_digest": storage.fingerprint(folder), "chat": c.chat.model_dump(mode="json"),
        "seed": c.seed, "dtype": c.sampler.dtype, "quantization": c.sampler.quantization,
        "kv_cache_dtype": c.sampler.kv_cache_dtype, "versions": storage.versions(),
    }  # fmt: skip


def differences(out: epath.Path, other: epath.Path, names: Sequence[str], rule: Any) -> dict[str, Any]:
    """Paired differences between two evaluations, by suite. A suite that the other one lacks is left out."""
    shared = [name for name in names if (other / name / suites.ANSWERS).exists()]
    return {name: suites.compare(out / name, other / name, rule) for name in shared}


def report_doubts(result: dict[str, Any]) -> None:
    """Log what makes the figures of a suite doubtful."""
    name, overlap, gold = result["suite"], result["overlap"], result["gold_not_read"]
    if found := sum(n for key, n in overlap.items() if key != "compared"):
        log(f"{name}: {found} of {result['prompts']} problems overlap with the {overlap['compared']} training problems")
    if gold["count"]:
        first = ", ".join(repr(x["gold"]) for x in gold["first"][:3])
        log(f"{name}: {gold['count']} gold answers are not judged right in a box, such as {first}")
