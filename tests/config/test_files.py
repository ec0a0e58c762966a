"""Config files: YAML, overrides and bases, with one line for everything that is wrong."""

import json

import pytest

from astro_jax import config as cfg
from astro_jax import pipeline
from astro_jax.errors import AstroError


@pytest.fixture
def load(tmp_path):
    """Load a YAML text with overrides."""

    def load(text="", *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return cfg.load(str(path), overrides)

    return load


def refused(load, text, *overrides):
    with pytest.raises(AstroError) as e:
        load(text, *overrides)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_file_and_overrides(load):
    c = load(
        "seed: 3\nsearch: {num_rollouts: 5, num_parallel_leaves: 2}\n",
        "search.num_parallel_leaves=4", "mesh.tp=2", "problems.ops=+-",
    )  # fmt: skip
    assert (c.seed, c.search.num_rollouts, c.search.num_parallel_leaves) == (3, 5, 4)
    assert (c.mesh.tp, c.problems.ops, c.search.num_proposals) == (2, "+-", 8)  # other keys keep their defaults
    assert load() == cfg.Config()


def test_scale_multiplies_the_budgets_and_nothing_else(load):
    text = "problems: {search: 256, rl: 4, eval: 205}\ngrpo: {max_steps: 24}\n"
    c = load(f"scale: 0.1\n{text}")
    assert (c.problems.search, c.problems.rl, c.problems.eval) == (26, 1, 20)
    assert (c.grpo.max_steps, c.corpus.documents) == (2, 60000)
    assert c.search == cfg.Search() and c.sft == cfg.Sft() and c.grpo.prompts_per_step == 64


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", "3E-4"])
def test_numbers_in_any_notation(load, text):
    assert load("", f"sft.learning_rate={text}").sft.learning_rate == 3e-4
    assert load(f"sft: {{learning_rate: {text}}}").sft.learning_rate == 3e-4
    assert load("", "corpus.documents=1e4").corpus.documents == 10_000


def test_other_values_of_overrides(load):
    for reward in ("my_reward:f", "my.package:Rewards.f", "../my rewards/a-1.py:f"):
        assert load("", f"grpo.reward={reward}").grpo.reward == reward
    c = load("base_sft: null", "sft.remat_policy=full", "grpo.betas=[0.8, 0.9]", "out=runs/a=b", "problems.ops='-'",
             "base_sft.batch_size=4")  # fmt: skip
    assert c.sft.remat_policy == "full" and c.grpo.betas == (0.8, 0.9) and c.out == "runs/a=b"
    assert c.problems.ops == "-" and c.base_sft.batch_size == 4


def test_a_text_with_template_syntax_stays_as_it_is(load):
    """LaTeX prompts hold "${" and "???", which config libraries read as their own syntax."""
    text = r"put ${\boxed{x}}$, or ${x, or ???"
    assert load(f"chat: {{system: '{text}'}}").chat.system == text


@pytest.mark.parametrize(
    "text, overrides, parts",
    [
        ("sft: {epoch: 2}", [], ["run.yaml", "sft.epoch", "no such key"]),
        ("", ["sft.epoch=2"], ["sft.epoch", "no such key"]),
        ("nonsense: 1", [], ["nonsense", "no such key; a config has seed, out"]),
        ("", ["a.b.c=1"], ["a", "no such key"]),
        ("search: {num_rollouts: many}", [], ["search.num_rollouts", "'many'"]),
        ("", ["search.num_rollouts=2.5"], ["search.num_rollouts", "2.5"]),
        ("", ["search.num_rollouts=0"], ["search.num_rollouts", "greater than or equal to 1", "0"]),
        ("", ["sft.dtype=float16"], ["sft.dtype", "'float16'"]),
        ("", ["sft.remat_policy=perhaps"], ["sft.remat_policy", "'perhaps'"]),
        ("", ["grpo.betas=0.9"], ["grpo.betas", "0.9"]),
        ("", ["grpo.reward=my_reward"], ["grpo.reward", "module:function or path/to/file.py:function", "'my_reward'"]),
        ("", ["grpo.reward=folder/my_reward:f"], ["grpo.reward", "module:function or path/to/file.py:function"]),
        ("sft: 3", [], ["sft", "3"]),
        ("", ["stages=search"], ["stages: must be a list, as in stages=[search], got 'search'"]),
        ("sft: {epoch: 2}\nsearch: {max_depth: -1}", [], ["sft.epoch", "search.max_depth"]),
        ("search: {early_stop: {x: 1}}", [], ["search.early_stop.x", "search.early_stop has correct, wrong"]),
        ("problems: {gym: [{task: a, x: 1}]}", [], ["problems.gym.0.x", "problems.gym has task, size, params"]),
        ("", ["sft.num_train_epochs"], ["'sft.num_train_epochs'", "write key=value"]),
        ("", ["=3"], ["'=3'", "write key=value"]),
        ("seed: 1", ["seed.x=3"], ["seed: input should be a valid integer", "{'x': 3}"]),
        ("", ["seed=[1"], ["'seed=[1'", "not valid YAML"]),
        ("a: [1", [], ["run.yaml", "not valid YAML"]),
        ("- 1", [], ["run.yaml", "mapping"]),
    ],
)
def test_an_invalid_config_is_one_line_with_the_dotted_key(load, text, overrides, parts):
    message = refused(load, text, *overrides)
    assert all(part in message for part in parts), message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AstroError, match=r"nothing\.yaml: cannot be read"):
        cfg.load(str(tmp_path / "nothing.yaml"))


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(AstroError, match=r"run\.yaml"):
        cfg.load(str(path))


