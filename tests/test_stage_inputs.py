"""Which stages a change of each config key invalidates."""

import json
from collections import defaultdict

import jax
import pytest
from micro_run import MICRO, micro

from astro_jax import config as cfg
from astro_jax import run_plan, stage_inputs, stages
from astro_jax.run_context import RunContext

jax.devices()  # all eight are there before a run asks for one

STAGES = (*stages.DEFAULT_STAGES, "sft", "grpo")
SFT, RL = "direct-sft astro-sft sft", "direct-rl astro-rl grpo"
SUITES = " ".join(name for name in stages.evaluations(STAGES, suites=True) if name.endswith("-suites"))
EVALUATED = " ".join(stages.evaluations(STAGES))
SAMPLED = f"search traces difficulty {RL} {EVALUATED} {SUITES}"
# Stages whose own inputs change, by keys. Stages after these change by their parents' digests. A name of a section
# stands for its keys that are not listed.
INVALIDATED = {
    "": (
        "out from scale stages attention mesh sampler verify.num_workers verify.max_failed_share search.shard_size "
        "search.max_concurrent_trees traces.shard_size eval.shard_size sft.save_steps sft.remat_policy "
        "pretrain.save_steps pretrain.remat_policy base_sft.save_steps base_sft.remat_policy grpo.save_steps "
        "sft.save_minutes sft.save_total_limit sft.keep_every_steps grpo.save_minutes grpo.save_total_limit "
        "grpo.keep_every_steps pretrain.save_minutes pretrain.save_total_limit pretrain.keep_every_steps "
        "base_sft.save_minutes base_sft.save_total_limit base_sft.keep_every_steps "
        "grpo.remat_policy grpo.micro_batch_size sft.micro_batch_size pretrain.micro_batch_size "
        "base_sft.micro_batch_size problems.split problems.subset problems.filters problems.dataset "
        "sft.max_skipped_steps pretrain.max_skipped_steps base_sft.max_skipped_steps grpo.max_skipped_steps "
        "problems.gym problems.sources grpo.reward_timeout_seconds problems.decontaminate problems.overlap_threshold "
        "grpo.logged_groups"
    ),
    f"base {SAMPLED} {SFT} report": "seed",
    f"base search traces {SFT} {RL} difficulty {EVALUATED} {SUITES}": "chat",
    "base": "model architecture pretrain base_sft",
    "base direct-sft astro-sft": "corpus",
    f"base direct-sft astro-sft search difficulty {RL} {EVALUATED}": (
        "problems.count problems.max_number problems.ops problems.last_two problems.held_out"
    ),
    # By the content of the problems: this smaller limit leaves the held-out problem as it is.
    f"base direct-sft astro-sft search difficulty {RL}": "problems.max_value",
    f"base search difficulty {RL} {EVALUATED}": "problems.path problems.fields problems.task",
    "search": "search",
    "base search": "problems.search",
    f"base difficulty {RL}": "problems.rl",
    EVALUATED: "problems.eval",
    f"difficulty {RL} {EVALUATED} {SUITES}": "eval.max_tokens",
    f"{SUITES} report": "eval.suites",
    SUITES: "eval.num_samples eval.limit eval.temperature eval.prompt eval.token_limits eval.min_backtracks",
    f"difficulty {RL} report": "problems.difficulty_samples",
    RL: "grpo",
    f"difficulty {RL}": (
        "problems.rl_pass_rate problems.difficulty_model problems.max_difficulty_prompts grpo.max_length "
        "grpo.max_completion_length"
    ),
    f"base difficulty {RL} ": "problems.rl_prompts",
    f"{EVALUATED} ": "problems.evaluation",
    SFT: "sft",
    "direct-sft astro-sft": "traces.replay",
    "sft": "examples",
    "traces": "traces prompts trees",
    SAMPLED: "sampler.dtype verify",
    f"{SAMPLED} ": "sampler.quantization sampler.kv_cache_dtype",
    f"{RL} ": "grpo.quantized_rollouts",
    f"search difficulty {RL}": "verify.judge",  # from none to one, in a run whose traces need no model
    f"search traces difficulty {RL}": (
        "verify.judge.model verify.judge.num_samples verify.judge.pass_share verify.judge.max_tokens verify.verdicts"
    ),
}
OTHER_VALUES = {
    "traces.max_examples": 3, "verify.verdicts": ["yes", "no"],
    "model": "countdown-base", "stages": ["base", "search"], "out": "elsewhere", "from": ["runs/a"], "attention": "xla",
    "chat.system": "Think.", "problems.ops": "+", "problems.max_value": 3,
    "problems.search": 3, "base_sft": {}, "problems.path": "PATH2", "problems.fields": {"answer": "result"},
    "problems.task": "math", "problems.dataset": "", "problems.subset": "a", "problems.split": "test",
    "problems.filters": {"a": ["b"]}, "problems.gym": [], "problems.decontaminate": ["PATH.jsonl"],
    "problems.rl_pass_rate": [0.25, 0.5], "search.step_end": ";", "search.method": "rounds",
    "search.rollout_rounds": [2],
    "search.rounds": [2],
    "search.early_stop": {"correct": 2},
    "search.max_tree_tokens": 99, "search.max_total_tokens": 99, "traces.backtrack_weights": [1, 2],
    "traces.min_value_reflect": 0.5, "traces.reflect_confidence": 0.9,
    "sampler.kv_cache_gib": 1.0, "sampler.quantization": None, "sampler.kv_cache_dtype": None,
    "prompts": {"reflect": "PROMPT"},
    "examples": "PATH", "trees": "TREES", "grpo.reward": "REWARD:reward",
    "grpo.epsilon_high": 0.3, "grpo.delta": 2.0, "grpo.max_log_ratio": 5.0, "grpo.importance_sampling_cap": 2.0,
    "grpo.geometric_mask_bounds": [0.9, 1.1],
    "grpo.guard.rules": [{"metric": "entropy", "below": 0.1, "action": "stop"}],
    "eval.suites": ["PATH.jsonl", "countdown:size=2"], "eval.limit": 1, "eval.token_limits": [3],
    "eval.prompt": "{problem}?",
    "problems.sources": [], "problems.evaluation": [{"path": "PATH2"}],
    **{f"{x}.save_minutes": 9 for x in ("sft", "pretrain", "base_sft", "grpo")},
    **{f"{x}.keep_every_steps": 9 for x in ("sft", "pretrain", "base_sft", "grpo")},
    "sft.lora": {}, "pretrain.lora": {}, "base_sft.lora": {},
    "sft.micro_batch_size": 1, "pretrain.micro_batch_size": 1, "base_sft.micro_batch_size": 1,
    **{f"{x}.metric_for_best_model": None for x in ("sft", "pretrain", "base_sft")},
    "grpo.metric_for_best_model": "eval_solve_rate_greedy",
    "verify.judge": {"model": "countdown-base"}, "verify.judge.model": "PATHMODEL",
    "problems.rl_prompts": "disjoint", "problems.difficulty_model": "sft", "problems.max_difficulty_prompts": 5,
}  # fmt: skip
CHOICES = {"float32": "bfloat16", "strict": "lenient", "lenient": "strict", "total": "mean", "mcts": "best-of-n",
           "ancestor": "root", "terminal": "inside", "template": "model", "model": "template", "fixed": "none",
           "trees": "best-of-n", "best-of-n": "trees", "uncertain": "root", "drop": "truncate",
           "examples": "tokens", "all": "completion", "none": "full", "dapo": "grpo", "token": "sequence",
           "first-fit": "wrapped"}  # fmt: skip


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Four configs in which, together, every key has a use; and a function that puts paths into values."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("PATH", "PATH2", "PATH.jsonl"):
        lines = [{"problem": f"{name}: {i} + {i} = ?", "answer": str(2 * i), "result": i} for i in range(40)]
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    (folder / "reward.py").write_text("def reward(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    for name in ("PATHMODEL", "TREES"):
        (folder / name).mkdir()
    (folder / "TREES" / "trees-00000.jsonl.gz").touch()
    (folder / "PROMPT").write_text("{{ problem }} {{ solution }} {{ correct }}: {{ correct }}?")

    def with_paths(value):
        return json.loads(
            json.dumps(value)
            .replace('"PATH', f'"{folder}/PATH')
            .replace('"PROMPT', f'"{folder}/PROMPT')
            .replace('"TREES', f'"{folder}/TREES')
            .replace('"REWARD', f'"{folder}/reward.py')
        )

    best = {"eval_share": 0.4, "metric_for_best_model": "eval_loss"}
    words = {
        "model": "countdown-base", "base_sft": MICRO["sft"] | best, "prompts": {},
        "problems": dict(path=f"{folder}/PATH", difficulty_samples=2, held_out=0.4),
        "search": dict(method="best-of-n"), "eval": dict(suites=[f"{folder}/PATH.jsonl"]),
        "traces": dict(replay=0, self_evaluation=2, clone="model", direct="best-of-n"),
        "verify": dict(judge=dict(model="countdown-base")),
    }  # fmt: skip
    int8 = {
        "sampler": dict(quantization="int8", kv_cache_dtype="int8"),
        "grpo": dict(quantized_rollouts=True, importance_sampling_cap=2.0),
    }
    counts = dict(search=2, rl=2, eval=1, difficulty_samples=2)
    # With two updates a step, each option of GRPO has a use.
    grpo = {"eval_share": 0.4, "metric_for_best_model": "eval_solve_rate", "steps_per_generation": 2}
    held_out = {"sft": best, "pretrain": best, "grpo": grpo}
    return [
        micro(folder / "run", stages=STAGES, **{**held_out, **x})
        for x in ({"problems": counts}, words, {"search": {"method": "rounds"}}, {**words, **int8})
    ], with_paths


def own_inputs(c, contents={}):  # noqa: B006 (a cache)
    """The inputs of each stage without those that come from its parents."""

    def content(name):
        sections = map(repr, (c.problems, c.prompts, c.eval, c.verify))
        key = (name, c.seed, c.model, *sections, c.examples, c.trees, c.grpo.reward)
        if key not in contents:
            contents[key] = run_plan.content(RunContext(c), name)
        return contents[key]

    inputs = stage_inputs.of_run(c, stage_inputs.planned(c), content)
    return {name: (i.keys, i.contents) for name, i in inputs.items()}


def other_value(key, value):
    """A value of a key that differs from the given one."""
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    if isinstance(value, list):
        return [x / 2 for x in value]
    return CHOICES[value]


def changed(raw, key, value):
    *sections, name = key.split(".")
    copy = part = json.loads(json.dumps(raw))
    for section in sections:
        part = part[section]
    part[name] = value
    return copy


def expected_of(key):
    """The stages that the table names for a key: those of the key itself, else those of its section."""
    by_name = {name: set(names.split()) for names, keys in INVALIDATED.items() for name in keys.split()}
    return next(by_name[name] for name in (key, key.rpartition(".")[0], key.split(".")[0]) if name in by_name)


# Keys that only one of the configs has a use for, or may have.
COUNTDOWN_ALONE = {"model", "traces.replay", "search.method", "search.keep_rollouts", "search.early_stop",
                   "search.max_tree_tokens", "search.max_total_tokens", "search.rollout_rounds",
                   "verify.judge"}  # fmt: skip
WORDS_ALONE = {"base_sft", "problems.path", "problems.fields", "problems.task", "verify.verdicts"}
SUITES_ALONE = {f"eval.{name}" for name in ("suites", "num_samples", "limit", "temperature", "prompt", "token_limits",
                                            "min_backtracks")}  # fmt: skip
INT8_ALONE = {"sampler.quantization", "sampler.kv_cache_dtype", "grpo.quantized_rollouts"}
ROUNDS_ALONE = {"search.rounds", "search.focus", "search.lines_per_step"}


def test_each_key_invalidates_the_stages_that_the_table_names(configs):
    (countdown, words, rounds, int8), with_paths = configs
    every = set(cfg.flatten(countdown)) | set(cfg.flatten(words))
    uses = (
        (countdown, every - WORDS_ALONE - ROUNDS_ALONE - SUITES_ALONE - INT8_ALONE),
        (words, every - COUNTDOWN_ALONE - ROUNDS_ALONE - INT8_ALONE), (rounds, ROUNDS_ALONE), (int8, INT8_ALONE),
    )  # fmt: skip
    changed_stages = defaultdict(set)
    for c, keys in uses:
        raw, before = c.model_dump(mode="json"), own_inputs(c)
        for key, value in cfg.flatten(c).items():
            if key in keys:
                new = cfg.Config.model_validate(changed(raw, key, with_paths(other_value(key, value))))
                after = own_inputs(new)
                changed_stages[key] |= {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed_stages.keys() == every - {"base_sft"}  # whose own keys are among them
    for key, names in changed_stages.items():
        assert names == expected_of(key), key


def test_base_sft_on_the_game_depends_on_its_corpus_and_rules_and_on_no_problems(tmp_path):
    def base(**changes):
        raw = dict(model="countdown-base", base_sft={}) | changes
        return own_inputs(micro(tmp_path / "run", **raw))["base"]

    before = base()
    assert base(problems={"search": 3, "rl": 3}) == before == base(pretrain={"batch_size": 3})
    for change in ({"corpus": {"solved": 0.2}}, {"problems": {"max_value": 7}}, {"base_sft": {"batch_size": 3}}):
        assert base(**change) != before


def test_int8_sampling_leaves_rl_and_digests_of_runs_without_it_as_they_are(configs):
    (countdown, *_), _ = configs
    before = own_inputs(countdown)
    assert not any(name in keys for keys, _ in before.values() for name in INT8_ALONE)
    after = own_inputs(
        countdown.model_copy(update={"sampler": countdown.sampler.model_copy(update={"quantization": "int8"})})
    )
    changed = {name for name in before if before[name] != after[name]}
    assert "search" in changed and not changed & set(RL.split())


def test_the_steps_of_checkpoints_change_results_where_a_rule_goes_back_to_one(tmp_path):
    def rl(action, save_steps):
        guard = {"rules": [{"metric": "entropy", "below": 0.1, "action": action}]}
        c = micro(tmp_path / "run", grpo={**MICRO["grpo"], "guard": guard, "save_steps": save_steps})
        return own_inputs(c)["direct-rl"]

    assert rl("rollback", 5) != rl("rollback", 10) and rl("stop", 5) == rl("stop", 10)


def test_keys_without_effect_are_those_of_another_setting():
    c = cfg.parse(MICRO | {"search": {"method": "best-of-n"}})
    names = ["search.num_simulations", "traces.clone_tokens", "pretrain", "search.num_samples", "search", "out", "seed"]
    assert stage_inputs.without_effect(c, names) == ["search.num_simulations", "traces.clone_tokens"]
    c = cfg.parse({"search": {"method": "mcts"}})
    assert stage_inputs.without_effect(c, names) == ["traces.clone_tokens", "pretrain", "search.num_samples"]


def test_evaluation_depends_on_the_judge_where_problems_have_no_answer(configs):
    (_, words, *_), _ = configs
    judged = cfg.Config.model_validate(changed(words.model_dump(mode="json"), "problems.task", "judged"))
    for name in ("verify.judge.model", "prompts.evaluate"):
        assert [name in stage_inputs.contents_of(c, "eval/base") for c in (words, judged)] == [False, True]
    keys = [stage_inputs.keys_of(c, "eval/base", cfg.flatten(c))[0] for c in (words, judged)]
    assert ["verify.judge.pass_share" in results for results in keys] == [False, True]
