"""The traces stage with a model: interrupted runs, shards, the bar, the counts, and a real model."""

import json
import random

from etils import epath
from helpers import tiny_config, tiny_params
from traces_fixtures import TOKENIZER, pets_tree, rewrite_well, scripted_writer

from astro_jax import config as cfg
from astro_jax import llama, pipeline, run_plan, stage_folder
from astro_jax.judge import read_verdict
from astro_jax.storage import Shards
from astro_jax.traces import dataset
from astro_jax.traces.writer import TraceWriter
from astro_jax.verify import verify


class Interrupted(Exception):
    """Ends a run in the middle."""


VERDICTS = cfg.Verify().verdicts
ALL_SWITCHES = dict(
    clone="model", phrases="model", self_evaluation=2, self_evaluation_pass=0.5, direct="best-of-n", shard_size=2
)


def answer_at_random(request_id, text, j):
    """A model that judges, writes and solves at random. Each draw is named by the request."""
    rng = random.Random(repr((request_id, j)))
    if request_id[1] == "evaluate":
        return rng.choice(["Verdict: correct", "Verdict: incorrect", "Hm."])
    if request_id[1] == "best-of-n":
        return rng.choice(["The answer is 5.", "5", "6"])
    return rng.choice([rewrite_well(request_id, text, j), "So 99.", "…and", ""])


def run_stage(folder, answer, trees=5, **changes):
    """(counts, engine) of the stage."""
    store = Shards(epath.Path(folder) / "search", "trees")
    store.write(0, (pets_tree(f"pets {i}").record() for i in range(trees)))
    writer, engine = scripted_writer(answer)
    c = cfg.Traces(**(ALL_SWITCHES | changes))
    return dataset.run(epath.Path(folder) / "traces", store, c, 0, writer, TOKENIZER), engine


def read_files(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "traces").iterdir())}


def test_an_interrupted_stage_ends_with_the_same_bytes(tmp_path):
    counts, engine = run_stage(tmp_path / "whole", answer_at_random, shard_size=1)
    total_calls, completions, interruptions = len(engine.calls), 0, 0

    def interrupt(*request):
        nonlocal completions
        completions += 1
        if completions % 100 == 0:
            raise Interrupted
        return answer_at_random(*request)

    for _ in range(20):
        try:
            resumed_counts, engine = run_stage(tmp_path / "killed", interrupt, shard_size=1)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 2 and resumed_counts == counts
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")
    assert len(engine.calls) < total_calls  # finished shards were not made again
    _, engine = run_stage(tmp_path / "killed", answer_at_random, shard_size=1)
    assert not engine.calls


def test_the_shard_size_changes_no_trace(tmp_path):
    files = []
    for size in (1, 2, 5):
        folder = tmp_path / str(size)
        run_stage(folder, answer_at_random, shard_size=size)
        assert len(list((folder / "traces").glob("shards-*.jsonl"))) == -(-5 // size)
        files.append({name: b for name, b in read_files(folder).items() if not name.startswith("shards")})
    assert files[0] == files[1] == files[2] and len(files[0]) == 3


def test_the_bar_moves_inside_a_shard_and_counts_each_tree_once(tmp_path, monkeypatch):
    positions, advance = [], dataset.ProgressBar.advance

    def watch(bar, n=1, fraction=0.0, **measures):
        advance(bar, n, fraction, **measures)
        positions.append((bar.count, fraction))

    monkeypatch.setattr(dataset.ProgressBar, "advance", watch)
    run_stage(tmp_path, answer_at_random, shard_size=3)
    progress = [count + fraction for count, fraction in positions]
    assert progress == sorted(progress) and len({p for p in progress if 0 < p < 3}) > 3
    assert [position for position in positions if position[0] and not position[1]] == [(3, 0), (5, 0)]
    assert all(0 <= fraction <= (3 if count == 0 else 2) for count, fraction in positions)


def test_counts_equal_a_recount_of_judgements_and_rewrites(tmp_path):
    counts, _ = run_stage(tmp_path, answer_at_random)
    shards = sorted((tmp_path / "traces").glob("shards-*"))
    records = [json.loads(line) for p in shards for line in p.read_text().splitlines()]
    terminals = [t for r in records for t in r["evaluation"]["terminals"]]
    verdicts = [read_verdict(j, VERDICTS) for t in terminals for j in t["judgements"]]
    evaluation = counts["self-evaluation"]
    assert (evaluation["judged"], evaluation["judgements approved"], evaluation["judgements unread"]) == (
        10, verdicts.count(VERDICTS[0]), verdicts.count(None)
    )  # fmt: skip
    assert evaluation["passed"] == sum(
        any(read_verdict(j, VERDICTS) == VERDICTS[0] for j in t["judgements"]) for t in terminals
    )
    assert evaluation["share passed"] == evaluation["passed"] / 10 and 0 < evaluation["passed"] < 10
    assert evaluation["trees without any left"] == sum(not r["astro"] for r in records)
    rewrites = [e["rewrites"] for r in records for e in r["astro"]]
    segments, accepted = (sum(r.get(k, 0) for r in rewrites) for k in ("segments", "accepted"))
    assert counts["rewrites"]["share accepted"] == round(accepted / segments, 4) and 0 < accepted < segments
    assert counts["rewrites"]["by the template"] == segments - accepted
    assert counts["rewrites"]["rejected: cut off"] == sum(r.get("cut off", 0) for r in rewrites) > 0
    assert counts["terminals"] == {"correct": 10, "wrong": 5, "without an answer": 0}
    assert counts["Direct"]["examples"] == counts["ASTRO"]["examples"]


def test_the_stage_asks_a_real_model_by_the_prompts_of_the_run(tmp_path):
    """A tiny Llama of random weights writes noise, but each call of the sampler is a real one."""
    short = {"evaluate": "{{ problem }}{{ solution }}", "rewrite": "{{ problem }}{{ solution }}{{ step }}"}
    for name, text in short.items():
        (tmp_path / f"{name}.txt").write_text(text)
    config = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, max_positions=320)
    run = pipeline.RunContext(cfg.parse({
        "out": str(tmp_path / "run"), "sampler": {"max_num_seqs": 1, "block_size": 256},
        "traces": {"self_evaluation": 1, "clone": "model", "self_evaluation_tokens": 8, "clone_retries": 0},
        "prompts": {name: str(tmp_path / f"{name}.txt") for name in short},
    }))  # fmt: skip
    llama.save(run.folder / "base" / "model", config, tiny_params(config), TOKENIZER)
    Shards(run.folder / "search", "trees").write(0, [pets_tree().record()])
    plans = run_plan.plan(run, ["traces"])
    for parent in ("base", "search"):
        stage_folder.finish(run.folder / parent, plans[parent].inputs, 0.0)
    pipeline.run_stage(run, plans["traces"])
    counts = json.loads((tmp_path / "run" / "traces" / "counts.json").read_text())
    assert (counts["self-evaluation"]["judged"], counts["self-evaluation"]["judgements unread"]) == (2, 2)
    assert counts["self-evaluation"]["trees without any left"] == 1 and counts["ASTRO"]["examples"] == 0
    writer = TraceWriter(run.policy("base"), run.verifier, run.prompts)
    c = cfg.Traces(clone="model", clone_tokens=8, search_examples=0)
    (record,) = dataset.make_records([pets_tree()], c, 0, writer)
    for e in record["astro"] + record["direct"]:
        assert e["rewrites"]["segments"] >= 2 and sum(e["rewrites"].values()) > e["rewrites"]["segments"]
        assert verify(pets_tree().problem, e["response"], True).correct
