"""What each stage of a run depends on: the keys that it reads, the content of its inputs, and its parents.

The registry (`astro_jax.stages`) says which keys a stage reads, and `config.sections` what a change of a key does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from astro_jax import config as cfg
from astro_jax import stages
from astro_jax.problems import source
from astro_jax.stage_folder import Inputs
from astro_jax.traces import dataset

# Keys that a stage reads only under a condition: (stages, condition, the keys). Where the condition does not hold, the
# stage does not depend on them.
_CONDITIONS: tuple[tuple[tuple[str, ...], Callable[[cfg.Config], bool], tuple[str, ...]], ...] = (
    (("base",), lambda c: c.model == "scratch" or c.base_sft is not None, ("seed",)),
    (("base",), lambda c: c.base_sft is not None, ("chat",)),
    (("base",), lambda c: c.model == "scratch", ("architecture", "pretrain")),
    (("base",), lambda c: c.model == "scratch" or learns_corpus(c), ("corpus", "problems")),
    (("direct-sft", "astro-sft"), lambda c: bool(c.traces.replay), ("corpus", "problems")),
    (("search",), lambda c: c.search.method == "best-of-n", ("search.num_samples",)),
    (("search",), lambda c: c.search.method == "rounds", ("search.rounds", "search.focus")),
    (("search",), lambda c: c.search.method != "best-of-n", (
        "search.num_proposals", "search.num_rollouts", "search.num_simulations", "search.c_puct", "search.max_depth",
        "search.num_parallel_leaves", "search.max_step_tokens")),
    (("traces",), lambda c: dataset.needs_model(c.traces), (
        "sampler", "verify", "prompts", "traces.clone_retries", "traces.clone_tokens", "traces.clone_temperature")),
    (("traces",), lambda c: c.traces.self_evaluation > 0, (
        "traces.self_evaluation_pass", "traces.self_evaluation_tokens")),
    (("traces",), lambda c: c.traces.direct == "best-of-n", ("traces.direct_samples", "traces.direct_tokens")),
    (("traces",), lambda c: False, ("traces.replay",)),  # SFT adds the documents
    (tuple(stages.EVALUATIONS), lambda c: c.eval.min_backtracks > 0, ("eval.min_backtracks",)),
    # In evaluation the judge decides only on problems without an answer.
    (tuple(stages.EVALUATIONS), lambda c: c.problems.needs_judge, ("verify.judge", "verify.verdicts")),
    (("search", "difficulty", "direct-rl", "astro-rl", "grpo"), lambda c: c.verify.judge is not None, (
        "verify.verdicts",)),
    (("direct-rl", "astro-rl", "grpo"), lambda c: bool(c.problems.difficulty_samples), (
        "problems.rl_pass_rate", "problems.max_difficulty_prompts", "problems.difficulty_model", "eval.max_tokens")),
)  # fmt: skip
# Keys of int8 sampling. Where they round nothing they are no part of the digest, so that results of versions without
# these keys are kept. The same holds for a later key at its default: its stage reads it, so it is a setting.
_INT8 = ("sampler.quantization", "sampler.kv_cache_dtype", "grpo.quantized_rollouts")
_DEFAULTS = cfg.flatten(cfg.Config())
_LATER = ("traces.max_examples", "verify.verdicts")


def keys_of(c: cfg.Config, stage: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys that a stage reads under this config: (those that change its results, all other ones).

    The base model's path and the keys of `problems` are among the others where the digest has their content, the keys
    of int8 sampling where they round nothing.

    Args:
      values: of all keys, `cfg.flatten(c)`. Several stages share them.
    """
    reads, contents = stages.get(stage).reads, contents_of(c, stage)
    unused = tuple(
        prefix for names, holds, prefixes in _CONDITIONS if stage in names and not holds(c) for prefix in prefixes
    )
    rounds = stages.get(stage).command != "grpo" or c.grpo.quantized_rollouts
    rolls_back = any(rule.action == "rollback" for rule in c.grpo.guard.rules)  # to a checkpoint of `save_steps`
    results: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if not _within(key, reads) or _within(key, unused):
            continue
        rounds_nothing = key in _INT8 and not (rounds and value)
        has_no_effect = key in contents or rounds_nothing or (key in _LATER and value == _DEFAULTS[key])
        changes_results = cfg.effect(key) == "results" or (key == "grpo.save_steps" and rolls_back)
        (settings if has_no_effect or not changes_results else results)[key] = value
    if problem_uses(c, stage):
        settings |= {key: value for key, value in cfg.flatten(c.problems, "problems.").items() if key not in results}
    return results, settings


