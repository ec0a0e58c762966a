"""What a run would draw from its sources of problems (`astro problems`)."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.problems import source
from astro_jax.problems.draws import Draws
from astro_jax.verify import Verifier


def describe(c: cfg.Config) -> dict[str, Any]:
    """Describe the problems that a run of a config draws from.

    Returns:
      The counts of the problem set, the prompts of RL that are searched too, the answers that the verifier can only
      compare as text, quartiles of the prompts' lengths in characters, and three sample problems.

    Raises:
      AstroError: if a source cannot be read, or has fewer problems than the config asks for.
    """
    if not source.has_source(c.problems):
        raise AstroError(
            "problems: Countdown's are made by its rules; set problems.path, dataset, gym or sources to see a source"
        )
    draws = Draws.of(c.problems, c.seed)
    searched, rl, _ = map(draws.draw, cfg.USES)
    problems = draws.problem_set.problems
    tasks = Counter(p.meta["task"] for p in problems if p.task == "gym")
    math = [p for p in problems if p.task == "math"]
    with contextlib.closing(Verifier(c.verify)) as verifier:
        readable = verifier.readable([p.answer for p in math])
    unreadable = [p.answer for p, can_read in zip(math, readable, strict=True) if not can_read]
    lengths = sorted(len(p.prompt) for p in problems)
    return {
        "source": ", ".join(draws.problem_set.training_groups),
        "task": ", ".join(dict.fromkeys(p.task for p in problems)),
        **draws.counts(*cfg.USES),
        **({"of tasks": dict(tasks)} if tasks else {}),
        "RL prompts that are searched": len({p.id for p in searched} & {p.id for p in rl}),
        "answers compared as text": {"count": len(unreadable), "first": unreadable[:5]},
        "characters of a prompt": {f"{q}%": lengths[(len(lengths) - 1) * q // 100] for q in (0, 25, 50, 75, 100)},
        "samples": [{"problem": p.prompt, "answer": p.answer} for p in searched[:3]],
    }


def format_description(description: dict[str, Any]) -> str:
    """Format a description (describe) for people."""
    lines = []
    for key, value in description.items():
        if key != "samples":
            lines += _lines(key, value)
    for sample in description["samples"]:
        lines.append(f"\n{sample['problem']}\n  = {sample['answer']}")
    return "\n".join(lines)


def _lines(key: str, value: Any) -> list[str]:
    """Write one entry: a mapping in one line, and a mapping of mappings with one line for each of them."""
    if not isinstance(value, dict):
        return [f"{key:>26}  {value}"]
    flat = ", ".join(f"{k} {v}" for k, v in value.items() if not isinstance(v, dict))
    inner = [line for k, v in value.items() if isinstance(v, dict) and v for line in _lines(f"{key} {k}", v)]
    return [f"{key:>26}  {flat or 'none'}", *inner] if flat or not inner else inner
