"""What would stop a run is found before it starts, and all of it at once."""

import json
import os

import jax
import pytest
from etils import epath
from helpers import Bucket, bucket
from micro_run import micro

from astro_jax import check, cli, llama, pipeline, stage_folder
from astro_jax import config as cfg
from astro_jax.errors import AstroError, TransientError
from astro_jax.stage_folder import Inputs
from astro_jax.types import Verdict

jax.devices()  # all eight are there before a run asks for one


def found(c, *names, topology=None):
    """The lines of a check, as one text."""
    return "\n".join(check.find(c, names, topology))


def test_nothing_stands_in_the_way_of_the_shipped_game(tmp_path):
    assert check.find(micro(tmp_path / "run")) == []
    assert check.find(micro(tmp_path / "run", model="countdown-base", problems=dict(rl=7))) == []


def test_all_that_is_wrong_is_listed_at_once_and_nothing_is_written(tmp_path):
    wrong = dict(problems=dict(eval=500, search=400), mesh=dict(data=2), sft=dict(batch_size=3), base_sft={})
    c = micro(tmp_path / "run", **wrong)
    lines = check.find(c)
    for text in ("base_sft: model=scratch", "500 problems asked for", "400 problems asked for", "sft.batch_size=3"):
        assert sum(text in line for line in lines) == 1, text
    with pytest.raises(AstroError) as error:
        pipeline.execute(c)
    assert all(line in str(error.value) for line in lines) and not (tmp_path / "run").exists()


def test_only_what_the_stages_need_is_checked(tmp_path):
    c = micro(tmp_path / "run", problems=dict(eval=500))
    assert "500 problems asked for" in found(c) and found(c, "base", "search") == ""


def test_a_finished_base_does_not_hide_another_model_of_the_config(tmp_path):
    folder = epath.Path(tmp_path / "run/base")
    old = Inputs(stage="base", keys={}, contents={}, parents={}, settings={"model": "/moved/away"})
    stage_folder.begin(folder, old)
    stage_folder.finish(folder, old, 1.0)
    (tmp_path / "empty").mkdir()
    text = found(micro(tmp_path / "run", model=str(tmp_path / "empty")), "search")
    assert f"{tmp_path}/empty: no config.json" in text
    assert check.Subject(micro(tmp_path / "run", model="/moved/away"), ()).model_folder == folder / "model"


@pytest.fixture
def words(tmp_path):
    """Settings of a run on mathematics from a file, whose answers may be replaced."""

    def make(answers=range(60), **changes):
        lines = [{"problem": f"What is {i} + {i}?", "answer": str(answer)} for i, answer in enumerate(answers)]
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
        raw = {
            "model": "countdown-base", "out": str(tmp_path / "run"), "traces": {"replay": 0},
            "problems": {"path": str(tmp_path / "p.jsonl"), "task": "math", "search": 20, "rl": 20, "eval": 5},
        }  # fmt: skip
        for key, value in changes.items():
            raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
        return cfg.parse(raw)

    return make


def test_a_task_without_a_source_does_not_fall_back_to_countdown(words):
    assert "problems.task=math: no source of problems; set problems.path" in found(words(problems={"path": ""}))


def test_problems_without_an_answer_need_a_judge(words):
    assert "problems.task=judged: only a judge can decide" in found(words(problems={"task": "judged"}), "search")


def test_a_box_that_the_prompt_does_not_ask_for(words):
    assert "reads answers in \\boxed{}" in found(words(), "search")
    assert "boxed" not in found(words(verify={"reward_rule": "lenient"}), "search")


def test_gold_answers_that_the_verifier_cannot_read(words, monkeypatch):
    c = words(verify={"reward_rule": "lenient"})
    assert found(c, "search") == ""
    monkeypatch.setattr(check.Verifier, "judge", lambda _, responses: [Verdict(False, False, None, 0)] * len(responses))
    assert "20 of 20 sampled gold answers are not judged correct" in found(c, "search")


def test_a_missing_chat_template_is_named(words):
    assert "chat template cannot be used" in found(words(chat={"template": True}), "search")


@pytest.mark.parametrize("section, stage", [("base_sft", "base"), ("sft", "direct-sft"), ("sft", "sft")])
def test_rows_of_sft_that_are_longer_than_the_models_context(section, stage, tmp_path):
    line = f"{section}.max_length=8192: longer than the 512 positions of the model; set {section}.max_length=512"
    for length, expected in ((8192, True), (512, False)):
        c = micro(tmp_path / "run", model="countdown-base", **{section: {"max_length": length}})
        assert (line in found(c, stage)) is expected and line not in found(c, "search")