def without_effect(c: cfg.Config, names: Sequence[str]) -> list[str]:
    """Of keys or sections, by dotted name, return those that stages read under other settings, but not under these."""
    if not names:
        return []
    values = cfg.flatten(c)
    declared = [key for key in values if any(_within(key, stage.reads) for stage in stages.STAGES.values())]
    read = {key for stage in stages.STAGES for part in keys_of(c, stage, values) for key in part}

    def is_unread(name: str) -> bool:
        keys = [key for key in declared if _within(key, (name,))]
        return bool(keys) and read.isdisjoint(keys)

    return [name for name in names if is_unread(name)]


def learns_corpus(c: cfg.Config) -> bool:
    """Whether `base_sft` learns Countdown's corpus. Problems of a source have worked solutions in its place."""
    return c.base_sft is not None and not source.has_source(c.problems)


def problem_uses(c: cfg.Config, stage: str) -> tuple[str, ...]:
    """The uses whose problems a stage reads. The base reads problems only for `base_sft` on their worked solutions.
    Where difficulty is measured, RL chooses among "rl_candidates"."""
    if stage == "base" and (c.base_sft is None or learns_corpus(c)):
        return ()
    measured = c.problems.difficulty_samples and stage != "base"
    return tuple("rl_candidates" if use == "rl" and measured else use for use in stages.get(stage).problems)


def contents_of(c: cfg.Config, stage: str) -> tuple[str, ...]:
    """Name the inputs of a stage that are no keys.

    Returns:
      "problems.USE", "model" (the files of the base model), "prompts", "reward" (the file of `grpo.reward`), "examples"
      and "trees" (files of the user), "suites" (the problems of `eval.suites`), "verify.judge.model" (the files of the
      judge), "prompts.evaluate" (its rubric).
    """
    names = [f"problems.{use}" for use in problem_uses(c, stage)]
    names += ["model"] * (stage == "base" and c.model != "scratch")
    names += ["reward"] * (stages.get(stage).command == "grpo" and c.grpo.reward is not None)
    names += ["examples"] * (stage == "sft" and bool(c.examples))
    names += ["trees"] * (stage == "traces" and bool(c.trees))
    names += ["suites"] * stage.endswith("-suites")
    names += ["verify.judge.model", "prompts.evaluate"] * asks_judge(c, stage)
    names += ["prompts"] * (stage == "traces" and dataset.needs_model(c.traces))
    return tuple(names)


def asks_judge(c: cfg.Config, stage: str) -> bool:
    """Whether the judge of the run decides on answers of a stage, or of a part of the evaluation."""
    if c.verify.judge is None:
        return False
    if stage == "traces":
        return dataset.needs_model(c.traces)
    declared = stages.get(stage)
    return c.problems.needs_judge if declared.command == "eval" else "verify" in declared.reads


def parents(c: cfg.Config, stage: str) -> tuple[str, ...]:
    """Return the stages that must have finished before a stage of the run starts.

    The report needs all evaluations of the run. RL needs `difficulty` where the run measures it, and `traces` where
    responses begin inside them.
    """
    declared = stages.get(stage)
    if stage == "traces" and c.trees:
        return ("base",)
    if stage == "difficulty":
        return stages.difficulty_models(c.stages, c.problems.difficulty_model)
    names = [
        *stages.expand(declared.parents, c.stages, bool(c.eval.suites)),
        *([declared.initial_model] if declared.initial_model else []),
    ]
    if declared.command == "grpo":
        names += ["difficulty"] * bool(c.problems.difficulty_samples) + ["traces"] * bool(c.grpo.restart_rate)
    return tuple(dict.fromkeys(names))


def planned(c: cfg.Config) -> tuple[str, ...]:
    """Return the stages of a whole run: "eval" by its parts, and `difficulty` where the config asks for it."""
    names = stages.with_difficulty(c.stages) if c.problems.difficulty_samples else c.stages
    return stages.expand(names, c.stages, bool(c.eval.suites))


def of_run(c: cfg.Config, names: Sequence[str], content: Callable[[str], str]) -> dict[str, Inputs]:
    """Make the inputs of stages and of their ancestors, each after its parents.

    Args:
      names: stages, in any order.
      content: hashes an input that is no key (`contents_of`).
    """
    inputs: dict[str, Inputs] = {}
    content = functools.cache(content)  # several stages have the same problems
    values = cfg.flatten(c)

    def add(stage: str) -> None:
        if stage in inputs:
            return
        above = parents(c, stage)
        for parent in above:
            add(parent)
        keys, settings = keys_of(c, stage, values)
        contents = {name: content(name) for name in contents_of(c, stage)}
        digests = {name: inputs[name].digest for name in above}
        inputs[stage] = Inputs(stage=stage, keys=keys, settings=settings, contents=contents, parents=digests)

    for name in names:
        add(name)
    return inputs


@functools.cache
def _within(key: str, prefixes: tuple[str, ...]) -> bool:
    return f"{key}.".startswith(tuple(f"{prefix}." for prefix in prefixes))
