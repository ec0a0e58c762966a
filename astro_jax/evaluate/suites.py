"""Evaluation of one model on one suite: n samples a problem, judged by three rules, with intervals over problems.

FOLDER/responses-*.parquet  the samples (evaluate.responses)
FOLDER/answers.parquet      each response with its verdicts
FOLDER/result.json          the figures (see `summarize`)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, storage
from astro_jax.evaluate import behaviour, comparison, error_classes, forced_backtracks, responses, statistics
from astro_jax.evaluate.behaviour import Behaviour
from astro_jax.evaluate.error_classes import ErrorClass
from astro_jax.policy import Policy
from astro_jax.problems import decontaminate, lengths
from astro_jax.problems.suites import Suite
from astro_jax.types import Problem, Response, Verdict
from astro_jax.verify import Verifier
from astro_jax.verify.answer import RULES, Rule

ANSWERS, RESULT = "answers.parquet", "result.json"
MAX_LISTED = 20  # of a list of examples in result.json
_HEADLINE = ("prompts", "n", "rule", "truncated", "unparsed", "failed", "forced_to_go_back", "rules", "overlap",
             "by_level", "by_subject", "calibration", "behaviour", "errors")  # fmt: skip
_OVERLAP = 0.7  # share of common 5-grams, as problems.overlap_threshold


@dataclasses.dataclass(frozen=True)
class Answer:
    """One response with its verdicts.

    Attributes:
      problem: the problem.
      response: the response.
      verdicts: by rule. A game has one verdict for all rules.
    """

    problem: Problem
    response: responses.SampledResponse
    verdicts: Mapping[Rule, Verdict]

    @property
    def tokens(self) -> int:
        """The sampled tokens of the response, with the end token."""
        return len(self.response.token_ids) - len(self.response.forced)

    @functools.cached_property
    def behaviour(self) -> Behaviour:
        """The search in the answer."""
        return behaviour.measure(self.problem, self.response.text)

    def error_class(self, rule: Rule) -> ErrorClass | None:
        """The error class of the answer; None if it is right by the rule."""
        verdict = self.verdicts[rule]
        if verdict.correct:
            return None
        others = any(v.correct for v in self.verdicts.values())
        return error_classes.classify(self.problem, self.response.text, self.response.stopped, verdict.answer, others)

    def row(self, rule: Rule) -> dict[str, Any]:
        """The row of the answer in answers.parquet. `rule` decides on its error class."""
        error = self.error_class(rule)
        correct = {f"correct_{rule}": v.correct for rule, v in self.verdicts.items()}
        answers = {f"answer_{rule}": v.answer for rule, v in self.verdicts.items()}
        return {
            "problem_id": self.problem.id, "sample": self.response.sample, "prompt": self.problem.prompt,
            "gold": self.problem.answer, "level": self.problem.meta.get("level"),
            "subject": self.problem.meta.get("subject"), "response": self.response.text, "tokens": self.tokens,
            "truncated": not self.response.stopped, **correct, **answers, **self.behaviour.row(),
            "forced_at": self.response.forced_at, "error": error,
            "error_is_open": error is not None and error_classes.is_open(self.problem, error),
        }  # fmt: skip


Group = Sequence[Answer]  # the n answers to one problem


def evaluate(
    folder: epath.Path,
    suite: Suite,
    c: cfg.Eval,
    policy: Policy,
    verifier: Verifier,
    settings: Mapping[str, Any],
    training: Sequence[Problem] = (),
) -> dict[str, Any]:
    """Measure a model on a suite. What an earlier call has sampled is kept.

    Args:
      folder: of the model and the suite.
      settings: of the model: what `result.json` says about it, with the seed.
      training: problems that the model was trained on.

    Returns:
      the content of result.json.

    Raises:
      AstroError: when no prompt fits, when the folder holds responses of other settings, and when pyarrow is missing.
    """
    forced = forced_backtracks.most_forced_tokens(policy.tokenizer, c.min_backtracks)
    limit = policy.engine.config.max_positions - c.max_tokens - forced
    full = [dataclasses.replace(p, prompt=responses.prompt_of(p, c)) for p in suite.problems]
    kept, counts = lengths.drop_too_long(full, policy.tokenizer, limit, "eval")
    kept_ids = {p.id for p in kept}
    problems = [p for p in suite.problems if p.id in kept_ids]
    settings = dict(settings) | {
        "suite": suite.name, "origin": suite.origin, "suite_digest": suite.digest, "n": c.num_samples,
        "max_tokens": c.max_tokens, "temperature": c.temperature, "min_backtracks": c.min_backtracks or None,
        "prompt": c.prompt if suite.is_mathematics else "{problem}", "problems": len(problems),
    }  # fmt: skip
    sampled = responses.collect(folder, suite, problems, c, policy, settings)
    by_id = {p.id: p for p in problems}
    answers = judge([by_id[r.problem_id] for r in sampled], sampled, verifier)
    groups = [answers[i : i + c.num_samples] for i in range(0, len(answers), c.num_samples)]
    rule = main_rule(groups, verifier.c.report_rule)
    responses.write_parquet(folder / ANSWERS, [a.row(rule) for a in answers])
    result = {
        "suite": suite.name, **counts, "skipped": {k: n for k, n in suite.skipped.items() if n},
        "gold_not_read": unreadable_gold(problems, rule, verifier), "overlap": training_overlap(suite, training),
        **summarize(groups, rule),
        "prompt_tokens": round(float(np.mean([len(policy.tokenizer.prompt(p.prompt)) for p in kept])), 1),
        "token_limits": limit_tokens(groups, c.token_limits, policy, verifier), "settings": settings,
    }  # fmt: skip
    storage.write_json(folder / RESULT, result)
    distributed.assert_equal_across_processes(f"{suite.name}: result")
    return result


# ---- Verdicts


def judge(
    problems: Sequence[Problem], sampled: Sequence[responses.SampledResponse], verifier: Verifier
) -> list[Answer]:
    """Judge responses by all rules.

    Args:
      problems: of each response.
    """
    texts = [Response(p, r.text, r.stopped) for p, r in zip(problems, sampled, strict=True)]
    if not texts:
        return []
    verdicts = {rule: verifier.grade(texts, rule) for rule in rules_of(problems)}
    return [
        Answer(p, r, {rule: v[i] for rule, v in verdicts.items()})
        for i, (p, r) in enumerate(zip(problems, sampled, strict=True))
    ]


def rules_of(problems: Sequence[Problem]) -> tuple[Rule, ...]:
    """The rules that can differ: Countdown has one, reasoning-gym two, mathematics three."""
    tasks = {p.task for p in problems}
    return RULES if "math" in tasks else RULES[:2] if "gym" in tasks else RULES[:1]


def unreadable_gold(problems: Sequence[Problem], rule: Rule, verifier: Verifier) -> dict[str, Any]:
    """The gold answers of mathematics that are not judged right when a response gives them in a box."""
    asked = [p for p in problems if p.task == "math"]
    verdicts = verifier.grade([Response(p, f"\\boxed{{{p.answer}}}", True) for p in asked], rule)
    wrong = [{"problem_id": p.id, "gold": p.answer} for p, v in zip(asked, verdicts, strict=True) if not v.correct]
    return {"count": len(wrong), "first": wrong[:MAX_LISTED]}


def training_overlap(suite: Suite, training: Sequence[Problem]) -> dict[str, Any]:
    """Count the problems of a suite that overlap with problems that the model was trained on.

    Mathematics is compared as in decontamination (problems.decontaminate), games by the whole text and the id.

    Returns:
      `compared`, the training problems, and `exact`, `near` and `contained` problems of the suite.
    """
    if suite.is_mathematics:
        texts, training_texts = (tuple(p.prompt for p in problems) for problems in (suite.problems, training))
        return {"compared": len(training), **_overlapping(texts, training_texts)}
    known = {p.id for p in training} | {p.prompt for p in training}
    return {"compared": len(training), "exact": sum(p.id in known or p.prompt in known for p in suite.problems)}


@functools.lru_cache(maxsize=16)  # the models of a run have the same training problems
def _overlapping(texts: tuple[str, ...], training: tuple[str, ...]) -> Mapping[str, int]:
    return decontaminate.remove_overlapping([Problem("", text, "") for text in texts], training, _OVERLAP)[1]


# ---- Figures


def main_rule(groups: Sequence[Group], rule: Rule) -> Rule:
    """The rule of the main figures: the configured one, or the only one of a game."""
    return rule if rule in groups[0][0].verdicts else next(iter(groups[0][0].verdicts))


def summarize(groups: Sequence[Group], rule: Rule) -> dict[str, Any]:
    """The figures of the answers to a suite.

    Args:
      groups: the n answers to each problem.
      rule: the rule of the main figures.

    Returns:
      `rule`, `n`, `pass@k` and `maj@k` by k (statistics), `rules` and `differences` between the rules, the shares of
      answers that are `truncated`, `unparsed` (ended, without an answer) and `failed` (no verdict), `tokens`,
      pass@1 `by_level` and `by_subject`, the `calibration` of the vote of n answers (from n = 4), the `behaviour` of
      the answers and the shares of `errors` by class. pass@1 and the shares are means over problems of means over
      samples. `forced_to_go_back` is the share of answers with a forced backtrack.
    """
    answers = [a for group in groups for a in group]
    n, ks = len(groups[0]), statistics.powers_of_two(len(groups[0]))
    correct = np.asarray([sum(a.verdicts[rule].correct for a in group) for group in groups])
    votes = {k: [statistics.majority_at_k(*_votes(group, rule), k) for group in groups] for k in ks}
    tokens = np.asarray([[a.tokens for a in group] for group in groups])
    elections = [statistics.elect(*_votes(group, rule)) for group in groups]
    rules = {name: _rule_figures(groups, name) for name in groups[0][0].verdicts}
    return {
        "rule": rule,
        "n": n,
        "pass@k": {str(k): statistics.summarize(statistics.pass_at_k(correct, n, k)) for k in ks},
        "maj@k": {str(k): statistics.summarize(votes[k]) for k in ks},
        "rules": rules,
        "differences": _differences(groups),
        "truncated": _share(groups, lambda a: not a.response.stopped),
        "unparsed": rules[rule]["unparsed"],
        "failed": rules[rule]["failed"],
        "forced_to_go_back": _share(groups, lambda a: bool(a.response.forced)),
        "tokens": {
            "mean": round(float(tokens.mean()), 2), "max": int(tokens.max()), "total": int(tokens.sum()),
        },
        "by_level": _by("level", groups, rule),
        "by_subject": _by("subject", groups, rule),
        "calibration": statistics.calibration(*zip(*elections, strict=True)) if n >= 4 else [],
        "behaviour": behaviour.summarize(
            [a.behaviour for a in answers], [a.verdicts[rule].correct for a in answers], [a.problem.id for a in answers]
        ),
        "errors": error_classes.summarize([e for a in answers if (e := a.error_class(rule))], len(answers)),
    }  # fmt: skip


def _votes(group: Group, rule: Rule) -> tuple[list[str | None], list[bool]]:
    """The answers to a problem as the rule reads them, and whether each is right."""
    verdicts = [a.verdicts[rule] for a in group]
    return [v.answer for v in verdicts], [v.correct for v in verdicts]


def _share(groups: Sequence[Group], holds: Callable[[Answer], bool]) -> float:
    return round(float(np.mean([holds(a) for group in groups for a in group])), 4)


def pass_at_1(groups: Sequence[Group], rule: Rule) -> list[float]:
    """The share of right answers to each problem."""
    return [float(np.mean([a.verdicts[rule].correct for a in group])) for group in groups]


def _rule_figures(groups: Sequence[Group], rule: Rule) -> dict[str, Any]:
    return {
        "pass@1": statistics.summarize(pass_at_1(groups, rule)),
        "unparsed": _share(groups, lambda a: a.response.stopped and a.verdicts[rule].status == "unparsed"),
        "failed": _share(groups, lambda a: a.verdicts[rule].failure is not None),
    }


def _differences(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What differs between each pair of rules on the same responses."""
    found = []
    for first, second in itertools.combinations(groups[0][0].verdicts, 2):
        answers = [a for group in groups for a in group if a.verdicts[first].correct != a.verdicts[second].correct]
        by_first = [a for a in answers if a.verdicts[first].correct]
        found.append({
            "rules": [first, second], f"right by {first} alone": len(by_first),
            f"right by {second} alone": len(answers) - len(by_first),
            "first": [
                {"problem_id": a.problem.id, "sample": a.response.sample, "gold": a.problem.answer,
                 first: a.verdicts[first].answer, second: a.verdicts[second].answer,
                 "truncated": not a.response.stopped}
                for a in answers[:MAX_LISTED]
            ],
        })  # fmt: skip
    return found


