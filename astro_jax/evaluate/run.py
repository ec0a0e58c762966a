"""One model on the held-out problems: sampled at temperature 1, greedy, and by majority vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from etils import epath

from astro_jax import config as cfg
from astro_jax.evaluate.metrics import majority, rate
from astro_jax.policy import Policy
from astro_jax.progress import ProgressBar
from astro_jax.sampler import Completion, SamplingParams
from astro_jax.storage import Json, Shards
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier


def run(
    folder: epath.Path, name: str, problems: Sequence[Problem], c: cfg.Eval, policy: Policy, verifier: Verifier
) -> dict[str, Any]:
    """Answer every problem once by sampling and once greedily; shards `folder`/NAME-*.jsonl.

    Returns:
      the model's entry in results.json. Tokens, backtracks, valid and truncated rates are of the sampled answers;
      the valid rate counts the answers whose every step, also in branches that were given up, is true and allowed.
    """
    store = Shards(folder, name)
    for i, wave, bar in missing(store, name, problems, c.shard_size):
        sampled, greedy = (answers(name, wave, c, policy, verifier, 1, t) for t in (1.0, 0.0))
        store.write(
            i,
            (
                {"problem_id": p.id, "prompt": p.prompt, "sampled": s[0], "greedy": g[0]}
                for p, s, g in zip(wave, sampled, greedy, strict=True)
            ),
        )
        bar.advance(len(wave))
    return summarize(list(store.read()))


def missing(
    store: Shards, label: str, problems: Sequence[Problem], size: int
) -> Iterator[tuple[int, Sequence[Problem], ProgressBar]]:
    """The waves of `size` problems that have no shard yet, by number, under a bar that the caller advances."""
    waves = [problems[i : i + size] for i in range(0, len(problems), size)]
    done = sum(len(wave) for i, wave in enumerate(waves) if store.has(i))
    with ProgressBar(label, len(problems), "problems", done) as bar:
        for i, wave in enumerate(waves):
            if not store.has(i):
                yield i, wave, bar


def summarize(records: Sequence[Json]) -> dict[str, Any]:
    """The entry in results.json of a model's records."""
    sampled = [r["sampled"] for r in records]

    def mean(key: str) -> float:
        return round(sum(float(s[key]) for s in sampled) / len(sampled), 4)

    return {
        "pass@1": rate([s["correct"] for s in sampled]),
        "greedy": rate([r["greedy"]["correct"] for r in records]),
        "mean_tokens": mean("tokens"),
        "mean_backtracks": mean("backtracks"),
        "valid_rate": mean("valid"),
        "truncated_rate": mean("truncated"),
    }


def vote(
    name: str, problems: Sequence[Problem], c: cfg.Eval, policy: Policy, verifier: Verifier, k: int
) -> dict[str, Any]:
    """maj@k: the share of problems whose most common answer among k samples is right, and the tokens spent for it."""
    with ProgressBar(f"{name} vote", k * len(problems), "answers") as bar:
        every = answers(f"{name}/vote", problems, c, policy, verifier, k, 1.0, bar.advance)
    right = [_won(each) for each in every]
    tokens = sum(a["tokens"] for each in every for a in each) / len(problems)
    return {"k": k} | rate(right) | {"mean_tokens": round(tokens, 4)}


def answers(
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
    """n judged answers to each problem; `use` says by which of the verifier's rules."""
    requests = [policy.request(p.prompt, n, "eval", name, p.id) for p in problems]
    sampling = SamplingParams(max_tokens=c.max_tokens, temperature=temperature)
    samples = policy.generate(requests, sampling, progress)
    responses = [policy.response(p, s) for p, each in zip(problems, samples, strict=True) for s in each]
    found = map(_judged, responses, verifier.judge(responses, use), (s for each in samples for s in each))
    return [[next(found) for _ in each] for each in samples]


def _won(answers: Sequence[Json]) -> bool:
    """Whether the most common answer is right."""
    winner = majority([a["answer"] for a in answers])
    return any(a["correct"] for a in answers if a["answer"] == winner)


def _judged(response: Response, verdict: Verdict, sample: Completion) -> Json:
    return {
        "text": response.text,
        "correct": verdict.correct,
        "answer": verdict.answer,
        "tokens": len(sample.token_ids),
        "backtracks": verdict.backtracks,
        "valid": verdict.valid,
        "truncated": not sample.stopped,
    }
