"""Completions of RL while it ran, from rollouts.jsonl: for `astro show --rollouts` and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from astro_jax import stage_folder
from astro_jax.errors import AstroError
from astro_jax.report.run_folder import RunFolder, is_number, read_lines
from astro_jax.report.selection import shorten
from astro_jax.stages import stages_of
from astro_jax.storage import Json

MAX_STEPS = 12  # of a stage in the page
MAX_CHARACTERS = 4000  # of a completion in the page
_STYLES = {"correct": "green", "wrong": "red", "unparsed": "yellow"}


def read(path: epath.PathLike, stage: str, step: int | None = None) -> list[Json]:
    """Return the groups of completions that a stage of RL has written at a step.

    Args:
      path: the folder of a run.
      step: from 1. None: the last step.

    Raises:
      AstroError: when the stage has no such step.
    """
    file = stage_folder.resolve(epath.Path(path), stage) / "rollouts.jsonl"
    groups = [group for group in read_lines(file) if is_number(group.get("step"))]
    if not groups:
        raise AstroError(f"{file}: no completions; `astro grpo` writes them, unless grpo.logged_groups is 0")
    last = max(group["step"] for group in groups)
    chosen = [group for group in groups if group["step"] == (last if step is None else step)]
    if not chosen:
        raise AstroError(f"{file}: no step {step}; the steps are {min(g['step'] for g in groups)} to {last}")
    return chosen


def render(groups: Sequence[Json]) -> Group:
    """Draw groups of completions: the problem, then each completion in a frame with its verdict."""
    parts: list[Text | Panel] = []
    for group in groups:
        parts.append(Text(f"step {group['step']}  {group['problem']}\n{group['prompt'].strip()}", style="bold"))
        if group["beginning"]:
            parts.append(Text(f"(begins inside a trace)\n{group['beginning'].rstrip()}", style="dim"))
        for c in group["completions"]:
            facts = [c["status"], f"reward {'none' if c['reward'] is None else format(c['reward'], 'g')}"]
            facts += [f"advantage {c['advantage']:+.2f}", f"{c['tokens']} tokens", f"{c['backtracks']} backtracks"]
            facts += [] if c["stopped"] else ["cut off"]
            style = _STYLES.get(c["status"], "magenta")
            title = Text(", ".join(facts))
            parts.append(Panel(Text(c["text"].strip()), title=title, title_align="left", border_style=style))
    return Group(*parts)


def for_page(run: RunFolder) -> dict[str, list[Json]]:
    """Return the first group of some steps of each stage of RL, evenly spaced; long texts are shortened."""
    found = {}
    for stage in stages_of("grpo"):
        file = run.folder(stage) / "rollouts.jsonl"
        first: dict[int, Json] = {}
        for group in read_lines(file):
            if is_number(group.get("step")):
                first.setdefault(group["step"], group)
        steps = sorted(first)
        count = min(MAX_STEPS, len(steps))
        chosen = [steps[round(k * (len(steps) - 1) / max(1, count - 1))] for k in range(count)]
        if chosen:
            found[stage] = [_shorten(first[step]) for step in chosen]
    return found


def _shorten(group: Json) -> Json:
    completions = [c | {"text": shorten(c["text"], MAX_CHARACTERS)} for c in group["completions"]]
    return group | {"completions": completions}
