"""`astro plan` without a TPU compiler: published architectures, bad input, exit codes. test_tpu.py compiles."""

import json
import os
import re
import sys
import types

import jax
import pytest
from helpers import tiny_config

from astro_jax import cli, llama
from astro_jax import config as cfg
from astro_jax.llama.config import llama3_8b, llama3_70b
from astro_jax.mesh import make_mesh
from astro_jax.plan import planner, topology
from astro_jax.plan.programs import Plan, size
from astro_jax.sampler.kv_cache import CacheLayout


def test_published_architectures_have_their_published_number_of_parameters():
    assert llama.params.count(llama3_8b()) == 8_030_261_248
    assert llama.params.count(llama3_70b()) == 70_553_706_496
    assert planner.model_config("meta-llama/Llama-3.1-8B-Instruct") == llama3_8b()
    assert planner.model_config("Llama-3.3-70B-Instruct") == llama3_70b()
    assert planner.model_config("countdown-base").n_layers == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v9:4x4"], "unknown TPU; choose one of v4, v5e, v6e, v5p"),
        (["--topology", "v5e:3x3"], "unknown slice of v5e; choose one of 1x1, 2x2"),
        (["--topology", "v5e:4x4"], "has 2 devices and v5e:4x4 has 16 chips"),
        (["--topology", "v5e:4x4:2"], "has 2 devices and v5e:4x4:2 has 32 chips"),
        (["--topology", "v5e:4x4:0"], "'0' is no number of slices; write KIND:SHAPE:SLICES"),
        (["--topology", "v5e:4x4:2:1"], "'2:1' is no number of slices"),
        (["--topology", "v5e:1x1", "--prompt", "0"], "--prompt must be at least 1"),
        (["--topology", "v5e:1x1", "--reached", "0"], "--reached above 0"),
        (["--topology", "v5e:1x1", "--mean-length", "1.5"], "--mean-length must be above 0 and at most 1"),
        (["--topology", "v5e:1x1", "mesh.data=1", "model=nowhere"], "published shapes are llama-3.1-8b"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(topology, "get", lambda _: pytest.fail("libtpu was used"))
    assert cli.main(["plan", "configs/quickstart.yaml", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_missing_libtpu_is_an_error_that_names_the_package(capsys, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["plan", "configs/quickstart.yaml", "--topology", "v5e:1x1", "mesh.data=1"]) == 2
    assert "needs the extra `plan`: pip install libtpu" in capsys.readouterr().err


def test_program_that_does_not_fit_exits_with_3_and_names_the_config_keys(capsys, monkeypatch):
    row = {"stage": "sft", "program": "step", "peak_gib": 20.0, "held_gib": 0.0, "at_once_gib": 20.0, "fits": False}
    plan = {"topology": "v5e:4x4", "chips": 16, "hbm_gib": 15.75, "fits": False, "programs": [row]}
    plan |= {"libtpu": {"plan": "0.1", "run": "0.1"}}
    totals = ("total_hours", "total_chip_hours", "longest_total_hours", "longest_total_chip_hours")
    recipe = {"reached": 0.4, "mean_length": 0.5} | dict.fromkeys(totals, 0.0)
    monkeypatch.setattr(planner, "plan_run", lambda *_: plan | {"recipe": recipe})
    assert cli.main(["plan", "configs/quickstart.yaml", "--topology", "v5e:4x4"]) == 3
    out, err = capsys.readouterr()
    assert "sft step needs 20.0 of 15.75 GiB a chip: lower sft.micro_batch_size" in err
    assert "NO" in out


def test_base_step_that_does_not_fit_is_told_to_change_the_keys_of_base_sft():
    """The advice named sft.micro_batch_size, which the stage `base` does not read."""
    rows = [{"stage": stage, "program": "step", "at_once_gib": 20, "fits": False} for stage in ("base", "sft")]
    base, sft, _ = planner.suggest_changes({"hbm_gib": 15.75, "programs": rows}).split("; ")
    assert base.startswith(
        "base step needs 20 of 15.75 GiB a chip: lower base_sft.micro_batch_size or base_sft.max_len"
    )
    assert sft.startswith("sft step needs 20 of 15.75 GiB a chip: lower sft.micro_batch_size or sft.max_length")


def test_the_hours_of_a_run_need_no_compilation(capsys, monkeypatch):
    """The launchers ask for them before they rent a slice."""
    monkeypatch.setattr(topology, "get", lambda name: types.SimpleNamespace(devices=jax.devices()))
    monkeypatch.setattr(planner, "libtpu_versions", lambda: {"plan": "0.1", "run": "0.2"})
    monkeypatch.setattr(planner, "_compile_program", lambda *_: pytest.fail("compiled"))
    command = ["plan", "configs/llama3.1-8b.yaml", "--topology", "v5e:2x4", "mesh={fsdp: 2, tp: 4}", "--no-compile"]
    assert cli.main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    hours = {name: cost["hours"] for name, cost in plan["recipe"].items() if isinstance(cost, dict) and "of" in cost}
    assert plan["recipe"]["total_hours"] == pytest.approx(sum(hours.values()), abs=0.1)
    assert min(hours[name] for name in ("search decode", "astro-sft step", "direct-rl decode")) > 0
    assert "fits" not in plan
    assert cli.main(command) == 0
    assert f"these programs take {plan['recipe']['total_hours']:,} hours" in capsys.readouterr().out


def test_rows_that_fit_equal_a_count_by_hand():
    """40 bytes of weights, 8 rows of 10 bytes: 95 of 100 bytes hold 5 rows, so 4 in groups of 2 on 2 devices."""
    chip = topology.Chip(hbm_bytes=100, flops_per_s=1.0, hbm_bandwidth=1.0, ici_bandwidth=1, slices=())
    layout = CacheLayout(num_seqs=8, group_size=2, prefix_blocks=1, completion_blocks=1, block_size=8, devices=2)
    assert planner.rows_that_fit(layout, 10.0, 120, chip) == 4
    assert planner.rows_that_fit(layout, 10.0, 100, chip) == 4 and planner.rows_that_fit(layout, 10.0, 93, chip) == 8
    assert planner.rows_that_fit(layout, 10.0, 190, chip) == 0


def test_a_device_is_a_chip_on_every_kind_of_tpu():
    pytest.importorskip("libtpu", reason="the extra `plan` (libtpu) is not installed")
    for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
        assert len(topology.get(name).devices) == topology.parse(name)[1] == 4
    devices = topology.get("v5e:2x2:3").devices
    assert len(devices) == topology.parse("v5e:2x2:3")[1] == 12 and {d.slice_index for d in devices} == {0, 1, 2}


@pytest.mark.slow
def test_a_step_of_sft_compiles_for_two_slices():
    """Between slices the program sends and receives."""
    pytest.importorskip("libtpu", reason="the extra `plan` (libtpu) is not installed")
    config = tiny_config(n_layers=1, d_ff=512, vocab_size=512, d_model=256, head_dim=64)
    mesh = make_mesh(2, 2, 2, devices=topology.get("v5e:2x2:2").devices)
    _, program = Plan(cfg.Config(sft=cfg.Sft(batch_size=8, max_length=128)), config, mesh).programs("sft")
    assert " send(" in planner._text(program.lower().compile())


def test_compile_only_reports_memory_without_roofline_and_collectives():
    config = tiny_config(n_layers=1, d_ff=40, vocab_size=48)
    plan = Plan(cfg.Config(sft=cfg.Sft(batch_size=2, max_length=16)), config, make_mesh())
    _, program = plan.programs("sft")
    full, memory = (planner._compile_program(program, topology.CHIPS["v5e"], x) for x in (False, True))
    assert {"collectives", "tokens_per_s", "links_s"} < full.keys() - memory.keys()
    assert memory["fits"] and {k: full[k] for k in memory.keys() - {"compile_s"}} == {
        k: v for k, v in memory.items() if k != "compile_s"
    }


@pytest.mark.parametrize(
    "flags",
    [
        ["--search", "--compile-only"],
        ["--search", "--markdown"],
        ["--compile-only", "--markdown"],
        ["--remat", "--markdown"],
        ["--remat", "--stage", "grpo"],
        ["--search", "--no-compile"],
        ["--compile-only", "--no-compile"],
        ["--search", "--remat"],
        ["--remat", "--no-compile"],
    ],
)
def test_contradictory_flags_are_an_error(flags, capsys):
    with pytest.raises(SystemExit, match="2"):  # argparse exits by itself
        sys.exit(cli.main(["plan", "configs/quickstart.yaml", "--topology", "v5e:4x4", *flags]))
    assert re.search(r"not allowed with argument|leave out --stage grpo", capsys.readouterr().err)


def test_plan_covers_the_base_and_a_resume():
    """The base loaded float32 parameters over tp alone: fsdp=8 put all of them on each chip."""
    config = tiny_config(n_layers=1, vocab_size=48)
    plan = Plan(cfg.Config(), config, make_mesh(fsdp=4, tp=2))
    (base,), resume = plan.programs("base"), plan.programs("sft")[0]
    rows = [planner._compile_program(p, topology.CHIPS["v5e"], True) for p in (base, resume)]
    assert [(row["stage"], row["program"], row["fits"]) for row in rows] == [
        ("base", "load", True), ("sft", "resume", True)
    ]  # fmt: skip
    parameters = llama.params.count(config)
    norms = 3 * config.d_model  # split over fsdp alone
    assert size(base.resident) == 4 * ((parameters - norms) / 8 + norms / 4)
    assert size(resume.resident) == pytest.approx(3 * size(base.resident), abs=100)  # parameters and two moments


@pytest.mark.parametrize(
    "changes, stage, names",
    [({"model": "scratch"}, "base", ["resume", "step"]),
     ({}, "traces", []), ({"traces": {"self_evaluation": 8}}, "traces", ["prefill", "decode", "pack"]),
     ({}, "difficulty", []), ({"problems": {"difficulty_samples": 4}}, "difficulty", ["prefill", "decode", "pack"]),
     ({}, "eval", ["prefill", "decode", "pack"])],
)  # fmt: skip
def test_plan_has_the_programs_of_the_stages_that_the_run_has(changes, stage, names):
    plan = Plan(cfg.parse(changes), tiny_config(vocab_size=48), make_mesh(), prompt=20)
    assert [program.name for program in plan.programs(stage)] == names


@pytest.mark.parametrize(
    "changes, stage, group, prefix, completion",
    [({"search": {"method": "mcts", "num_rollouts": 4}}, "search", 4, 20 + 64, 64),
     ({"search": {"method": "rounds", "rounds": [2, 8]}}, "search", 2, 20 + 64, 64),
     ({"search": {"method": "best-of-n", "num_samples": 16}}, "search", 16, 20, 64),
     ({"traces": {"direct": "best-of-n", "direct_samples": 8, "direct_tokens": 128}}, "traces", 8, 20, 128),
     ({"traces": {"self_evaluation": 4, "self_evaluation_tokens": 48}}, "traces", 4, 20 + 64, 48)],
)  # fmt: skip
def test_a_stage_is_planned_with_the_groups_and_lengths_of_its_own_calls(changes, stage, group, prefix, completion):
    c = cfg.parse({"sampler": {"max_num_seqs": 32, "block_size": 4}} | changes)
    plan = Plan(c, tiny_config(vocab_size=48), make_mesh(), prompt=20)
    layout = next(p.layout for p in plan.programs(stage) if p.name == "decode")
    assert layout == plan.layout(group, prefix, completion, c.sampler.dtype)


def test_stack_trace_of_a_program_that_cannot_be_printed_is_hidden(capfd):
    class Compiled:
        def as_text(self):
            os.write(2, b"*** Check failure stack trace ***")
            raise jax.errors.JaxRuntimeError("too large")

    assert planner._text(Compiled()) is None
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_remat_chooses_the_fastest_policy_within_90_percent_of_the_memory(capsys, monkeypatch):
    gib = {"none": 15.0, "minimal_with_context": 14.5, "save_dot_except_mlp": 12.0, "save_out_proj": 9.0, "full": 8.0}
    mfu = {"none": 0.97, "minimal_with_context": 0.96, "save_dot_except_mlp": 0.84, "save_out_proj": 0.8, "full": 0.78}

    def plan_run(c, name, stages, prompt):
        assert stages == ("sft",) and prompt == 7
        policy = c.sft.remat_policy
        step = {"program": "step", "at_once_gib": gib[policy], "fits": True, "compile_s": 1.0, "max_mfu": mfu[policy]}
        return {"hbm_gib": 15.75, "programs": [{"program": "resume"}, step]}

    monkeypatch.setattr(planner, "plan_run", plan_run)
    command = ["plan", "configs/quickstart.yaml", "--topology", "v5e:4x4", "--remat", "--prompt", "7"]
    assert cli.main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["remat_policy"]: row["max_mfu"] for row in rows} == mfu
    assert [row["remat_policy"] for row in rows if row["best"]] == ["save_dot_except_mlp"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.endswith("\nsft.remat_policy=save_dot_except_mlp\n")
