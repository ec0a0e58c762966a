"""A changed config: which stages are kept, from where, and which run again."""

import contextlib
import json
import os
import random
import shutil

import jax
import pytest
from etils import epath
from helpers import Bucket, bucket
from micro_run import files, micro, products

from astro_jax import pipeline, run_plan, stage_folder, stage_inputs
from astro_jax.cli import main
from astro_jax.errors import AstroError
from astro_jax.report import lineage
from astro_jax.run_context import RunContext
from astro_jax.stage_folder import Inputs

jax.devices()  # all eight are there before a run asks for one
STAGES = ["base", "search", "traces", "astro-sft", "astro-rl", "eval", "report"]


def small(out, **changes):
    """A micro run of ASTRO alone."""
    return micro(out, stages=STAGES, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "finished"
    pipeline.execute(small(folder))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, which a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def times(folder):
    """When each file of the stages was written."""
    return {name: p.stat().st_mtime_ns for name, p in files(folder).items() if "/" in name}


def current_products(folder):
    """The products of a run without the results that were put aside."""
    return {name: x for name, x in products(folder).items() if not name.startswith("previous/")}


def notes(c):
    plans = run_plan.plan(RunContext(c), stage_inputs.planned(c))
    return {name: p.note for name, p in plans.items()}


@pytest.mark.slow
def test_a_changed_key_of_rl_runs_rl_its_evaluation_and_the_report_alone(copy, capfd):
    before = times(copy)
    pipeline.execute(small(copy, grpo=dict(epsilon=0.1)))
    assert capfd.readouterr().err.count("kept") == 6
    after = times(copy)
    written = {name.rpartition("/")[0] for name in after if after[name] != before.get(name)}
    stages = {"/".join(name.split("/")[: 2 if name.startswith("eval") else 1]) for name in written}
    assert stages - {"previous"} == {"astro-rl", "eval/astro-rl", "report"}
    assert notes(small(copy, grpo=dict(epsilon=0.1))) == dict.fromkeys(stage_inputs.planned(small(copy)), "kept")


@pytest.mark.slow
def test_results_of_an_old_value_come_back_with_it(copy):
    original = products(copy)
    pipeline.execute(small(copy, grpo=dict(epsilon=0.1)))
    assert notes(small(copy))["astro-rl"] == "kept, made before"
    pipeline.execute(small(copy))
    assert current_products(copy) == original


@pytest.mark.slow
def test_a_stopped_stage_goes_on_after_another_value_was_tried(copy):
    original = products(copy)
    (copy / "astro-rl" / "manifest.json").unlink()  # as if it had been killed before its end
    pipeline.execute(small(copy, grpo=dict(epsilon=0.1)))
    assert notes(small(copy))["astro-rl"] == "goes on, begun before"
    pipeline.execute(small(copy))
    assert current_products(copy) == original


@pytest.mark.slow
def test_the_note_names_what_changed(copy):
    changed = notes(small(copy, grpo=dict(epsilon=0.1, max_steps=3), eval=dict(max_tokens=12)))
    assert changed["astro-rl"] == "runs again, grpo.max_steps was 2, grpo.epsilon was 0.2"
    assert changed["eval/base"] == "runs again, eval.max_tokens was 16"
    assert changed["eval/astro-rl"] == "runs again, eval.max_tokens was 16, astro-rl changed"
    assert notes(small(copy, problems=dict(search=6)))["search"] == "runs again, problems.search was 7"
    kept = notes(small(copy, sampler=dict(max_num_seqs=4), sft=dict(save_steps=7)))
    assert kept["search"] == "kept (by rounding it may differ: sampler.max_num_seqs was 8)"
    assert kept["astro-sft"] == "kept"


@pytest.mark.slow
def test_stages_of_another_run_are_kept_by_reference(copy, tmp_path, capsys):
    c = small(tmp_path / "b", **{"from": str(copy)}, grpo=dict(epsilon=0.1))
    assert notes(c)["search"] == f"kept from {copy}" and notes(c)["astro-rl"] == "runs"
    pipeline.execute(c)
    assert [p.name for p in (tmp_path / "b" / "search").iterdir()] == ["reference.json"]
    fresh = tmp_path / "fresh"
    pipeline.execute(small(fresh, grpo=dict(epsilon=0.1)))
    assert (tmp_path / "b" / "results.json").read_text().split('"wall_s"')[0] == (
        (fresh / "results.json").read_text().split('"wall_s"')[0]
    )
    for name in ("astro-rl/metrics.jsonl", "eval/astro-rl/answers-00000.jsonl"):
        assert (tmp_path / "b" / name).read_bytes() == (fresh / name).read_bytes()
    # A third run that keeps from the second one refers to the first, and commands follow references.
    pipeline.execute(small(tmp_path / "c", **{"from": str(tmp_path / "b")}))
    assert stage_folder.resolve(epath.Path(tmp_path / "c"), "search") == epath.Path(copy) / "search"
    model = str(tmp_path / "b" / "base" / "model")
    assert main(["sample", model, "--prompt", "Let us make 3 from 1 2.", "--max-new-tokens", "2"]) == 0
    assert main(["show", str(tmp_path / "b"), "--json"]) == 0
    description = json.loads(capsys.readouterr().out.splitlines()[-1])
    origin = {s["stage"]: s["from"] for s in description["stages"]}
    assert origin["search"] == "../run" and origin["astro-rl"] is None


@pytest.mark.slow
def test_a_reference_survives_a_changed_run_and_names_a_deleted_one(copy, tmp_path):
    pipeline.execute(small(tmp_path / "b", **{"from": str(copy)}))
    pipeline.execute(small(copy, problems=dict(search=6)), only=("search",))  # puts the old trees aside
    assert notes(small(tmp_path / "b"))["search"] == f"kept from {copy}/previous/{_previous(copy, 'search')}"
    shutil.rmtree(copy / "previous")
    with pytest.raises(AstroError, match=r"b: search is kept from .*run, which no longer holds.*from=DIR"):
        notes(small(tmp_path / "b"))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    with pytest.raises(AstroError, match="base is kept from"):
        notes(small(tmp_path / "b"))


def _previous(folder, stage):
    """The name of the folder with the results of a stage that were put aside."""
    (name,) = (p.name for p in (folder / "previous").iterdir() if p.name.startswith(f"{stage}-"))
    return name


def _interrupt(run, inputs):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_begun_stage_keeps_its_shard_size(copy, monkeypatch):
    before = (copy / "eval" / "base" / "answers-00000.jsonl").read_bytes()
    for name in ("manifest.json", "answers-00001.jsonl"):
        (copy / "eval" / "base" / name).unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # it is killed again, and then goes on
        patch.setitem(pipeline.FUNCTIONS, "eval/base", _interrupt)
        pipeline.execute(small(copy, eval=dict(shard_size=3)))
    pipeline.execute(small(copy, eval=dict(shard_size=3)))
    assert (copy / "eval" / "base" / "answers-00000.jsonl").read_bytes() == before
    rows = [len(p.read_text().splitlines()) for p in sorted((copy / "eval" / "base").glob("answers-*"))]
    assert rows == [4, 1]


@pytest.mark.slow
def test_stages_that_follow_a_changed_parent_are_refused_alone(copy):
    with pytest.raises(AstroError, match=r"astro-rl needs astro-sft, which has changed.*sft\.learning_rate was 0\.003"):
        pipeline.execute(small(copy, sft=dict(learning_rate=0.001)), only=("astro-rl",))


def test_a_run_of_an_older_version_is_refused_and_unchanged(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"hash": "abc", "command": "", "config": {}}')
    with pytest.raises(AstroError, match=r"astro_jax 0\.2 or older.*out=DIR.*model="):
        pipeline.execute(small(tmp_path / "old"))
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["config.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name, message", [("nowhere", "no run is there"), ("run", "is the folder of this run")])
def test_a_run_to_keep_from_must_be_another_run(copy, tmp_path, name, message):
    with pytest.raises(AstroError, match=message):
        notes(small(copy, **{"from": str(tmp_path / name)}))


@pytest.mark.slow
def test_show_marks_a_stage_whose_parent_ran_again(copy):
    pipeline.execute(small(copy, traces=dict(max_backtracks=1)), only=("traces",))
    stages = {s["stage"]: s for s in lineage.describe(copy)["stages"]}
    assert stages["astro-sft"]["changed"] == ["traces"] and stages["traces"]["changed"] == []
    assert stages["search"]["parent"] == "base" and stages["eval/base"]["parent"] == "base"
    assert lineage.describe(copy)["previous"]["count"] == 1


EDITS = {
    "seed": [1, 2],
    "problems": dict(search=[6, 5], rl=[5], eval=[4]),
    "search": dict(num_rollouts=[1, 3], c_puct=[0.5]),
    "traces": dict(max_backtracks=[1], replay=[0.0, 0.5], merge_at=["root"]),
    "sft": dict(learning_rate=[0.001], save_steps=[5]),
    "grpo": dict(epsilon=[0.1], max_steps=[1, 3], save_steps=[2], weight_decay=[0.1]),
    "eval": dict(max_tokens=[12], shard_size=[2]),
    "search.": dict(shard_size=[3]),
}


def random_edit(rng):
    """Changes of one to three keys."""
    changes = {}
    for _ in range(rng.randint(1, 3)):
        section = rng.choice(sorted(EDITS))
        if section == "seed":
            changes["seed"] = rng.choice(EDITS["seed"])
        else:
            key = rng.choice(sorted(EDITS[section]))
            changes.setdefault(section.rstrip("."), {})[key] = rng.choice(EDITS[section][key])
    return changes


@pytest.mark.nightly
@pytest.mark.slow
def test_what_is_reused_equals_a_fresh_run(copy, tmp_path):
    """Random edits of one run, each compared with a fresh run of its config. ASTRO_TEST_EDITS sets their number."""
    for i in range(int(os.environ.get("ASTRO_TEST_EDITS", "2"))):
        changes = random_edit(random.Random(i))
        pipeline.execute(small(copy, **changes))
        pipeline.execute(small(tmp_path / "fresh", **changes))
        kept, fresh = current_products(copy), products(tmp_path / "fresh")
        assert kept.pop("results") == fresh.pop("results"), (i, changes)
        assert _contents(kept) == _contents(fresh), (i, changes)
        shutil.rmtree(tmp_path / "fresh")


def _contents(products):
    """The records of each store, whatever the size of its shards."""
    stores = {}
    for name in sorted(products):
        stem = name.rsplit("-", 1)[0] if name.rsplit("-", 1)[-1].split(".")[0].isdigit() else name
        stores[stem] = stores.get(stem, b"") + products[name]
    return stores


def test_only_the_main_process_moves_results(copy, monkeypatch):
    run = RunContext(small(copy, grpo=dict(epsilon=0.1)))
    plan = run_plan.plan(run, ["astro-rl"])["astro-rl"]
    monkeypatch.setattr(run_plan.distributed, "is_main_process", lambda: False)
    monkeypatch.setattr(stage_folder, "read_inputs", lambda folder: pytest.fail("read what is moved"))
    run_plan.adopt(run.folder, plan)


@pytest.mark.parametrize("stop", [0, 1, 7, 22, 23, 30, 43, 44, 45, 46])
def test_a_move_in_a_bucket_that_was_stopped_loses_no_result(stop, monkeypatch):
    old, new = (Inputs(stage="search", keys={"k": k}, contents={}, parents={}) for k in (1, 2))
    run, calls = bucket(monkeypatch), 0

    class Stopped(Exception):
        pass

    def adopt(inputs):
        run_plan.adopt(run, run_plan._plan_stage(run, "search", inputs, []))

    def counted(method):
        def call(*args, **options):
            nonlocal calls
            calls += 1
            if calls > stop:
                raise Stopped
            return method(*args, **options)

        return call

    stage_folder.begin(run / "search", old)
    for i in range(20):
        (run / "search" / f"trees-{i:05d}.jsonl.gz").write_bytes(b"x")
    stage_folder.finish(run / "search", old, 1.0)
    for inputs in (new, old):  # put aside, then restored
        calls = 0
        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            for name in ("cp_file", "_rm"):
                patch.setattr(Bucket, name, counted(getattr(Bucket, name)))
            adopt(inputs)
        adopt(inputs)
        if inputs is new:
            stage_folder.begin(run / "search", new)
    assert run_plan._plan_stage(run, "search", old, []).state == "kept"
    assert len(list((run / "search").iterdir())) == 22
