"""Selects the held-out problems that the page shows, with the answer of each model as text and as a graph of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astro_jax.evaluate import answer_graph
from astro_jax.report.run_folder import RunFolder
from astro_jax.report.selection import PROMPT_CHARS, shorten, shuffled
from astro_jax.stages import MODELS
from astro_jax.storage import Json, Shards

ANSWER_CHARS = 4000
QUOTAS = {"astro": 8, "both": 5, "neither": 6, "direct": 5}  # problems of each outcome after RL


def held_out(run: RunFolder, ids: Sequence[Any] = ()) -> Json:
    """Answers of the models to the same held-out problems, with the count of each outcome after RL.

    The outcome says who solved a problem with the sampled answer: "astro" (only), "direct" (only), "both" or "neither".
    It compares the RL models when both were evaluated, else the SFT models, else it is None.

    Args:
      run: the run.
      ids: the problems to show, such as those that the page shows of another run. Problems that this run has not
        answered are left out. (): some problems of each outcome.

    Returns:
      {"models": [names], "stage": "rl", "sft" or None, "counts": {outcome: n},
      "problems": [{"id", "prompt", "outcome", "answers": {name: {"sampled": answer, "greedy": answer}}}]}. An answer
      has the fields of its record, and in the place of the text those of its graph (answer_graph.Graph).
    """
    stores = {name: Shards(run.folder(f"eval/{name}"), "answers") for name in MODELS}
    answers = {name: {row.get("problem_id"): row for row in store.read()} for name, store in stores.items()}
    answers = {name: rows for name, rows in answers.items() if rows}
    stage = next((s for s in ("rl", "sft") if f"astro-{s}" in answers and f"direct-{s}" in answers), None)
    common = shuffled(set.intersection(*(set(rows) for rows in answers.values()))) if answers else []
    outcomes = {i: _outcome(answers, stage, i) for i in common}
    selected = [i for i in ids if i in outcomes] or _select(outcomes)
    return {
        "models": list(answers),
        "stage": stage,
        "counts": {name: sum(o == name for o in outcomes.values()) for name in QUOTAS} if stage else {},
        "problems": [
            {
                "id": i,
                "prompt": shorten(next(iter(answers.values()))[i].get("prompt"), PROMPT_CHARS),
                "outcome": outcomes[i],
                "answers": {name: _answers(rows[i]) for name, rows in answers.items()},
            }
            for i in selected
        ],
    }


def _select(outcomes: dict[Any, str | None]) -> list[Any]:
    """Some problems of each outcome; the first ones where no outcome is known."""
    quotas = QUOTAS.items()
    selected = [i for name, quota in quotas for i in [i for i, o in outcomes.items() if o == name][:quota]]
    return selected or list(outcomes)[: sum(QUOTAS.values())]


def _outcome(answers: dict[str, dict[Any, Json]], stage: str | None, i: Any) -> str | None:
    if stage is None:
        return None
    astro, direct = (
        bool((answers[f"{kind}-{stage}"][i].get("sampled") or {}).get("correct")) for kind in ("astro", "direct")
    )
    return {(True, True): "both", (True, False): "astro", (False, True): "direct"}.get((astro, direct), "neither")


def _answers(row: Json) -> Json:
    return {mode: _answer(row[mode]) for mode in ("sampled", "greedy") if isinstance(row.get(mode), dict)}


def _answer(record: Json) -> Json:
    """One answer with its graph. The verdict on the answer is the verdict of the node at which the answer ends."""
    text = shorten(record.get("text"), ANSWER_CHARS)
    rights = record.get("behaviour", {}).get("rights", ())  # an older version has none
    graph = answer_graph.build(text, rights if text == record.get("text") else ())
    if graph.segments and (end := graph.segments[-1].node) != answer_graph.ROOT:
        graph.verdicts[end] = bool(record.get("correct"))
    return {k: v for k, v in record.items() if k not in ("text", "behaviour")} | graph._asdict()
