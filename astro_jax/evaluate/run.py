"""Evaluation of one model on held-out problems: pass@1, greedy and majority vote."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from etils import epath

from astro_jax import config as cfg
from astro_jax.evaluate import behaviour, error_classes, suites
from astro_jax.evaluate.behaviour import Behaviour
from astro_jax.evaluate.metrics import success_rate
from astro_jax.evaluate.statistics import majority_is_correct
from astro_jax.policy import Policy
from astro_jax.progress import ProgressBar
from astro_jax.sampler import Completion, SamplingParams
from astro_jax.storage import Json, Shards
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier

ANSWERS = "answers"  # the store of a model's answers, in the folder of its evaluation


def run(
    folder: epath.Path, name: str, problems: Sequence[Problem], c: cfg.Eval, policy: Policy, verifier: Verifier
) -> dict[str, Any]:
    """Answer each problem once at temperature 1 and once greedily.

    Writes one shard for each `c.shard_size` problems: `folder`/answers-*.jsonl. A shard that exists is not made again.

    Args:
      name: of the model, for the random draws and the progress bar.

    Returns:
      the entry of the model in results.json (see `summarize`).
    """
    store = Shards(folder, ANSWERS)
    for index, shard, bar in unfinished_shards(store, name, problems, c.shard_size):
        sampled, greedy = (
            _describe(shard, [group[0] for group in sample_and_judge(name, shard, c, policy, verifier, 1, t)], verifier)
            for t in (1.0, 0.0)
        )
        records = (
            {"problem_id": problem.id, "prompt": problem.prompt, "sampled": s, "greedy": g}
            for problem, s, g in zip(shard, sampled, greedy, strict=True)
        )
        store.write(index, records)
        bar.advance(len(shard))
    return summarize(list(store.read()))


def unfinished_shards(
    store: Shards, label: str, problems: Sequence[Problem], shard_size: int
) -> Iterator[tuple[int, Sequence[Problem], ProgressBar]]:
    """Split the problems into shards, and yield the shards that `store` does not hold yet.

    Yields:
      (index of the shard, its problems, a progress bar that the caller advances).
    """
    shards = [problems[i : i + shard_size] for i in range(0, len(problems), shard_size)]
    done = sum(len(shard) for index, shard in enumerate(shards) if store.has(index))
    with ProgressBar(label, len(problems), "problems", done) as bar:
        for index, shard in enumerate(shards):
            if not store.has(index):
                yield index, shard, bar


def _describe(problems: Sequence[Problem], records: Sequence[Json], verifier: Verifier) -> list[Json]:
    """Add to each record the `behaviour` of the answer, and the class of its `error`, None for a right answer.

    An answer is right by another rule only where the task has several (suites.rules_of).
    """
    texts = [Response(p, r["text"], not r["truncated"]) for p, r in zip(problems, records, strict=True)]
    wrong = [i for i, r in enumerate(records) if not r["correct"]]
    rules = suites.rules_of(problems)
    verdicts = [verifier.grade([texts[i] for i in wrong], rule) for rule in rules] if len(rules) > 1 else []
    errors = {
        i: error_classes.classify(*texts[i], records[i]["answer"], any(of_rule[j].correct for of_rule in verdicts))
        for j, i in enumerate(wrong)
    }
    return [
        r | {"behaviour": dataclasses.asdict(behaviour.measure(t.problem, t.text)), "error": errors.get(i)}
        for i, (r, t) in enumerate(zip(records, texts, strict=True))
    ]


def summarize(records: Sequence[Json]) -> dict[str, Any]:
    """The entry of a model in results.json, from the records of its shards.

    Returns:
      pass@1 and greedy with their intervals. mean_tokens, mean_backtracks, valid_rate and truncated_rate describe the
      answers sampled at temperature 1. valid_rate is the share of the answers whose every step is true and allowed,
      also in branches that the answer left. `behaviour` (behaviour.summarize) and `errors` (error_classes.summarize)
      are missing where an older version has written one of the shards.
    """
    sampled = [r["sampled"] for r in records]

    def mean(key: str) -> float:
        return round(sum(float(s[key]) for s in sampled) / len(sampled), 4)

    entry = {
        "pass@1": success_rate([s["correct"] for s in sampled]),
        "greedy": success_rate([r["greedy"]["correct"] for r in records]),
        "mean_tokens": mean("tokens"),
        "mean_backtracks": mean("backtracks"),
        "valid_rate": mean("valid"),
        "truncated_rate": mean("truncated"),
    }
    if all("behaviour" in s for s in sampled):
        behaviours = [Behaviour.from_json(s["behaviour"]) for s in sampled]
        entry["behaviour"] = behaviour.summarize(behaviours, [s["correct"] for s in sampled])
        entry["errors"] = error_classes.summarize([s["error"] for s in sampled if s["error"]], len(sampled))
    return entry


def solved(folder: epath.Path, mode: Literal["sampled", "greedy"] = "sampled") -> dict[str, float]:
    """Read 1.0 for each problem that a model has solved, else 0.0, by the problem's id; {} before its evaluation."""
    return {row["problem_id"]: float(row[mode]["correct"]) for row in Shards(folder, ANSWERS).read()}


def majority_vote(
    name: str, problems: Sequence[Problem], c: cfg.Eval, policy: Policy, verifier: Verifier, k: int
) -> dict[str, Any]:
    """maj@k: the share of problems whose most common answer among k samples is correct (arXiv 2203.11171).

    The samples are drawn anew: their random draws differ from the draws of pass@1.

    Returns:
      k, the rate with its interval, and mean_tokens: the tokens of all k answers to a problem, over the problems.
    """
    with ProgressBar(f"{name} vote", k * len(problems), "answers") as bar:
        groups = sample_and_judge(f"{name}/vote", problems, c, policy, verifier, k, 1.0, bar.advance)
    outcomes = [majority_is_correct([a["answer"] for a in group], [a["correct"] for a in group]) for group in groups]
    tokens = sum(a["tokens"] for group in groups for a in group) / len(problems)
    return {"k": k} | success_rate(outcomes) | {"mean_tokens": round(tokens, 4)}


def sample_and_judge(
    name: str,
    problems: Sequence[Problem],
    c: cfg.Eval,
    policy: Policy,
    verifier: Verifier,
    n: int,
    temperature: float,
    progress: Callable[[int], None] | None = None,
    use: Literal["reward", "report"] = "report",
) -> list[list[Json]]:
    """Sample n answers to each problem and judge them.

    Args:
      name: names the random draws, together with the id of the problem. The size of a shard does not change them.
      progress: called with the number of completions that have finished since the last call.
      use: the rule of the verifier: verify.reward_rule or verify.report_rule.

    Returns:
      for each problem a list of n records (see `_record`).
    """
    requests = [policy.request(p.prompt, n, "eval", name, p.id) for p in problems]
    sampling = SamplingParams(max_tokens=c.max_tokens, temperature=temperature)
    groups = policy.generate(requests, sampling, progress)
    responses = [policy.response(p, s) for p, group in zip(problems, groups, strict=True) for s in group]
    completions = (completion for group in groups for completion in group)
    records = map(_record, responses, verifier.judge(responses, use), completions)
    return [[next(records) for _ in group] for group in groups]


def _record(response: Response, verdict: Verdict, completion: Completion) -> Json:
    """One judged answer, as it stands in a shard."""
    return {
        "text": response.text,
        "correct": verdict.correct,
        "answer": verdict.answer,
        "tokens": len(completion.token_ids),
        "backtracks": verdict.backtracks,
        "valid": verdict.valid,
        "truncated": not completion.stopped,
    }
