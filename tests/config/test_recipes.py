"""The recipes: found by name, shipped in the wheel; each ablation changes the keys of its header and no other."""

import itertools
import re
from pathlib import Path

import pytest
import yaml
from setuptools.dist import Distribution

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, paths
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.stages import DEFAULT_STAGES
from astro_jax.traces import dataset

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "ablations"
ABLATIONS = sorted(FOLDER.glob("*.yaml"))


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cfg.load("quickstart", ["seed=2"]) == cfg.load(str(ROOT / "configs/quickstart.yaml"), ["seed=2"])
    assert cfg.load("ablations/merge-root").traces.merge_at == "root"
    assert cfg.load("quickstart").out == "runs/quickstart"  # relative to the working folder
    (tmp_path / "mine.yaml").write_text("base: ablations/merge-root\nseed: 9\n")
    c = cfg.load("mine.yaml")
    assert (c.seed, c.traces.merge_at, c.search.num_simulations) == (9, "root", 12)


def test_a_file_wins_over_the_recipe_of_that_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert cfg.load("quickstart").seed == 0
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("seed: 5\n")
    assert cfg.load("quickstart").seed == 5


def test_an_unknown_recipe_lists_the_recipes():
    with pytest.raises(AstroError, match="quickstar: cannot be read") as e:
        cfg.load("quickstar")
    assert all(name in str(e.value) for name in cfg.recipes())


def test_the_wheel_holds_every_recipe(monkeypatch):
    """The files that setuptools would copy for the package, without building the wheel."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}
    files = set(command.find_data_files("astro_jax", "astro_jax"))
    recipes = {f"astro_jax/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert recipes <= files and recipes == {f"astro_jax/configs/{name}.yaml" for name in cfg.recipes()}


def test_the_config_of_the_papers_model_has_the_papers_values():
    c = cfg.load("llama3.1-70b-paper")
    s, t, g = c.search, c.traces, c.grpo
    assert (c.problems.search, c.problems.rl, c.problems.rl_pass_rate) == (20700, 8700, (0.01, 0.75))
    names = [(e.dataset, e.split, e.filters.get("source")) for e in (*c.problems.sources, *c.problems.evaluation)]
    assert names == [
        ("EleutherAI/hendrycks_math", "train", None), ("AI-MO/NuminaMath-1.5", "train", ["amc_aime"]),
        ("AI-MO/NuminaMath-1.5", "train", ["aops_forum"]), ("HuggingFaceH4/MATH-500", "test", None),
    ]  # fmt: skip
    assert (c.problems.held_out, c.problems.eval, c.problems.difficulty_model) == (0, 500, "sft")
    assert (s.num_proposals, s.num_rollouts, s.num_simulations, s.max_depth) == (8, 16, 32, 50)
    assert (s.method, s.num_parallel_leaves, s.early_stop, s.keep_rollouts) == ("mcts", 1, None, True)
    assert (t.direct_examples, t.search_examples, t.max_backtracks, t.self_evaluation, t.clone) == (1, 3, 2, 8, "model")
    assert (t.self_evaluation_pass, t.phrases, t.merge_at) == (1.0, "fixed", "ancestor")
    assert (c.sft.num_train_epochs, c.sft.learning_rate, c.sft.min_lr_rate, c.sft.max_length) == (1, 3e-6, 0, 8192)
    assert (g.num_generations, g.max_completion_length, g.learning_rate) == (4, 15360, 2e-7)
    prompts = g.max_steps * g.prompts_per_step
    assert prompts >= c.problems.rl > prompts - g.prompts_per_step  # once over the prompts


def test_the_long_recipe_trains_its_base_on_solutions_of_six_lines_that_fit_its_limits():
    c = cfg.load("long")
    rules, folder = c.problems, paths.resolve(c.model)
    assert (c.model, c.stages, rules.last_two, rules.eval >= 512) == ("countdown-base", DEFAULT_STAGES, True, True)
    assert rules.count - 1 >= 6 and rules.max_value == rules.count * rules.max_number  # no sum is out of the rules
    game = countdown.Game(rules.count, rules.max_number, rules.max_value, rules.ops, last_two=True)
    tokenizer, max_positions = tokenizers.load(str(folder), c.chat), checkpoint.read_config(folder).max_positions
    for prompt, response in itertools.islice(countdown.corpus(game, 0, 0.5, 0.0, 0.0), 100):
        lines = response.splitlines(keepends=True)
        assert len(lines) <= 6 and len(tokenizer.encode(response)) <= c.search.max_rollout_tokens
        assert max(len(tokenizer.encode(line)) for line in lines) <= c.search.max_step_tokens
        assert len(tokenizer.encode(prompt)) + max(c.eval.max_tokens, c.grpo.max_completion_length) <= max_positions
    assert c.grpo.max_length >= c.grpo.max_completion_length + len(tokenizer.encode(prompt))
    dataset.check(c.traces, [])
    text = (ROOT / "configs" / "long.yaml").read_text()
    assert re.findall(r"^#   (\w+) ", text, re.MULTILINE) == ["paper", "command", "hardware", "expected"]


# ---- Ablations


def flat(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}{name}.").items()}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_changes_the_keys_of_its_header_and_no_other(path):
    text = path.read_text()
    c = cfg.load(str(path))
    base = cfg.load(str(FOLDER / yaml.safe_load(text)["base"]))
    values, base_values = flat(c.model_dump(mode="json")), flat(base.model_dump(mode="json"))
    changed = {k for k in values.keys() | base_values.keys() if values.get(k) != base_values.get(k)}
    header = re.search(r"^#   changes   (.*)$", text, re.MULTILINE)[1].split(", ")
    assert changed == {*header, "out"} and c.out == f"runs/ablations/{path.stem}"
    dataset.check(c.traces, [])
    command = re.search(r"^#   command   astro run (\S+)( problems\.path=problems\.jsonl)?$", text, re.MULTILINE)
    assert command[1] == f"ablations/{path.stem}" and bool(command[2]) == ("smollm2" in text)
    assert re.search(r"^#   paper     section", text, re.MULTILINE)


def test_the_documentation_lists_all_ablations():
    page = (ROOT / "docs" / "traces.md").read_text()
    listed = re.findall(r"^\| `([\w-]+)` \|", page.partition("## Ablations")[2], re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in ABLATIONS) and len(ABLATIONS) >= 12
