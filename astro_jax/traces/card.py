"""The data card of the SFT sets, as Markdown and as JSON: the examples, their origin, and what each filter left."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from huggingface_hub import DatasetCardData

from astro_jax import markdown, storage
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.storage import Json, Shards

SETS = {"astro": "ASTRO: solutions that reflect and go back", "direct": "Direct: the control, solutions without search"}
MARKDOWN_FILE, JSON_FILE = "README.md", "card.json"  # the two files of a card
_BATCH = 256  # examples that are tokenized at once
_SAMPLES = 10  # examples that a card shows
_BINS, _BAR_WIDTH = 12, 40  # of the histogram of lengths


def write(
    folder: epath.Path, counts: Json, trees: Shards, tokenizer: Tokenizer, origin: Json, problems: Json | None = None
) -> None:
    """Write README.md and card.json into a finished traces folder.

    Args:
      counts: the counts that `dataset.run` returns.
      trees: the store that the sets were made from. The card holds a hash of its records that does not depend on their
        order.
      origin: the origin of the sets: seed, model and config hash.
      problems: how many problems each filter before the search left. None where problems were not filtered.
    """
    files = {name: folder / f"{name}.jsonl" for name in SETS}
    sets = {name: _describe(storage.read_jsonl(path), tokenizer) for name, path in files.items()}
    n = sets["astro"]["examples"]
    drawn = random.Random(f"{origin['seed']}/card").sample(range(n), min(_SAMPLES, n))
    samples = {i: e for i, e in enumerate(storage.read_jsonl(files["astro"])) if i in drawn}
    data = {
        "origin": origin | {"trees_sha256": _digest(trees)},
        "versions": storage.versions(),
        "problems": problems,
        "counts": counts,
        "sets": sets,
        "samples": [samples[i] for i in drawn],
    }
    storage.write_json(folder / JSON_FILE, data)
    storage.write_text(folder / MARKDOWN_FILE, text(data, "jsonl"))


def text(data: Json, suffix: str) -> str:
    """A card in Markdown. By its header, `datasets` finds the files NAME.`suffix` in the same folder."""
    header = DatasetCardData(configs=[{"config_name": name, "data_files": f"{name}.{suffix}"} for name in SETS])
    origin = data["origin"]
    blocks = [
        f"---\n{header.to_yaml()}\n---",
        "# Chains of thought that search",
        f"Made by astro_jax from search trees of `{origin['model']}`, by ASTRO "
        "([arXiv 2507.00417](https://arxiv.org/abs/2507.00417)).",
        *(f"- `{name}.{suffix}`: {title}, {data['sets'][name]['examples']:,} examples" for name, title in SETS.items()),
        "## What each filter left",
        markdown.table(("what", "count"), _rows({"problems": data["problems"] or {}} | data["counts"])),
    ]
    for name, described in data["sets"].items():
        blocks += [f"## {SETS[name].partition(':')[0]}", _set_summary(described)]
    blocks += [
        f"## Samples\n\n{len(data['samples'])} of ASTRO's examples, drawn at random.",
        *map(_sample, data["samples"]),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    blocks += ["## Origin", markdown.table(("what", "value"), origin.items()), f"Versions: {versions}."]
    return "\n\n".join(blocks) + "\n"


def _digest(trees: Shards) -> str:
    digests = sorted(hashlib.sha256(line).hexdigest() for line in trees.read_lines())
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _describe(examples: Iterable[Json], tokenizer: Tokenizer) -> Json:
    tokens: list[int] = []
    ks: Counter[int] = Counter()
    stream = iter(examples)
    while batch := list(itertools.islice(stream, _BATCH)):
        responses = tokenizer.count_after([example["response"] for example in batch])
        prompts = [len(tokenizer.prompt(example["prompt"])) for example in batch]
        tokens += [prompt + response + 1 for prompt, response in zip(prompts, responses, strict=True)]  # 1: the end
        ks.update(example["k"] for example in batch)
    return {
        "examples": len(tokens),
        "by_k": {str(k): n for k, n in sorted(ks.items())},
        "tokens": sum(tokens),
        "longest": max(tokens, default=0),
        "lengths": _histogram(tokens),
    }


def _histogram(values: Sequence[int]) -> list[list[int]]:
    """[low, high, count] of bins of equal width from 0 to the largest value, `high` included."""
    width = max(1, math.ceil((max(values, default=0) + 1) / _BINS))
    bins = Counter(v // width for v in values)
    return [[i * width, (i + 1) * width - 1, bins[i]] for i in range(max(bins, default=-1) + 1)]


def _set_summary(described: Json) -> str:
    """The numbers of one set: a sentence, a table by k, and a histogram of lengths."""
    mean = described["tokens"] / max(described["examples"], 1)
    summary = (
        f"{described['examples']:,} examples, {described['tokens']:,} tokens (with the prompt and the end token): "
        f"{mean:.1f} each, {described['longest']:,} at most."
    )
    most = max((n for *_, n in described["lengths"]), default=0)
    bars = [[f"{a} to {b}", n, "█" * round(_BAR_WIDTH * n / most)] for a, b, n in described["lengths"]]
    by_k = markdown.table(("k (backtracks)", "examples"), described["by_k"].items())
    return "\n\n".join([summary, by_k, markdown.table(("tokens", "examples", ""), bars)])


def _sample(example: Json) -> str:
    """One example as an indented block, so that no text of a model is read as Markdown."""
    lines = f"{example['prompt'].rstrip()}\n\n{example['response'].rstrip()}".splitlines()
    problem = json.dumps(example["problem_id"])
    return "\n".join([f"Problem {problem}, k = {example['k']}:", "", *(f"    {line}" for line in lines)])


def _rows(counts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested counts to one row a number: {"a": {"b": 1}} becomes [("a: b", 1)]."""
    rows: list[tuple[str, Any]] = []
    for key, value in counts.items():
        rows += _rows(value, f"{prefix}{key}: ") if isinstance(value, dict) else [(prefix + key, value)]
    return rows