def _by(key: str, groups: Sequence[Group], rule: Rule) -> dict[str, Any]:
    """pass@1 of the problems of each level or subject."""
    values = sorted({group[0].problem.meta[key] for group in groups if key in group[0].problem.meta})
    return {
        value: statistics.summarize(pass_at_1([g for g in groups if g[0].problem.meta.get(key) == value], rule))
        for value in values
    }


def limit_tokens(
    groups: Sequence[Group],
    limits: Sequence[int],
    policy: Policy,
    verifier: Verifier,
) -> list[dict[str, Any]]:
    """Judge the same responses as if fewer tokens had been allowed: longer ones are cut at the limit.

    A sample depends on the tokens before it alone, so a run with the smaller limit would give the same texts.

    Returns:
      for each limit `max_tokens`, the shares and the mean tokens, and pass@1 by each rule.
    """
    answers, n, table = [a for group in groups for a in group], len(groups[0]), []
    for limit in sorted(limits):
        cut = [i for i, a in enumerate(answers) if a.tokens > limit]
        shorter = [_cut(answers[i].response, limit, policy) for i in cut]
        judged = dict(zip(cut, judge([answers[i].problem for i in cut], shorter, verifier), strict=True))
        limited = [judged.get(i, a) for i, a in enumerate(answers)]
        at_limit = [limited[i : i + n] for i in range(0, len(limited), n)]
        table.append({
            "max_tokens": limit, "truncated": _share(at_limit, lambda a: not a.response.stopped),
            "mean_tokens": round(float(np.mean([a.tokens for a in limited])), 2),
            "pass@1": {rule: statistics.summarize(pass_at_1(at_limit, rule)) for rule in groups[0][0].verdicts},
        })  # fmt: skip
    return table


