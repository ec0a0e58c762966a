"""The command line: what it runs, what it prints, and one line and a code for everything that can go wrong."""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from etils import epath
from helpers import assert_trees_equal, countdown_tokenizer, tiny_config, tiny_params

from astro_jax import __version__, cli, llama, pipeline
from astro_jax.cli import commands
from astro_jax.cli.parser import COMMANDS
from astro_jax.errors import AstroError
from astro_jax.stages import EVALUATIONS, STAGES

jax.devices()  # all eight are there before a run asks for one

TOKENIZER = countdown_tokenizer(9)
CONFIG = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, max_positions=64)
PARAMS = tiny_params(CONFIG)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of random parameters."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    llama.save(epath.Path(folder), CONFIG, PARAMS, TOKENIZER)
    return folder


@pytest.fixture
def recipe(model, tmp_path, monkeypatch):
    """A config file that evaluates the model and nothing more; the working folder is a new one."""
    monkeypatch.chdir(tmp_path)
    raw = {
        "model": str(model), "out": "runs/it", "stages": ["base", "eval", "report"],
        "problems": dict(count=2, max_number=4, max_value=9, held_out=0.4, eval=4, search=1, rl=1),
        "sampler": dict(max_num_seqs=8), "eval": dict(max_tokens=16),
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    return "recipe.yaml"


def fails(capsys, *argv):
    """The one line of an error."""
    assert cli.main(list(argv)) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert captured.err.count("astro: ") == 1 and line.startswith("astro: ") and "Traceback" not in captured.err
    return line.removeprefix("astro: ")


# ---- What it runs


def test_a_run_prints_its_results_and_a_second_one_the_same(recipe, tmp_path, capsys):
    assert cli.main(["run", recipe]) == 0
    first = capsys.readouterr()
    results = json.loads((tmp_path / "runs/it/results.json").read_text())
    rate = results["models"]["base"]["pass@1"]
    assert "4 held-out problems" in first.out and "report.html" in first.out
    shown = f"{100 * rate['mean']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
    (row,) = (line for line in first.out.splitlines() if " base " in line)
    assert shown in row and f"{results['models']['base']['mean_tokens']:.1f}" in row
    assert max(map(len, first.out.splitlines())) <= 130 and "stage" not in first.err
    before = (tmp_path / "runs/it/results.json").stat().st_mtime_ns
    assert cli.main(["run", recipe]) == 0 and capsys.readouterr().out == first.out
    assert (tmp_path / "runs/it/results.json").stat().st_mtime_ns == before
    assert cli.main(["run", recipe, "eval.max_tokens=12"]) == 0
    log = capsys.readouterr().err.splitlines()
    assert log[:2] == ["base: kept", "eval/base: runs again, eval.max_tokens was 16"]
    assert log[2] == "report: runs again, eval/base changed"


def test_a_row_shows_the_majority_vote(capsys):
    rate = {"mean": 0.25, "low": 0.1, "high": 0.5, "n": 8}
    entry = {"pass@1": rate, "greedy": rate, "mean_tokens": 31.25, "mean_backtracks": 1.5, "valid_rate": 0.875,
             "truncated_rate": 0.125}  # fmt: skip
    commands._print_results({"seed": 7, "models": {"direct-rl": entry | {"maj": {"k": 3, **rate}}, "astro-rl": entry}})
    direct, astro = (line for line in capsys.readouterr().out.splitlines() if "-rl" in line)
    assert direct.split("│")[4].strip() == "25.0 [10.0, 50.0] (k=3)" and not astro.split("│")[4].strip()
    assert [c.strip() for c in astro.split("│")[5:-1]] == ["31.2", "1.50", "87.5", "12.5"]


def test_every_command_reaches_its_stages(recipe, monkeypatch):
    calls = []
    monkeypatch.setattr(pipeline, "execute", lambda c, command, only, *_: calls.append((c.seed, command, only)))
    expected = {
        "base": ("base",), "search": ("search",), "traces": ("traces",), "sft": ("direct-sft", "astro-sft"),
        "grpo": ("direct-rl", "astro-rl"), "eval": ("eval",), "difficulty": ("difficulty",),
    }  # fmt: skip
    for command, stages in expected.items():
        assert cli.main([command, recipe, "seed=5", "sft.num_train_epochs=2"]) == 0
        assert calls.pop() == (5, f"astro {command} recipe.yaml seed=5 sft.num_train_epochs=2", stages)
    others = {
        "run",
        "sweep",
        "check",
        "status",
        "show",
        "report",
        "import",
        "export",
        "sample",
        "plan",
        "problems",
        "verify",
    }
    others |= {
        "bench sampler",
        "bench search",
        "bench trees",
        "bench sft",
        "bench grpo",
        "budgets",
        "compare",
        "judge",
        "errors",
    }
    assert {c.name for c in COMMANDS} == {*expected, *others}
    assert {stage for c in COMMANDS for stage in c.stages or ()} == set(STAGES)
    assert {*STAGES, *EVALUATIONS} - {"eval"} == set(pipeline.FUNCTIONS)


@pytest.mark.parametrize(
    "words", [("--shard", "1/4", "seed=5"), ("seed=5", "--shard", "1/4"), ("--shard=1/4", "seed=5")]
)
def test_a_shard_may_stand_before_or_after_overrides(words, recipe, monkeypatch):
    calls = []
    monkeypatch.setattr(pipeline, "execute", lambda c, command, only, shard, *_: calls.append((c.seed, only, shard)))
    assert cli.main(["search", recipe, *words]) == 0
    assert calls == [(5, ("search",), (1, 4))]


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "-1/4", "1/0", "1/2/3", ""])
def test_an_invalid_shard_is_one_line(shard, recipe, capsys):
    assert f"--shard {shard}: write i/n" in fails(capsys, "search", recipe, f"--shard={shard}")