def test_limits_that_leave_no_prompt(tmp_path):
    c = micro(tmp_path / "run", model="countdown-base", eval=dict(max_tokens=400), grpo=dict(max_completion_length=60))
    text = found(c, "direct-rl", "eval/base")
    assert "rl: no prompt fits" in text and "lower grpo.max_completion_length" in text
    assert "eval: no prompt fits" not in text or "lower eval.max_tokens" in text


def test_held_out_prompts_that_leave_none_to_train_on(tmp_path):
    c = micro(tmp_path / "run", problems={"rl": 1}, grpo={"eval_share": 0.5})
    (line,) = (line for line in check.find(c) if "eval_share" in line)
    assert line == "eval_share=0.5 of 1 prompts leaves none to train on; give more prompts"


def test_a_judge_that_is_not_there_and_one_without_room_for_an_answer(tmp_path):
    lines = [
        found(micro(tmp_path / "run", verify=dict(judge=dict(model=model, max_tokens=10**6))), "search")
        for model in ("nowhere", "countdown-base")
    ]
    assert "nowhere: no such folder" in lines[0] and "verify.judge: the rubric of" in lines[1]


def test_a_state_that_no_device_can_hold_and_a_disk_that_is_too_small(tmp_path, monkeypatch):
    c = cfg.parse({"model": "meta/llama-3.1-70b", "out": str(tmp_path / "run"), "mesh": {"fsdp": 4, "tp": 4}})
    monkeypatch.setattr(check.storage, "free_bytes", lambda path: 1e12)
    text = found(c, "direct-sft", topology="v5e:4x4")
    assert "training needs 65.7 GiB a device" in text and "a device has 15.8 GiB; raise mesh.fsdp" in text
    assert "are free; make room" in text  # weights, moments and two checkpoints of 70 billion parameters
    assert "training needs" not in found(c, "direct-sft", topology="v5p:2x2x4")


def test_a_run_that_goes_on_needs_no_room_for_the_checkpoints_that_it_has(tmp_path, monkeypatch):
    c = micro(tmp_path / "run", model="countdown-base")
    monkeypatch.setattr(check.storage, "free_bytes", lambda path: 1e6)
    assert "are free; make room" in found(c, "direct-sft")
    folder = tmp_path / "run/direct-sft/checkpoints/5"
    folder.mkdir(parents=True)
    (folder / "state").touch()
    os.truncate(folder / "state", 10**9)
    assert found(c, "direct-sft") == ""


def test_a_mesh_of_another_size_than_the_slice(tmp_path):
    c = micro(tmp_path / "run", model="countdown-base", mesh=dict(fsdp=2))
    assert "needs 2 devices, but 16 exist" in found(c, "direct-sft", topology="v5e:4x4")
    assert "params" not in found(c) and llama.load("countdown-base")[0].n_kv_heads % 2 == 0


def test_a_check_that_ends_with_an_error_keeps_its_lines(tmp_path):
    lines = found(micro(tmp_path / "run", mesh=dict(data=64)))
    assert "needs 64 devices" in lines and "batch_size=16 cannot be split" in lines


def test_the_command_prints_a_line_each_and_exits_with_2(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("base: quickstart\nproblems: {task: math}\n")
    assert cli.main(["check", str(tmp_path / "a.yaml"), "traces.replay=0"]) == 2
    assert "no source of problems" in capsys.readouterr().out
    assert cli.main(["check", "quickstart", f"out={tmp_path}/run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"problems": []}


def test_files_of_this_machine_are_refused_for_a_slice_that_writes_to_a_bucket(tmp_path, monkeypatch):
    """The workers of the slice do not see them."""
    folder = bucket(monkeypatch)
    (tmp_path / "model").mkdir()
    c = micro(folder, model=str(tmp_path / "model"), problems=dict(path="/home/me/p.jsonl", task="math"))
    lines = list(check._workers(check.Subject(c, (), "v5e:1x1")))
    assert [line.split("=")[0] for line in lines] == ["problems.path", "model"]
    assert not list(check._workers(check.Subject(c, ()))) and not Bucket.store


def test_a_bucket_that_refuses_this_machine_is_listed_and_one_that_is_silent_is_no_fault_of_the_run(monkeypatch):
    c = micro(bucket(monkeypatch))
    assert check.find(c) == [] and not Bucket.store
    Bucket.refuse("write", OSError("Forbidden: gs://bucket"))
    (line,) = check.find(c)
    assert line.startswith("out=gs://bucket/run: this machine's account cannot use the bucket (Forbidden")
    Bucket.refuse("write", ConnectionResetError("reset by peer"))
    with pytest.raises(TransientError, match="does not answer"):
        check.find(c)
