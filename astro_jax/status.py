"""How far a run has come, how fast it is, and what it has cost so far (`astro status`)."""

from __future__ import annotations

import time

from etils import epath

from astro_jax import config as cfg
from astro_jax import sessions, stage_folder, stage_inputs, storage
from astro_jax.errors import AstroError
from astro_jax.storage import Json

RECENT_STEPS = 20  # whose speed is shown
LOST = {
    "start_h": "start", "compile_h": "compiling", "restore_h": "reading what was saved",
    "wait_h": "waiting for other processes", "redone_h": "work that a kill undid",
}  # fmt: skip


def describe(run: epath.Path, price: float | None = None) -> Json:
    """Describe the progress of a run, from its files alone: the run may be in a bucket and on other machines.

    Args:
      run: the folder of the run.
      price: of one chip for one hour; None to leave out the cost.

    Returns:
      `run`; `stages`: finished and all; `at`: the stage in progress with its `step`, `steps_per_s` and `seconds_ago`
      of the last step, or None; the fields of `sessions.summary`; with a price also `cost`.

    Raises:
      AstroError: when the folder is no run.
    """
    if not (run / "config.json").exists():
        raise AstroError(f"{run}: not the folder of a run (no config.json); name the folder that `out` names")
    c = cfg.parse(storage.read_json(run / "config.json")["config"])
    names = stage_inputs.planned(c)
    finished = [name for name in names if stage_folder.digest_of(stage_folder.resolve(run, name)) is not None]
    begun = [name for name in names if name not in finished and (run / name / stage_folder.INPUTS).exists()]
    totals = sessions.summary(sessions.read(run))
    cost = {} if price is None else {"cost": round(totals["chip_hours"] * price, 2)}
    return (
        {
            "run": str(run),
            "stages": {"finished": len(finished), "all": len(names)},
            "at": _at(run, begun[0]) if begun else None,
        }
        | totals
        | cost
    )


def _at(run: epath.Path, stage: str) -> Json:
    """The stage in progress, with the speed of its last steps where it trains."""
    path = run / stage / "timings.jsonl"
    records = list(storage.read_jsonl(path, allow_truncated=True)) if path.exists() else []
    if not records:
        return {"stage": stage}
    seconds = sum(r["seconds"] for r in records[-RECENT_STEPS:])
    return {
        "stage": stage,
        "step": records[-1]["step"],
        "steps_per_s": round(len(records[-RECENT_STEPS:]) / seconds, 4) if seconds else None,
        "seconds_ago": round(time.time() - path.stat().mtime),
    }


def render(status: Json) -> str:
    """Format a description (`describe`) as a few lines."""
    stages, at = status["stages"], status["at"]
    lines = [f"{status['run']}: {stages['finished']} of {stages['all']} stages finished"]
    if at is not None:
        speed = f", {at['steps_per_s']:g} steps/s" if at.get("steps_per_s") else ""
        step = f" at step {at['step']:,}{speed}, {at['seconds_ago']:,} s ago" if "step" in at else ""
        lines.append(f"in progress: {at['stage']}{step}")
    running = "one runs now" if status["running"] else "none runs now"
    cost = f", cost {status['cost']:,g}" if "cost" in status else ""
    hours = f"{status['hours']:,g} hours, {status['chip_hours']:,g} chip-hours{cost}"
    lines.append(f"{status['sessions']} commands, {running}; {hours}")
    if status["goodput"] is not None:
        lost = ", ".join(f"{what} {status[key]:g}" for key, what in LOST.items())
        lines.append(f"goodput {status['goodput']:.3f}; hours lost: {lost}")
    return "\n".join(lines)