@pytest.mark.parametrize(
    "words, hint",
    [
        (["--seed", "7"], "seed=7"),
        (["--seed=7"], "seed=7"),
        (["--sft.num-train-epochs", "2"], "sft.num_train_epochs=2"),
    ],
)
def test_a_key_that_is_written_as_an_option_is_shown_as_a_key(words, hint, recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", recipe, *words])
    assert stop.value.code == 2 and f"a key of the config is written {hint}\n" in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["nan", "0", "-1"])
def test_max_hours_that_are_no_time_are_refused(hours, recipe, tmp_path, capsys):
    assert "write a number above 0" in fails(capsys, "run", recipe, f"--max-hours={hours}")
    assert not (tmp_path / "runs").exists()


def test_a_home_folder_in_an_override_is_the_users(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.main(["base", recipe, "out=~/run"]) == 0
    assert (tmp_path / "home/run/base/manifest.json").exists() and not (tmp_path / "~").exists()


def test_unknown_options_are_refused(recipe, capsys):
    with pytest.raises(SystemExit):
        cli.main(["search", recipe, "--shards", "1/4"])
    with pytest.raises(SystemExit):
        cli.main(["base", recipe, "--shard", "1/4"])
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_of_a_search_need_the_base_and_a_run_without_shard_finishes_the_stage(recipe, tmp_path, capsys):
    four = (
        "problems.search=4", "search.max_concurrent_trees=2", "search.shard_size=2", "search.num_simulations=2",
        "search.num_rollouts=2", "search.max_rollout_tokens=16", "search.max_step_tokens=8",
    )  # fmt: skip
    assert "search needs base, which has not finished; run `astro base` first" in fails(
        capsys, "search", recipe, "--shard", "0/2", *four
    )
    assert cli.main(["base", recipe, *four]) == 0
    folder = tmp_path / "runs/it/search"
    for i in (1, 0):
        assert cli.main(["search", recipe, "--shard", f"{i}/2", *four]) == 0
        assert (folder / f"trees-0000{i}.jsonl.gz").exists() and not (folder / "manifest.json").exists()
    assert "search 0/2 done" in capsys.readouterr().err
    before = {f.name: f.read_bytes() for f in folder.glob("trees-*")}
    assert cli.main(["search", recipe, *four]) == 0
    assert {f.name: f.read_bytes() for f in folder.glob("trees-*")} == before and len(before) == 2
    assert json.loads((folder / "manifest.json").read_text())["trees"] == 4
    assert cli.main(["search", recipe, "--shard", "0/2", *four]) == 0  # there is nothing left to do


def test_stages_one_by_one_make_the_run(recipe, tmp_path, capsys):
    assert "eval/base needs base" in fails(capsys, "eval", recipe)
    assert not (tmp_path / "runs").exists()
    for command in ("base", "eval", "report"):
        assert cli.main([command, recipe, "traces.clone_tokens=9"]) == 0
    printed = capsys.readouterr()
    assert "4 held-out problems" in printed.out
    assert printed.err.count("traces.clone_tokens: no stage reads this key") == 3
    assert {p.name for p in (tmp_path / "runs/it").iterdir()} == {
        ".lock", "config.json", "base", "eval", "report", "results.json", "report.html", "sessions",
    }  # fmt: skip


def printed(capsys, *argv):
    """The output of a command that only prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command_under_its_group(capsys):
    text = printed(capsys, "--help")
    for group in ("Run a recipe", "One stage", "Models", "Problems and answers", "Machines"):
        section = text.partition(f"\n{group}:\n")[2].partition("\n\n")[0]
        names = [line[2:17].strip() for line in section.splitlines()]  # a name may have two words
        assert names == [c.name for c in COMMANDS if c.group == group] and names, group


def test_help_of_a_command_has_its_options_and_the_recipes(capsys):
    text = printed(capsys, "run", "--help")
    assert "--coordinator HOST:PORT" in text and "quickstart" in text and "ablations/merge-root" in text
    assert "recipes:" not in printed(capsys, "sample", "--help")


def test_version_is_that_of_the_package(capsys):
    assert printed(capsys, "--version") == f"astro_jax {__version__}\n"


def test_an_unknown_command_is_refused():
    with pytest.raises(SystemExit) as stop:
        cli.main(["distill"])
    assert stop.value.code == 2


@pytest.mark.slow
def test_a_sample_is_the_models_own_continuation(model, capsys):
    prompt = " 1 + 2 ="

    def output(*options):
        assert cli.main(["sample", str(model), "--prompt", prompt, "--max-new-tokens", "6", *options]) == 0
        return capsys.readouterr().out

    tokens = TOKENIZER.encode(prompt)
    while len(tokens) < 4 + 6 and tokens[-1] != TOKENIZER.eos_token_id:
        tokens.append(int(llama.forward(PARAMS, jax.numpy.asarray([tokens]), CONFIG)[0, -1].argmax()))
    ids = [t for t in tokens[4:] if t != TOKENIZER.eos_token_id]
    assert output("--greedy") == TOKENIZER.decode(ids) + "\n"
    # Each filter leaves one token to draw: the same as greedy.
    for only in (["--top-k", "1"], ["--top-p", "1e-6"], ["--min-p", "0.999"], ["--temperature", "0"]):
        assert output(*only) == TOKENIZER.decode(ids) + "\n"
    first = next(i for i in range(1, len(ids) + 1) if TOKENIZER.decode(ids[:i]))
    assert output("--greedy", "--stop", TOKENIZER.decode(ids[:first])) == TOKENIZER.decode(ids[:first]) + "\n"
    three = output("--n", "3", "--seed", "5")
    assert three == output("--n", "3", "--seed", "5") != output("--n", "3", "--seed", "6")
    assert [line for line in three.splitlines() if line.startswith("---")] == ["--- 1", "--- 2", "--- 3"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompt", "make"], "no such folder"),
        (["--prompt", ""], "sample: --prompt is empty; write a text to continue"),
        (["--prompt", " 1", "--chat"], "tiny has no chat template; leave out --chat"),
        (["--prompt", " 1" * 64], "the model's 64 positions; shorten --prompt"),
        (["--prompt", " 1", "--temperature", "-1"], "sampler: temperature is at least 0, got -1.0"),
        (["--prompt", " 1", "--n", "0"], "at least 1"),
        (["--prompt", " 1", "--top-p", "0"], "top_p is in (0, 1]"),
        (["--prompt", " 1", "--stop", ""], "a stop string must not be empty"),
        (["--prompt", " 1", "--max-new-tokens", "64"], "the model's 64 positions; set --max-new-tokens 63 or less"),
    ],
)
def test_an_invalid_sample_is_one_line(model, capsys, options, message):
    path = "nowhere" if message == "no such folder" else str(model)
    assert message in fails(capsys, "sample", path, *options)


def test_an_exported_model_reads_back_equal(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(model)
    assert cli.main(["export", "link", "exported"]) == 0  # both relative to the working folder
    config, params = llama.load("exported")
    assert (tmp_path / "exported" / "model.safetensors").exists() and config == CONFIG
    assert_trees_equal(params, PARAMS)
    before = (tmp_path / "exported" / "config.json").stat().st_mtime_ns
    assert "exists; nothing was written" in fails(capsys, "export", "link", "exported")
    assert (tmp_path / "exported" / "config.json").stat().st_mtime_ns == before


# ---- What goes wrong


def test_bad_configs_are_named(recipe, tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for argv, message in (
        (
            ["nowhere.yaml"],
            "directory); give a YAML file or a recipe: countdown-base,",
        ),
        (["."], ".: cannot be read"),
        (["broken.yaml"], "broken.yaml: not valid YAML"),
        (["list.yaml"], "list.yaml: a config is a mapping"),
        (["binary.yaml"], "binary.yaml: not valid YAML"),
        ([recipe, "grpo.stepz=3"], "grpo.stepz: no such key"),
        ([recipe, "seed=many"], "seed: "),
        ([recipe, "grpo.num_generations=1"], "grpo.num_generations: "),
        ([recipe, "seed"], "write key=value"),
        ([recipe, "out.a=1"], "out: input should be a valid string, got {'a': 1}"),
        ([recipe, "grpo.group=8"], "grpo.group: renamed: write grpo.num_generations"),
    ):
        assert message in fails(capsys, "run", *argv), argv
    assert not (tmp_path / "runs").exists()


def test_bad_models_are_named(recipe, model, tmp_path, capsys):
    assert "no such folder" in fails(capsys, "run", recipe, "model=nowhere")
    assert "no such folder" in fails(capsys, "export", "nowhere", "exported")
    (tmp_path / "empty").mkdir()
    assert "no config.json in this folder" in fails(capsys, "export", "empty", "exported")
    # A folder whose parameters are those of another model.
    other = tiny_config(vocab_size=len(TOKENIZER), n_layers=1, d_ff=32, max_positions=64)
    llama.save(epath.Path(tmp_path / "mixed"), other, tiny_params(other), TOKENIZER)
    (tmp_path / "mixed" / "config.json").write_text((model / "config.json").read_text())
    assert "not a checkpoint of this model" in fails(capsys, "run", recipe, "model=mixed")
    # A model that does not fit the answers asked for.
    assert "lower eval.max_tokens" in fails(capsys, "run", recipe, "eval.max_tokens=60", "out=runs/long")


def test_the_folder_of_a_run_or_of_a_stage_is_no_model(recipe, capsys):
    assert cli.main(["run", recipe]) == 0
    capsys.readouterr()
    for folder, message in (
        ("runs/it", "runs/it: the folder of a run; name one of its models, as in runs/it/base/model"),
        ("runs/it/base", "runs/it/base: the folder of a stage; name its model, runs/it/base/model"),
    ):
        assert message in fails(capsys, "sample", folder, "--prompt", " 1")
        assert fails(capsys, "run", recipe, f"model={folder}", "out=runs/other").count("the folder of a") == 1


def test_a_failed_start_does_not_write_to_the_folder(recipe, capsys):
    fails(capsys, "run", recipe, "model=nowhere")
    assert cli.main(["base", recipe]) == 0


def test_a_full_disk_is_one_line(recipe, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

    monkeypatch.setattr(pipeline.storage, "write_text", full)
    assert "no space left on device" in fails(capsys, "run", recipe)


def test_a_forbidden_folder_is_one_line(recipe, monkeypatch, capsys):
    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere")

    monkeypatch.setattr(pipeline.storage, "write_text", forbidden)
    assert "/somewhere: no permission" in fails(capsys, "run", recipe)


def test_a_file_in_the_place_of_a_folder_is_one_line(recipe, monkeypatch, capsys):
    def not_a_folder(*args, **kwargs):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/page.html")

    monkeypatch.setattr(pipeline.storage, "write_text", not_a_folder)
    assert "file/page.html: not a directory; name another path" in fails(capsys, "run", recipe)


def test_output_that_nobody_reads_ends_without_a_word():
    command = f"{sys.executable} -m astro_jax check quickstart out=runs/never | true"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Error" not in run.stderr and "Traceback" not in run.stderr and "starts anew" not in run.stderr


@pytest.mark.parametrize("name", ["rocm", "unheard-of"])
def test_a_platform_that_this_machine_lacks_is_one_line(name):
    command = [sys.executable, "-m", "astro_jax", "sample", "countdown-base", "--prompt", "1"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": name})
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert f"JAX_PLATFORMS={name}: no such device can be used" in run.stderr


def test_retries_without_a_network_print_no_lines(monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_VERBOSITY", raising=False)
    fails(capsys, "show", "nowhere")
    assert os.environ["HF_HUB_VERBOSITY"] == "error"  # read when huggingface_hub is imported, later than this
    run = "import sys, astro_jax.cli; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", run]).returncode == 0


def test_a_report_whose_files_are_gone_is_made_again(recipe, tmp_path):
    assert cli.main(["run", recipe]) == 0
    for name in ("results.json", "report.html"):
        (tmp_path / "runs/it" / name).unlink()
        assert cli.main(["run", recipe]) == 0 and (tmp_path / "runs/it" / name).exists()


def test_a_deleted_model_of_a_finished_stage_is_found_before_anything_runs(recipe, tmp_path, capsys):
    assert cli.main(["run", recipe]) == 0
    shutil.rmtree(tmp_path / "runs/it/base/model")
    assert cli.main(["run", recipe]) == 0  # nothing reads it
    capsys.readouterr()
    line = fails(capsys, "run", recipe, "eval.max_tokens=12")
    assert "runs/it/base/model: eval/base needs this model, which is not there any more" in line
    assert json.loads((tmp_path / "runs/it/config.json").read_text())["config"]["eval"]["max_tokens"] == 16


def test_an_evaluation_does_not_overwrite_the_results_of_a_run(recipe, tmp_path, capsys):
    assert cli.main(["run", recipe]) == 0
    before = (tmp_path / "runs/it/results.json").read_bytes()
    capsys.readouterr()
    line = fails(
        capsys,
        "eval",
        "runs/it/base/model",
        "--suite",
        "countdown:count=2,max_number=4,max_value=9,size=4",
        "out=runs/it",
    )
    assert "a run, whose results.json would be lost" in line
    assert (tmp_path / "runs/it/results.json").read_bytes() == before


def test_traces_of_a_folder_without_trees_are_refused(recipe, capsys):
    assert cli.main(["run", recipe]) == 0
    capsys.readouterr()
    line = fails(capsys, "traces", "--init", "runs/it/base/model", "--trees", "runs/it", "out=runs/traces")
    assert "no trees; name the folder of a search" in line


def test_ctrl_c_prints_one_line_and_exits_with_130(recipe, monkeypatch, capsys):
    def pressed(run, stage):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_stage", pressed)
    assert cli.main(["run", recipe]) == 130
    assert capsys.readouterr().err.splitlines() == ["astro: stopped; the same command goes on from here"]


def test_ctrl_c_during_the_imports_prints_no_traceback():
    press = "import sys; sys.meta_path.insert(0, type('Pressed', (), {'find_spec': press})); "
    code = "def press(name, *_):\n    if name == 'astro_jax.cli.parser': raise KeyboardInterrupt\n"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}{press}from astro_jax.__main__ import main; sys.exit(main())"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (130, "")


def test_a_bug_keeps_its_traceback(recipe, monkeypatch):
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: np.zeros(1)[2])
    with pytest.raises(IndexError):
        cli.main(["run", recipe])


def test_an_error_is_one_line_whatever_its_text(monkeypatch, recipe, capsys):
    def fail(*_):
        raise AstroError("first\nsecond   third")

    monkeypatch.setattr(pipeline, "run_stage", fail)
    assert fails(capsys, "run", recipe) == "first second third"


FAULTS = """
import resource, jax, jax.numpy as jnp
if {keep}:
    from astro_jax import host_memory
    host_memory.keep_freed()
x = jnp.ones((4096, 4096))
program = jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y + i, x).sum())
for _ in range(16):  # until the heap has grown to its size
    program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    program(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_programs_on_a_cpu_do_not_get_new_pages_for_their_temporaries_at_each_call():
    def faults(keep):
        run = subprocess.run(
            [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert faults(keep=True) < faults(keep=False) / 2
