"""The configuration: typed, strict, and clear about what is wrong."""

import pytest

from astro_jax import config as cfg
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


def test_defaults_are_those_of_the_paper(load):
    c = load()
    assert c == cfg.Config()
    assert (c.search.proposals, c.search.rollouts, c.search.iterations, c.search.depth) == (8, 16, 32, 50)
    assert (c.sft.epochs, c.sft.learning_rate, c.sft.length) == (1.0, 3e-6, 8192)
    assert (c.grpo.group, c.grpo.learning_rate) == (4, 2e-7)
    assert (c.traces.direct_examples, c.traces.search_examples, c.traces.max_backtracks) == (1, 3, 2)


def test_a_file_and_overrides(load):
    c = load(
        "seed: 3\nsearch: {rollouts: 5, leaves: 2}\n", "search.num_parallel_leaves=4", "mesh.tp=2", "problems.ops=+-"
    )
    assert (c.seed, c.search.rollouts, c.search.leaves, c.mesh.tp, c.problems.ops) == (3, 5, 4, 2, "+-")
    assert c.search.proposals == 8  # what is not named keeps its default


def test_scale_multiplies_the_budgets_and_nothing_else(load):
    c = load("scale: 0.1\nproblems: {search: 256, rl: 4, eval: 205}\ngrpo: {steps: 24}\n")
    assert (c.problems.search, c.problems.rl, c.problems.eval, c.grpo.steps, c.corpus.documents) == (
        26,
        1,
        20,
        2,
        60000,
    )
    assert c.search == cfg.Search() and c.sft == cfg.Sft() and c.grpo.prompts == 64
    assert c.digest() != load("problems: {search: 256, rl: 4, eval: 205}\ngrpo: {steps: 24}\n").digest()


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", "3E-4"])
def test_numbers_in_any_notation(load, text):
    assert load("", f"sft.learning_rate={text}").sft.learning_rate == 3e-4
    assert load(f"sft: {{learning_rate: {text}}}").sft.learning_rate == 3e-4


def test_other_values_of_overrides(load):
    c = load("", "sft.remat_policy=full", "grpo.betas=[0.8, 0.9]", "out=runs/a=b", "problems.ops='-'")
    assert c.sft.remat is True and c.grpo.betas == (0.8, 0.9) and c.out == "runs/a=b" and c.problems.ops == "-"


@pytest.mark.parametrize(
    "text, overrides, parts",
    [
        ("sft: {epoch: 2}", [], ["run.yaml", "sft.epoch", "no such key"]),
        ("", ["sft.epoch=2"], ["sft.epoch", "no such key"]),
        ("nonsense: 1", [], ["nonsense", "no such key"]),
        ("", ["a.b.c=1"], ["a", "no such key"]),
        ("search: {rollouts: many}", [], ["search.num_rollouts", "'many'"]),
        ("", ["search.num_rollouts=2.5"], ["search.num_rollouts", "2.5"]),
        ("", ["search.num_rollouts=0"], ["search.num_rollouts", "greater than or equal to 1", "0"]),
        ("", ["sft.dtype=float16"], ["sft.dtype", "'float16'"]),
        ("", ["sft.remat_policy=perhaps"], ["sft.remat_policy", "'perhaps'"]),
        ("", ["grpo.betas=0.9"], ["grpo.betas", "0.9"]),
        ("sft: 3", [], ["sft", "3"]),
        ("sft: {epoch: 2}\nsearch: {depth: -1}", [], ["sft.epoch", "search.max_depth"]),
        ("", ["sft.num_train_epochs"], ["'sft.num_train_epochs'", "write key=value"]),
        ("", ["=3"], ["'=3'", "write key=value"]),
        ("seed: 1", ["seed.x=3"], ["'seed.x=3'", "'seed' is not a section"]),
        ("", ["seed=[1"], ["'seed=[1'", "not valid YAML"]),
        ("a: [1", [], ["run.yaml", "not valid YAML"]),
        ("- 1", [], ["run.yaml", "mapping"]),
    ],
)
def test_what_is_wrong_is_named(load, text, overrides, parts):
    message = refused(load, text, *overrides)
    assert all(part in message for part in parts), message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AstroError, match=r"nothing\.yaml: cannot be read"):
        cfg.load(str(tmp_path / "nothing.yaml"))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(AstroError, match=r"run\.yaml"):
        cfg.load(str(path))


def test_the_digest_covers_all_but_where_the_run_is_written(load):
    base = load().digest()
    assert load("", "out=runs/elsewhere").digest() == base == load("search: {rollouts: 16}").digest()
    others = [load("", o).digest() for o in ("seed=1", "search.num_rollouts=15", "sft.learning_rate=1e-3", "mesh.tp=2")]
    assert len({base, *others}) == 5


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        cfg.Config().seed = 3


def test_the_config_of_the_papers_model_has_the_papers_values():
    c = cfg.load("configs/llama3.1-70b-paper.yaml")
    s, t, g = c.search, c.traces, c.grpo
    assert (c.problems.search, c.problems.rl, c.problems.rl_pass_rate) == (20700, 8700, (0.01, 0.75))
    assert (s.proposals, s.rollouts, s.iterations, s.depth, s.leaves, s.enough) == (8, 16, 32, 50, 1, None)
    assert (t.direct_examples, t.search_examples, t.max_backtracks, t.self_evaluation, t.clone) == (1, 3, 2, 8, "model")
    assert (t.self_evaluation_pass, t.phrases, t.merge) == (1.0, "fixed", "ancestor")
    assert (c.sft.epochs, c.sft.learning_rate, c.sft.final_lr, c.sft.length) == (1, 3e-6, 0, 8192)
    assert (g.group, g.max_tokens, g.learning_rate) == (4, 15360, 2e-7)
    assert g.steps * g.prompts >= c.problems.rl > (g.steps - 1) * g.prompts  # once over the prompts
