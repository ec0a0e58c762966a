"""The whole pipeline on a game that a model of a few thousand parameters learns in seconds."""

import copy
import functools
import itertools
import json
import threading
from collections import defaultdict

import jax
import numpy as np
import pytest
from etils import epath
from helpers import assert_trees_equal, countdown_tokenizer, tiny_config, tiny_params
from micro_run import files, micro, products

from astro_jax import config as cfg
from astro_jax import countdown, llama, pipeline, run_plan, stage_folder, stage_inputs, storage
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.run_context import RunContext
from astro_jax.sampler import SamplingParams
from astro_jax.search import run as searching
from astro_jax.search.store import shards
from astro_jax.stage_folder import Inputs
from astro_jax.stages import DEFAULT_STAGES, STAGES, evaluations, models_of
from astro_jax.train import sft
from astro_jax.train.checkpoints import Checkpoints

jax.devices()  # all eight are there before a run asks for one
MODELS = models_of(DEFAULT_STAGES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, by stage the fields of the config that were read) of a run that nothing disturbed."""
    read, stage = defaultdict(set), ""
    run_stage = pipeline.run_stage

    def recorder(self, name):
        if not name.startswith("_"):
            read[stage].add((type(self).__name__, name))
        return object.__getattribute__(self, name)

    def run_recorded(run, plan):
        nonlocal stage
        stage = plan.inputs.stage
        run_stage(run, plan)
        stage = ""

    folder = tmp_path_factory.mktemp("run") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cfg.Section, "__getattribute__", recorder, raising=False)
        patch.setattr(pipeline, "run_stage", run_recorded)
        run = pipeline.execute(micro(folder), "astro run micro.yaml")
        # The trained base writes whole attempts; one that writes nonsense needs rollouts and the depth limit too.
        config, _, tokenizer = run.load("base", run.decode_sharding)
        policy = Policy(run.engine(config), tiny_params(config), tokenizer)
        for method in ("mcts", "best-of-n", "rounds"):
            c = run.c.search.model_copy(update={"method": method})
            searching.search(run.problems("search")[:2], c, policy, run.verifier)
    return folder, read


# ---- A run


@pytest.mark.slow
def test_results_have_the_documented_shape(finished):
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"seed", "wall_s", "models", "differences", "difficulty"}
    assert results["seed"] == 0 and results["wall_s"] > 0
    assert results["differences"]["held-out"]["astro-rl - direct-rl"]["n"] == 5
    assert set(results["difficulty"]["held-out"]) == set(MODELS)
    assert tuple(results["models"]) == MODELS
    for name, m in results["models"].items():
        assert set(m) - {"maj"} == {
            "pass@1", "greedy", "mean_tokens", "mean_backtracks", "valid_rate", "truncated_rate", "behaviour", "errors",
        }  # fmt: skip
        assert ("maj" in m) == name.startswith("direct")
        for rate in (m["pass@1"], m["greedy"]):
            assert set(rate) == {"mean", "low", "high", "n"} and rate["n"] == 5
            assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
        assert m["mean_tokens"] > 1 and 0 <= m["valid_rate"] <= 1 and 0 <= m["truncated_rate"] <= 1


@pytest.mark.slow
def test_the_search_gives_both_kinds_of_traces(finished):
    counts = json.loads((finished[0] / "traces" / "counts.json").read_text())
    assert counts["ASTRO"]["search solutions"] > 0 and counts["Direct"]["direct solutions"] > 0


@pytest.mark.slow
def test_each_stage_writes_a_manifest_with_its_parents(finished):
    folder, _ = finished
    config = json.loads((folder / "config.json").read_text())
    assert config["command"] == "astro run micro.yaml" and config["config"]["grpo"]["max_steps"] == 2
    expected = {
        "base": [], "search": ["base"], "traces": ["search"], "direct-sft": ["traces", "base"],
        "astro-sft": ["traces", "base"], "direct-rl": ["direct-sft"], "astro-rl": ["astro-sft"],
        **{f"eval/{model}": [model] for model in MODELS}, "report": list(evaluations(DEFAULT_STAGES)),
        "eval/direct-sft-vote": ["eval/direct-sft", "eval/astro-sft"],
        "eval/direct-rl-vote": ["eval/direct-rl", "eval/astro-rl"],
    }  # fmt: skip
    for stage, parents in expected.items():
        manifest = json.loads((folder / stage / "manifest.json").read_text())
        assert (manifest["stage"], manifest["parents"]) == (stage, parents)
        inputs = stage_folder.read_inputs(epath.Path(folder) / stage)
        assert manifest["digest"] == inputs.digest and manifest["versions"]["jax"] == jax.__version__
    assert (folder / "report.html").read_text().startswith("<!")


@pytest.mark.slow
def test_every_stage_logs_every_step(finished):
    folder, _ = finished
    for stage in MODELS:
        steps = [json.loads(line)["step"] for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1)) and steps
    assert len((folder / "astro-rl" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_each_stage_changes_its_parents_weights(finished):
    folder, _ = finished
    params = {m: checkpoint.load(folder / m / "model")[1] for m in MODELS}
    parents = {name: STAGES[name].initial_model for name in MODELS if STAGES[name].initial_model}
    assert len(parents) == 4
    for child, parent in parents.items():
        assert not np.array_equal(params[child].embed, params[parent].embed)
    assert not np.array_equal(params["astro-sft"].embed, params["direct-sft"].embed)


@pytest.mark.slow
def test_evaluation_and_search_problems_share_no_numbers(finished):
    folder, _ = finished
    trees = list(shards(epath.Path(folder) / "search").read())
    asked = [json.loads(line) for line in (folder / "eval" / "base" / "answers-00000.jsonl").read_text().splitlines()]
    numbers = {tuple(sorted(json.loads(t["problem"]["meta"])["numbers"])) for t in trees}
    held_out = {tuple(sorted(map(int, r["prompt"].removesuffix(".\n").split(" from ")[1].split()))) for r in asked}
    assert numbers and held_out and not numbers & held_out


@pytest.mark.slow
def test_every_key_of_the_config_is_read(finished):
    """No key is without effect: the keys of each section, recorded while a run reads them."""
    read = set().union(*finished[1].values())
    sections = {type(s) for s in vars(cfg.Config()).values() if isinstance(s, cfg.Section)} | {cfg.Config}
    keys = {(section.__name__, name) for section in sections for name in section.model_fields}
    # Keys that other tests read: tests/cli (examples), tests/problems (chat, sources, difficulty),
    # tests/traces/test_writer.py (a model that judges and writes), tests/verify (mathematics, a reward of the user),
    # tests/test_judge.py (verdicts), tests/evaluate (suites).
    writer = ["shard_size", "self_evaluation_pass", "self_evaluation_tokens", "direct_samples", "direct_tokens",
              "clone_retries", "clone_tokens", "clone_temperature"]  # fmt: skip
    source = ["subset", "split", "filters", "fields", "decontaminate", "overlap_threshold",
              "difficulty_model"]  # fmt: skip
    elsewhere = {"Config": ["examples"], "Chat": ["system"], "Traces": writer, "Problems": source,
                 "Verify": ["max_failed_share", "verdicts"],
                 "Eval": ["num_samples", "limit", "temperature", "prompt", "token_limits"],
                 "Grpo": ["reward_timeout_seconds", "kl_cov_coef"]}  # fmt: skip
    assert len(sections) == 13
    assert keys - read == {(section, name) for section, names in elsewhere.items() for name in names}


@pytest.mark.slow
def test_a_stage_reads_only_keys_that_the_registry_names(finished):
    """A key that a stage reads and the registry does not name would keep results that it changes."""
    folder, read = finished
    c = micro(folder)
    by_section = {name: section.__name__ for name, section in cfg.sections().items()}
    fields = {(section.__name__, name) for section in cfg.sections().values() for name in section.model_fields}
    # The data card names the base model. Problems count by their content.
    elsewhere = {("Config", "model"), *(("Problems", name) for name in cfg.Problems.model_fields)}
    assert set(read) == {"", *stage_inputs.planned(c)}
    for stage in stage_inputs.planned(c):
        keys = {key for keys in stage_inputs.keys_of(c, stage, cfg.flatten(c)) for key in keys}
        keys |= {key for key in cfg.flatten(c) if cfg.effect(key) == "none"}
        declared = {(by_section[key.rpartition(".")[0]], key.rpartition(".")[2]) for key in keys}
        parts = [name.rpartition(".") for name in by_section if name]
        containers = {(by_section[parent], name) for parent, _, name in parts}
        # The tokenizer of a model from scratch has no chat template. It reads its own `Chat()`, not the config's.
        own = {("Chat", "template")} if stage == "base" else set()
        assert (read[stage] & fields) - declared - containers - elsewhere - own == set(), stage


@pytest.mark.slow
def test_a_finished_run_is_not_written_again(finished):
    folder, _ = finished
    before = {name: p.stat().st_mtime_ns for name, p in files(folder).items()}
    pipeline.execute(micro(folder), "another command")
    assert {name: p.stat().st_mtime_ns for name, p in files(folder).items()} == before


# ---- Stopped and started again


class Stop(Exception):
    """Stops a run in the middle."""


@pytest.mark.nightly
@pytest.mark.slow
def test_resume_after_a_failed_write_is_bitwise_equal(finished, tmp_path, monkeypatch):
    """Every file, checkpoint and model that is written is a moment to stop at, just before it or just after.

    The threads that renew locks and records write by the clock: their writes are no moments.
    """
    left, written, thread = 0, [], threading.get_ident()

    def breakable(function, label):
        @functools.wraps(function)
        def call(*args, **kwargs):
            nonlocal left
            if threading.get_ident() != thread:
                return function(*args, **kwargs)
            left -= 1
            if left == 0:
                raise Stop
            result = function(*args, **kwargs)
            written.append(label)
            left -= 1
            if left == 0:
                raise Stop
            return result

        return call

    for name in ("write_text", "write_lines"):
        monkeypatch.setattr(storage, name, breakable(getattr(storage, name), "file"))
    monkeypatch.setattr(checkpoint, "save", breakable(checkpoint.save, "model"))
    monkeypatch.setattr(Checkpoints, "save", breakable(Checkpoints.save, "checkpoint"))
    stops = 0
    for moments in (2, 7, 12, 9, 15, 18, 13, 16, 11, 0):
        left = moments
        try:
            pipeline.execute(micro(tmp_path / "run"))
        except Stop:
            stops += 1
    assert stops >= 7 and {"file", "model", "checkpoint"} == set(written)
    assert products(tmp_path / "run") == products(finished[0])
    for model in MODELS:
        a, b = (checkpoint.load(f / model / "model")[1] for f in (tmp_path / "run", finished[0]))
        assert_trees_equal(a, b)


# ---- What cannot run is refused, and nothing is written


IMPOSSIBLE = {
    "a stage without its parent": (dict(stages=["base", "astro-rl"]), ("astro-rl",), "astro-rl needs astro-sft, which"),
    "no such model": (dict(model="./nowhere/model"), (), "nowhere/model: no such folder"),
    "no such stage": (dict(stages=["base", "distill"]), (), "'distill'"),
    "too many problems": (dict(problems=dict(eval=500)), (), "500 problems asked for"),
    "rules without operators": (dict(problems=dict(ops="")), (), "impossible rules"),
    "a batch that cannot be split": (
        dict(mesh=dict(data=2), sft=dict(batch_size=3)),
        (),
        "sft.batch_size=3 .* 2 devices",
    ),
    "a reward function that does not exist": (
        dict(grpo=dict(reward="nowhere:reward")),
        (),
        "^grpo.reward=nowhere:reward: ModuleNotFoundError: No module named 'nowhere'$",
    ),
    "too many devices": (dict(mesh=dict(data=64)), (), "needs 64 devices"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_config_that_cannot_run_writes_nothing(name, tmp_path):
    changes, only, message = IMPOSSIBLE[name]
    with pytest.raises(AstroError, match=message):
        pipeline.execute(micro(tmp_path / "run", **changes), only=only)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_a_run_is_refused_and_unchanged(tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(AstroError, match="not empty and not a run"):
        pipeline.execute(micro(tmp_path))
    with pytest.raises(AstroError, match="not empty and not a run"):
        pipeline.execute(micro(tmp_path / "diary.txt"))
    assert list(files(tmp_path)) == ["diary.txt"]


def test_sft_without_traces_is_refused(tmp_path):
    run = RunContext(micro(tmp_path / "run"))
    config = tiny_config(vocab_size=len(countdown_tokenizer(9)))
    llama.save(run.folder / "base" / "model", config, tiny_params(config), countdown_tokenizer(9))
    plans = run_plan.plan(run, ["astro-sft"])
    for stage in ("base", "search"):
        stage_folder.finish(run.folder / stage, plans[stage].inputs, 0.0)
    pipeline.run_stage(run, plans["traces"])
    with pytest.raises(AstroError, match=r"no trace was made.*raise problems\.search"):
        pipeline.run_stage(run, plans["astro-sft"])


# ---- What a setting changes


@pytest.mark.slow
def test_replay_adds_documents_of_the_base_corpus_to_both_kinds(finished, tmp_path, monkeypatch):
    folder, _ = finished
    documents = {}

    def record(folder, c, config, params, tokenizer, texts, sharding, seed):
        documents[folder.name, replay] = list(texts)

    monkeypatch.setattr(sft, "train", record)
    monkeypatch.setattr(RunContext, "load", lambda *_: (None, None, countdown_tokenizer(25)))
    for replay in (0.0, 0.25):
        run = RunContext(micro(tmp_path / "new", traces=dict(replay=replay)))
        run.folder = epath.Path(folder)
        for kind in ("direct", "astro"):
            pipeline.fine_tune(run, Inputs(stage=f"{kind}-sft", keys={}, contents={}, parents={}))
    n = len(documents["astro-sft", 0.0])
    extra = {kind: documents[kind, 0.25][n:] for kind in ("direct-sft", "astro-sft")}
    assert documents["astro-sft", 0.25][:n] == documents["astro-sft", 0.0] and len(extra["astro-sft"]) == round(n / 4)
    assert extra["astro-sft"] == extra["direct-sft"]  # the same for both
    base = list(pipeline._corpus(run, countdown_tokenizer(25), run.c.seed, 50))
    assert extra["astro-sft"] != base[: len(extra["astro-sft"])]  # but not the documents that the base began with


def test_base_sft_without_a_source_learns_the_corpus_of_the_game_as_chats(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "train", lambda folder, c, *args: {"trained": list(args[3]), "keys": c})
    monkeypatch.setattr(checkpoint, "load", lambda *_: (None, None))
    hf = copy.deepcopy(countdown_tokenizer(9).hf)  # other tests share the tokenizer
    hf.chat_template = "{% for m in messages %} ={{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(tokenizers, "load", lambda path, chat: Tokenizer(hf, chat=chat))
    corpus = dict(documents=40, solved=0, drills=0.5)
    changes = dict(model="countdown-base", base_sft={"batch_size": 3}, chat={"template": True}, corpus=corpus)
    run = RunContext(micro(tmp_path / "run", **changes))
    made = pipeline.base(run, Inputs(stage="base", keys={}, contents={}, parents={}))
    assert made["keys"].batch_size == 3
    pairs = list(itertools.islice(countdown.corpus(run.game, 0, 0, 0.5, 0.0, whole=True), 40))
    assert any(not prompt for prompt, _ in pairs) and any(prompt for prompt, _ in pairs)
    for example, (prompt, response) in zip(made["trained"], pairs, strict=True):
        assert list(example.prompt) == (hf.encode(" =" + prompt) if prompt else [])
        assert hf.decode(example.completion) == response


def test_rl_is_rewarded_by_a_function_of_the_user(tmp_path):
    (tmp_path / "short.py").write_text(
        "def reward(completions, completion_ids, numbers, target, **columns):\n"
        "    assert all(len(n) == 2 for n in numbers) and all(isinstance(t, int) for t in target)\n"
        "    return [None if i == 0 else -len(ids) / 3 for i, ids in enumerate(completion_ids)]\n"
    )
    changes = dict(reward=f"{tmp_path}/short.py:reward", max_steps=1, reward_timeout_seconds=30)
    run = RunContext(micro(tmp_path / "run", grpo=changes))
    config = tiny_config(vocab_size=len(countdown_tokenizer(9)), n_layers=1)
    llama.save(run.folder / "direct-sft" / "model", config, tiny_params(config), countdown_tokenizer(9))
    pipeline.reinforce(run, Inputs(stage="direct-rl", keys={}, contents={}, parents={}))
    (metrics,) = map(json.loads, (run.folder / "direct-rl" / "metrics.jsonl").read_text().splitlines())
    assert metrics["unjudged_rate"] == 0.25  # one of four in each group
    assert metrics["reward_mean"] < -1 / 3 and metrics["reward_mean"] * 36 == pytest.approx(
        round(metrics["reward_mean"] * 36)
    )
    lines = list(map(json.loads, (run.folder / "direct-rl" / "rewards" / "step-00000.jsonl").read_text().splitlines()))
    assert [len(group["judgements"]) for group in lines[1:]] == [4] * 4


def test_rl_finds_its_reference_model_and_the_traces_to_begin_in(tmp_path):
    rules = [{"metric": "kl", "above": 1e9, "action": "rollback"}]
    changes = dict(beta=0.1, restart_rate=1.0, guard=dict(rules=rules), max_steps=1)
    run = RunContext(micro(tmp_path / "run", grpo=changes))
    assert "traces" in stage_inputs.parents(run.c, "direct-rl")
    config = tiny_config(vocab_size=len(countdown_tokenizer(9)), n_layers=1)
    llama.save(run.folder / "astro-sft" / "model", config, tiny_params(config), countdown_tokenizer(9))
    beginning = " 1 + 2 = 3, which misses the target!\n"
    traces = [
        {"problem_id": p.id, "prompt": p.prompt, "segments": [{"text": beginning}, {"text": " 2 - 1 = 1.\n"}]}
        for p in run.problems("rl")
    ]
    storage.write_jsonl(run.folder / "traces" / "astro.jsonl", traces)
    pipeline.reinforce(run, Inputs(stage="astro-rl", keys={}, contents={}, parents={}))
    folder = run.folder / "astro-rl"
    (metrics,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert metrics["restarted_rate"] == 1
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)  # the policy is the reference yet
    assert (folder / "checkpoints" / "0").exists()  # a rollback may go back to the start
    (group,) = map(json.loads, (folder / "rollouts.jsonl").read_text().splitlines())
    assert group["beginning"] == beginning and len(group["completions"]) == 4


def test_sampling_weights_have_the_dtype_of_the_config(tmp_path):
    run = pipeline.execute(
        micro(tmp_path / "run", model="countdown-base", sampler={"dtype": "bfloat16"}), only=("base",)
    )
    policy = run.policy("base")
    assert {x.dtype.name for x in jax.tree.leaves(policy.params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(run.load("base", run.train_sharding)[1])} == {"float32"}
    request = policy.request("Let us make 3 from 1 2.\n", 2, "x")
    (completions,) = policy.generate([request], SamplingParams(max_tokens=8))
    assert all(np.isfinite(c.logprobs).all() for c in completions)


def test_a_stage_counts_the_verdicts_from_before_a_kill(tmp_path, monkeypatch):
    """Three verdicts and a disagreement by a process that was killed, two verdicts by the one that went on."""

    def killed(run, inputs):
        run.verifier.counts.add(["correct", "correct", "wrong"])
        run.verifier.counts.add_disagreement("50", "50%", True)
        run.verifier.counts.save()
        raise KeyboardInterrupt

    def resumed(run, inputs):
        run.verifier.counts.add(["correct", "timeout"])

    monkeypatch.setitem(pipeline.FUNCTIONS, "base", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.execute(micro(tmp_path / "run"), only=("base",))
    monkeypatch.setitem(pipeline.FUNCTIONS, "base", resumed)
    run = pipeline.execute(micro(tmp_path / "run"), only=("base",))
    manifest = json.loads((run.folder / "base" / "manifest.json").read_text())
    assert manifest["verdicts"] == {"correct": 3, "wrong": 1, "timeout": 1} and manifest["disagreements"] == 1
    listed = json.loads((run.folder / "base" / "verdicts-0-of-1.json").read_text())["disagreements"]
    assert listed == [{"gold": "50", "answer": "50%", "correct": True}]


def test_tokens_of_wrong_steps_have_no_weight_with_correct_steps():
    tokenizer = countdown_tokenizer(25)
    texts = [("step", 1, " 2 + 3 = 5, left 5 4.\n"), ("step", 2, " 5 + 4 = 9, left 9.\n"),
             ("backtrack", 1, "Let us make 1 from 5 4.\n"), ("step", 3, " 5 - 4 = 1, left 1.\n")]  # fmt: skip
    record = {
        "prompt": "Let us make 1 from 2 3 4.\n", "response": "".join(text for *_, text in texts),
        "segments": [{"kind": kind, "node": node, "text": text} for kind, node, text in texts],
    }  # fmt: skip
    example = pipeline._trace_example(record, tokenizer, "correct-steps")
    assert tokenizer.decode([example.completion[i] for i in example.wrong]) == texts[1][2]
    whole = pipeline._trace_example(record, tokenizer, "completion")
    assert whole.wrong == [] and whole.completion == example.completion and whole.prompt == example.prompt


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "tp": 2}])
def test_imported_base_is_split_over_the_mesh(sizes, tmp_path, monkeypatch):
    """The base was loaded over tp alone: with fsdp=8 each device held all parameters in float32."""
    shares = []

    def save(folder, config, params, tokenizer):
        matrices = (params.embed, params.layers.wq, params.layers.w_up)
        shares.extend(x.nbytes / x.addressable_shards[0].data.nbytes for x in matrices)

    monkeypatch.setattr(checkpoint, "save", save)
    run = RunContext(cfg.parse({"model": "countdown-base", "mesh": sizes, "out": str(tmp_path / "run")}))
    pipeline.base(run, Inputs(stage="base", keys={}, settings={}, contents={}, parents={}))
    assert shares == [np.prod(list(sizes.values()))] * 3
