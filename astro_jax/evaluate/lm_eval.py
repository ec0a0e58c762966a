"""Export of suites' results in the JSON form of lm-evaluation-harness: results_DATE.json and samples_SUITE_DATE.jsonl.

The grading rules stand where the harness has filters: `exact_match,strict`. With n samples a problem, the value is the
mean over problems of the share of right answers, and `repeats` is n.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from astro_jax import storage
from astro_jax.evaluate import responses, suites

METRIC = "exact_match"


def export(out: epath.Path, destination: epath.Path, now: datetime.datetime | None = None) -> epath.Path:
    """Write the results of an evaluation (model_suites.run) in the harness's form.

    Args:
      out: the folder of the evaluation.
      destination: the folder to write to.
      now: the date in the names of the files; default the present.

    Returns:
      the path of results_DATE.json.

    Raises:
      AstroError: when `out` holds no evaluation.
    """
    results = storage.read_json(out / "results.json")
    now = now or datetime.datetime.now()
    date = now.isoformat().replace(":", "-")
    rows = {name: responses.read_parquet(out / name / suites.ANSWERS) for name in results["suites"]}
    model, settings = results["model"], results["settings"]
    record: dict[str, Any] = {
        "results": {}, "group_subtasks": {name: [] for name in rows}, "configs": {}, "versions": {}, "n-shot": {},
        "higher_is_better": {}, "n-samples": {},
        "config": {
            "model": "astro_jax", "model_args": f"pretrained={model},dtype={settings['dtype']}",
            "random_seed": settings["seed"], "package_versions": settings["versions"],
        },
        "date": now.timestamp(), "model_source": "astro_jax", "model_name": model,
        "model_name_sanitized": model.replace("/", "__"), "system_instruction": settings["chat"]["system"],
        "fewshot_as_multiturn": False,
    }  # fmt: skip
    for name, result in results["suites"].items():
        record["results"][name] = {"alias": name, **_scores(rows[name], list(result["rules"]))}
        record["configs"][name] = _config(name, result)
        record["versions"][name] = result["settings"]["suite_digest"]
        record["n-shot"][name] = 0
        record["higher_is_better"][name] = {METRIC: True}
        record["n-samples"][name] = {"original": result["prompts"] + result["too long"], "effective": result["prompts"]}
        storage.write_jsonl(destination / f"samples_{name}_{date}.jsonl", _samples(rows[name], result))
    path = destination / f"results_{date}.json"
    storage.write_json(path, record)
    return path


def _problems(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The rows of each problem."""
    return (list(group) for _, group in itertools.groupby(rows, key=lambda row: row["problem_id"]))


def _scores(rows: Sequence[Mapping[str, Any]], rules: Sequence[str]) -> dict[str, float]:
    """The mean and the standard error over problems, by each rule."""
    scores = {}
    for rule in rules:
        values = [float(np.mean([row[f"correct_{rule}"] for row in group])) for group in _problems(rows)]
        scores[f"{METRIC},{rule}"] = float(np.mean(values))
        scores[f"{METRIC}_stderr,{rule}"] = float(np.std(values, ddof=1) / len(values) ** 0.5) if values[1:] else 0.0
    return scores


def _config(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    settings, origin = result["settings"], result["settings"]["origin"]
    return {
        "task": name, "dataset_path": origin.get("dataset") or origin.get("path") or name,
        "test_split": origin.get("split"), "doc_to_text": settings["prompt"].replace("{problem}", "{{problem}}"),
        "doc_to_target": "{{answer}}", "output_type": "generate_until", "generation_kwargs": _generation(settings),
        "repeats": settings["n"], "num_fewshot": 0, "metric_list": [{"metric": METRIC, "aggregation": "mean"}],
        "metadata": {"version": settings["suite_digest"]},
    }  # fmt: skip


def _generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    temperature = settings["temperature"]
    return {"max_gen_toks": settings["max_tokens"], "do_sample": temperature > 0, "temperature": temperature}


def _samples(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One record for each problem and rule."""
    for i, group in enumerate(_problems(rows)):
        first = group[0]
        keys = [key for key in ("problem_id", "level", "subject") if first[key] is not None]
        doc = {"problem": first["prompt"], "answer": first["gold"]} | {key: first[key] for key in keys}
        prompt = result["settings"]["prompt"].replace("{problem}", first["prompt"])
        for rule in result["rules"]:
            yield {
                "doc_id": i, "doc": doc, "target": first["gold"],
                "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": _generation(result["settings"])}},
                "resps": [[row["response"] for row in group]],
                "filtered_resps": [row[f"answer_{rule}"] or "" for row in group],
                "filter": rule, "metrics": [METRIC], METRIC: float(np.mean([row[f"correct_{rule}"] for row in group])),
                "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)), "prompt_hash": _hash(prompt),
                "target_hash": _hash(first["gold"]),
            }  # fmt: skip


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