def _cut(r: responses.SampledResponse, limit: int, policy: Policy) -> responses.SampledResponse:
    """The response up to its last sampled token within the limit."""
    forced = set(r.forced)
    end = [i for i in range(len(r.token_ids)) if i not in forced][limit - 1] + 1
    text = policy.tokenizer.decode(r.token_ids[:end])
    return dataclasses.replace(
        r, text=text, token_ids=r.token_ids[:end], stopped=False, forced=[i for i in r.forced if i < end],
        forced_at=[at for at in r.forced_at if at < len(text)],
    )  # fmt: skip


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a suite for a run's results.json: those of result.json without lists of examples."""
    last = str(result["n"])
    return {key: result[key] for key in _HEADLINE} | {
        "pass@1": result["pass@k"]["1"], f"pass@{last}": result["pass@k"][last], f"maj@{last}": result["maj@k"][last],
        "tokens": result["tokens"]["mean"],
    }  # fmt: skip


# ---- Two models


def compare(folder: epath.Path, other: epath.Path, rule: Rule) -> dict[str, Any]:
    """The paired difference in pass@1 of two models on one suite: the model in `folder` minus that in `other`.

    Args:
      folder, other: of evaluations of the same suite.

    Returns:
      `difference`, `low`, `high`, `n` (statistics.paired_difference) over the problems that both answered; {} if they
      share none.
    """
    return comparison.difference(solved(folder, rule), solved(other, rule))


def solved(folder: epath.Path, rule: Rule) -> dict[str, float]:
    """Read pass@1 of each problem, by id, from the evaluation of a suite in `folder`."""
    rows = responses.read_parquet(folder / ANSWERS)
    column = f"correct_{rule}" if rows and f"correct_{rule}" in rows[0] else f"correct_{RULES[0]}"
    outcomes: dict[str, list[bool]] = {}
    for row in rows:
        outcomes.setdefault(row["problem_id"], []).append(row[column])
    return {name: float(np.mean(values)) for name, values in outcomes.items()}
