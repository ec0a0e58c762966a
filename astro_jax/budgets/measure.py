"""Samples the answers and searches the trees of `astro budgets`. A command that was stopped goes on where it was.

OUT/SET/MODEL/answers-000-*.jsonl  n answers to each problem; further blocks of n follow where answers are short
OUT/SET/MODEL/search/              the trees, as in the search stage of a run
OUT/budgets.json                   the figures; budgets.md and budgets.html show them
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from astro_jax import config as cfg
from astro_jax import stage_folder, storage
from astro_jax.budgets import figures
from astro_jax.budgets.models import Model
from astro_jax.errors import AstroError
from astro_jax.evaluate import model_suites, responses
from astro_jax.evaluate import run as evaluation
from astro_jax.policy import Policy
from astro_jax.problems import lengths
from astro_jax.problems import suites as problem_suites
from astro_jax.problems.draws import Draws
from astro_jax.problems.suites import Suite
from astro_jax.search import cost
from astro_jax.search import run as searching
from astro_jax.search.store import shards
from astro_jax.storage import Json, Shards
from astro_jax.types import Problem
from astro_jax.verify import Verifier

HELD_OUT = "held-out"  # the name of a run's held-out problems, beside those of suites
RESULTS = "budgets.json"
Records = dict[str, list[Json]]  # the answers to each problem, by its id


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one model has generated for one set of problems.

    Attributes:
      answers: by problem.
      prompt_tokens: of each prompt, by problem.
      solved_at: of each tree, by problem (`Tree.solved_at`); None for a model that was not searched with.
      search_rates: the fields of `figures.Trees` that are rates.
      max_tokens: the token budget of a tree.
    """

    answers: Records
    prompt_tokens: Mapping[str, int]
    solved_at: Mapping[str, int] | None = None
    search_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    max_tokens: int = 0

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of an answer."""
        return float(np.mean([a["tokens"] for group in self.answers.values() for a in group]))

    def of(self, ids: Sequence[str]) -> tuple[figures.Answers, figures.Trees | None]:
        """The answers and trees of some problems, for `figures.compare`."""
        groups = [self.answers[i] for i in ids]
        tokens, correct = (np.asarray([[a[key] for a in group] for group in groups]) for key in ("tokens", "correct"))
        texts = [[a["answer"] for a in group] for group in groups]
        answers = figures.Answers(tokens, correct, texts, float(np.mean([self.prompt_tokens[i] for i in ids])))
        if self.solved_at is None:
            return answers, None
        solved_at = np.asarray([self.solved_at.get(i, 0) for i in ids])  # 0: the prompt leaves no room for a tree
        return answers, figures.Trees(solved_at, self.max_tokens, **self.search_rates)


def load_sets(models: Sequence[Model], c: cfg.Config) -> list[Suite]:
    """Load the suites of `c.eval.suites`; without any, the held-out problems of the first model's run.

    Raises:
      AstroError: when a suite cannot be read, and when there are neither suites nor a run.
    """
    if c.eval.suites:
        return [problem_suites.load(spec, c.eval.limit) for spec in c.eval.suites]
    if models[0].of_run is None:
        raise AstroError(f"budgets: {models[0].name} is of no run with held-out problems; add --suite NAME")
    problems = Draws.of(c.problems, c.seed).draw("eval")[: c.eval.limit]
    return [Suite(HELD_OUT, problems, {"run": c.out}, {})]


def run(models: Sequence[Model], configs: Sequence[cfg.Config], sets: Sequence[Suite], out: epath.Path) -> Json:
    """Measure all models on all sets of problems, and write budgets.json.

    The first model searches inside its answers: the tokens of one of its answers are the budget. The answers of the
    others reach the tokens of n of its answers, and so do trees that are searched with them. A model that stands alone
    is searched with too.

    Args:
      configs: of each model.

    Returns:
      the content of budgets.json: `models`, their settings by name, and `sets`: by name the result of
      `figures.compare`, with the `origin` of the problems.

    Raises:
      AstroError: when the models have no problem in common, for settings that cannot be compared, and when the folder
        holds answers of other settings.
    """
    for c in configs:
        _check(c)
    if any(p.task == "judged" for suite in sets for p in suite.problems):
        raise AstroError("budgets: best-of-N and tree search need an exact verifier; problems.task=judged has none")
    measured: dict[str, dict[str, Measured]] = {suite.name: {} for suite in sets}
    settings = {}
    for model, c in zip(models, configs, strict=True):
        policy = model_suites.load_policy(c, model.folder)
        settings[model.name] = model_suites.model_settings(c, model.name, model.folder)
        is_searched = model is not models[0] or len(models) == 1
        rules = c.verify.model_copy(update={"reward_rule": c.verify.report_rule})  # trees and answers by one rule
        with contextlib.closing(Verifier(rules)) as verifier:
            for suite in sets:
                first = next(iter(measured[suite.name].values()), None)
                measured[suite.name][model.name] = measure(
                    out / suite.name / model.name, suite, c, policy, verifier, settings[model.name],
                    first.mean_tokens if first else None, is_searched,
                )  # fmt: skip
        del policy  # before the next model is loaded
    n = configs[0].eval.num_samples
    results = {
        "models": settings,
        "sets": {suite.name: {"origin": suite.origin} | _compare(suite, measured[suite.name], n) for suite in sets},
    }
    storage.write_json(out / RESULTS, results)
    return results


def _check(c: cfg.Config) -> None:
    """Refuse settings with which there is nothing to compare."""
    if c.eval.temperature == 0:
        raise AstroError("budgets: eval.temperature=0 makes all answers to a problem equal; set it above 0")
    if c.search.method == "best-of-n":
        raise AstroError(
            "budgets: search.method=best-of-n is measured without trees; add search.method=mcts or search.method=rounds"
        )


def _compare(suite: Suite, measured: Mapping[str, Measured], n: int) -> Json:
    ids = [p.id for p in suite.problems if all(p.id in m.answers for m in measured.values())]
    if not ids:
        raise AstroError(f"{suite.name}: no prompt fits the context of all models; lower eval.max_tokens")
    budget = next(iter(measured.values())).mean_tokens
    return figures.compare({name: m.of(ids) for name, m in measured.items()}, budget, n)


def measure(
    folder: epath.Path, suite: Suite, c: cfg.Config, policy: Policy, verifier: Verifier, settings: Mapping[str, Any],
    budget: float | None, is_searched: bool,
) -> Measured:  # fmt: skip
    """Sample the answers of one model, and search trees with it. What an earlier call has made is kept.

    Args:
      settings: of the model.
      budget: tokens of one answer of the first model; None for the first model itself.
      is_searched: whether to search trees.
    """
    e, prompted = c.eval, suite.problems
    if suite.name != HELD_OUT:
        prompted = [dataclasses.replace(p, prompt=responses.prompt_of(p, e)) for p in suite.problems]
    limit = policy.engine.config.max_positions - e.max_tokens
    problems, _ = lengths.drop_too_long(prompted, policy.tokenizer, limit, "eval")
    asked = {
        "set": suite.name, "set_digest": suite.digest, "n": e.num_samples, "max_tokens": e.max_tokens,
        "temperature": e.temperature, "rule": c.verify.report_rule,
        "prompt": e.prompt if suite.is_mathematics and suite.name != HELD_OUT else "{problem}",
    }  # fmt: skip
    settings = dict(settings) | asked
    responses.claim(folder, settings)
    answers = sample(folder, suite.name, problems, e, policy, verifier, budget)
    prompt_tokens = {p.id: len(policy.tokenizer.prompt(p.prompt)) for p in problems}
    measured = Measured(answers, prompt_tokens)
    if not is_searched:
        return measured
    tokens = math.ceil(e.num_samples * (measured.mean_tokens if budget is None else budget))
    solved_at, rates = search(folder / "search", problems, c.search, tokens, policy, verifier, settings)
    return dataclasses.replace(measured, solved_at=solved_at, search_rates=rates, max_tokens=tokens)


def sample(
    folder: epath.Path, name: str, problems: Sequence[Problem], c: cfg.Eval, policy: Policy, verifier: Verifier,
    budget: float | None,
) -> Records:  # fmt: skip
    """Sample blocks of n answers to each problem, until the answers to one have the tokens of n budgets in the mean.

    Args:
      name: of the set of problems.
      budget: in tokens; None for one block.
    """
    records: Records = {p.id: [] for p in problems}
    n, size, tokens = c.num_samples, max(1, c.shard_size // c.num_samples), 0
    block, wanted = 0, 0.0 if budget is None else n * budget * len(problems)
    while not block or tokens < wanted * (1 - 1e-9):
        store = Shards(folder, f"answers-{block:03d}")
        label = f"{folder.name}, {name}, answers {block * n + 1} to {block * n + n}"
        for index, shard, bar in evaluation.unfinished_shards(store, label, problems, size):
            groups = evaluation.sample_and_judge(
                f"budgets/{name}/{block}", shard, c, policy, verifier, n, c.temperature
            )
            rows = zip(shard, groups, strict=True)
            store.write(index, ({"problem_id": p.id, "prompt": p.prompt, "answers": group} for p, group in rows))
            bar.advance(len(shard))
        for row in store.read():
            kept = [{key: a[key] for key in ("tokens", "correct", "answer")} for a in row["answers"]]
            records[row["problem_id"]] += kept
            tokens += sum(a["tokens"] for a in kept)
        block += 1
    return records


def search(
    folder: epath.Path, problems: Sequence[Problem], c: cfg.Search, max_tokens: int, policy: Policy, verifier: Verifier,
    settings: Mapping[str, Any],
) -> tuple[dict[str, int], dict[str, float]]:  # fmt: skip
    """Search a tree for each problem, until it has a correct solution or has spent `max_tokens`.

    Returns:
      `Tree.solved_at` by problem; and verdicts and computed prompt tokens for each generated token.
    """
    c = _until_solved(c, max_tokens)
    unrelated = ("max_concurrent_trees", "shard_size")
    searched = {"search": c.model_dump(mode="json", exclude=set(unrelated))}
    responses.claim(folder, dict(settings) | searched)
    searching.run(folder, problems, c, policy, verifier, stage_folder.content_hash(searched))
    solved_at = {tree["problem"]["id"]: tree["solved_at"] for tree in shards(folder).read()}
    sums = cost.add_up(storage.read_json(path) for path in folder.glob("cost-*.json"))
    tokens = max(sums["tokens"], 1)
    rates = {f"{verb}_per_token": sums[verb] / tokens for verb in ("verdicts", "prefilled")}
    return solved_at, rates


def _until_solved(c: cfg.Search, max_tokens: int) -> cfg.Search:
    """The settings of a search that ends with the first correct solution, or when its tokens are spent.

    A simulation that samples proposes `num_proposals` tokens at least, and a rollout has one token at least. So the
    numbers of simulations and of rounds here do not end a tree that could still sample.
    """
    changes: dict[str, Any] = {
        "early_stop": cfg.EarlyStop(correct=1, wrong=0), "max_tree_tokens": max_tokens, "max_total_tokens": None,
    }  # fmt: skip
    if c.method == "mcts":
        changes |= {"keep_rollouts": True, "num_simulations": math.ceil(max_tokens / c.num_proposals)}
    else:
        changes["rounds"] = (*c.rounds, *[c.rounds[-1]] * math.ceil(max_tokens / c.rounds[-1]))
    return c.model_copy(update=changes)