# ---- Bases


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{next(iter(files))}.yaml")


def test_a_file_merges_over_its_base_key_by_key(tmp_path):
    (tmp_path / "deep").mkdir()
    text = "seed: 3\nsft: {num_train_epochs: 2, batch_size: 8}\nstages: [base, eval]\nbase_sft: {batch_size: 4}\n"
    write(tmp_path, under=text)
    path = write(
        tmp_path / "deep",
        top="base: middle.yaml\nsft: {num_train_epochs: 5}\n",
        middle="base: ../under.yaml\nsft: {num_train_epochs: 4, max_length: 64}\nstages: [base]\nbase_sft: null\n",
    )
    c = cfg.load(path, ["sft.max_length=32"])
    assert (c.seed, c.stages, c.base_sft) == (3, ("base",), None)  # a list and null replace the value of the base
    assert (c.sft.num_train_epochs, c.sft.batch_size, c.sft.max_length) == (5, 8, 32)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: b.yaml"}, r"depends on itself \(.*b.* -> .*c.* -> .*b"),
        ({"a": "base: a.yaml"}, "depends on itself"),
        ({"a": "base: ./x/../a.yaml"}, "depends on itself"),
        ({"a": "base: none.yaml"}, r"none\.yaml \(the base of .*a\.yaml\): cannot be read"),
        ({"a": "base: 3"}, r"a\.yaml: base: must be the path of a YAML config or a recipe, got 3"),
        ({"a": "base: b.yaml", "b": "- 1"}, r"b\.yaml: a config is a mapping"),
        ({"a": "base: b.yaml", "b": "sft: {epoch: 1}"}, r"sft\.epoch: no such key"),
    ],
)  # fmt: skip
def test_an_invalid_base_is_one_line(tmp_path, files, message):
    with pytest.raises(AstroError, match=message) as e:
        cfg.load(write(tmp_path, **files))
    assert "\n" not in str(e.value)


def test_a_run_folder_holds_the_merged_config(tmp_path):
    path = write(
        tmp_path, top="base: under.yaml\nseed: 5\n", under=f"seed: 3\nout: {tmp_path / 'run'}\nsft: {{batch_size: 8}}\n"
    )
    pipeline.execute(cfg.load(path), only=("base",))
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (recorded["seed"], recorded["sft"]["batch_size"]) == (5, 8) and "base" not in recorded
