"""The data card of the SFT sets: what was made, from what, and what each filter left. Markdown, and its JSON twin."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from etils import epath

from astro_jax import storage
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.storage import Json, Shards
from astro_jax.traces.dataset import length

SETS = {"astro": "ASTRO: solutions that reflect and go back", "direct": "Direct: the control, solutions without search"}
TEXT, DATA = "README.md", "card.json"
_SAMPLES, _BINS, _BAR = 10, 12, 40


def write(
    folder: epath.Path, counts: Json, trees: Shards, tokenizer: Tokenizer, origin: Json, problems: Json | None = None
) -> None:
    """Write the card of a finished traces folder, README.md and card.json.

    Args:
      counts: of dataset.run.
      trees: the store that the sets were made from; the card holds a hash of its records, whatever their order.
      origin: seed, model, config hash: where the sets come from.
      problems: how many problems each filter before the search left, where somebody has counted.
    """
    examples = {name: list(storage.read_jsonl(folder / f"{name}.jsonl")) for name in SETS}
    draw = random.Random(f"{origin['seed']}/card")
    data = {
        "origin": origin | {"trees_sha256": _digest(trees)},
        "versions": storage.versions(),
        "problems": problems,
        "counts": counts,
        "sets": {name: _describe(each, tokenizer) for name, each in examples.items()},
        "samples": draw.sample(examples["astro"], min(_SAMPLES, len(examples["astro"]))),
    }
    storage.write_json(folder / DATA, data)
    storage.write_text(folder / TEXT, text(data, "jsonl"))


def text(data: Json, suffix: str) -> str:
    """A card in Markdown, with the header by which `datasets` finds the files NAME.`suffix` beside it."""
    head = {"configs": [{"config_name": name, "data_files": f"{name}.{suffix}"} for name in SETS]}
    origin = data["origin"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        "# Chains of thought that search",
        f"Made by astro_jax from search trees of `{origin['model']}`, by ASTRO "
        "([arXiv 2507.00417](https://arxiv.org/abs/2507.00417)).",
        *(f"- `{name}.{suffix}`: {what}, {data['sets'][name]['examples']:,} examples" for name, what in SETS.items()),
        "## What each filter left",
        _table(("what", "count"), _rows({"problems": data["problems"] or {}} | data["counts"])),
    ]
    for name, described in data["sets"].items():
        parts += [f"## {SETS[name].partition(':')[0]}", _set(described)]
    parts += [
        f"## Samples\n\n{len(data['samples'])} of ASTRO's examples, drawn at random.",
        *map(_sample, data["samples"]),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    parts += ["## Origin", _table(("what", "value"), origin.items()), f"Versions: {versions}."]
    return "\n\n".join(parts) + "\n"


def _digest(trees: Shards) -> str:
    each = sorted(hashlib.sha256(json.dumps(r, sort_keys=True).encode()).hexdigest() for r in trees.read())
    return hashlib.sha256("".join(each).encode()).hexdigest()


def _describe(examples: Sequence[Json], tokenizer: Tokenizer) -> Json:
    tokens = [length(e, tokenizer) for e in examples]
    return {
        "examples": len(examples),
        "by_k": {str(k): n for k, n in sorted(Counter(e["k"] for e in examples).items())},
        "tokens": sum(tokens),
        "longest": max(tokens, default=0),
        "lengths": _histogram(tokens),
    }


def _histogram(values: Sequence[int]) -> list[list[int]]:
    """[from, to, how many] of bins of one width from 0 to the largest value."""
    width = max(1, math.ceil((max(values, default=0) + 1) / _BINS))
    found = Counter(v // width for v in values)
    return [[i * width, (i + 1) * width - 1, found[i]] for i in range(max(found, default=-1) + 1)]


def _set(described: Json) -> str:
    mean = described["tokens"] / max(described["examples"], 1)
    told = (
        f"{described['examples']:,} examples, {described['tokens']:,} tokens (with the prompt and the end token): "
        f"{mean:.1f} each, {described['longest']:,} at most."
    )
    most = max((n for *_, n in described["lengths"]), default=0)
    bars = [[f"{a} to {b}", n, "█" * round(_BAR * n / most)] for a, b, n in described["lengths"]]
    by_k = _table(("k, how often it goes back", "examples"), described["by_k"].items())
    return "\n\n".join([told, by_k, _table(("tokens", "examples", ""), bars)])


def _sample(example: Json) -> str:
    """Indented, so that nothing a model wrote is read as Markdown."""
    lines = f"{example['prompt'].rstrip()}\n\n{example['response'].rstrip()}".splitlines()
    name = json.dumps(example["problem_id"])
    return "\n".join([f"Problem {name}, k = {example['k']}:", "", *(f"    {line}" for line in lines)])


def _rows(counts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A nested table of counts, one row a number."""
    rows: list[tuple[str, Any]] = []
    for key, value in counts.items():
        rows += _rows(value, f"{prefix}{key}: ") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
