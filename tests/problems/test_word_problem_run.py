"""Word problems as traces, and a whole run on word problems with a tiny Llama that uses a chat template."""

import base64
import gzip
import json
import re

import pytest
from etils import epath
from helpers import chat_tokenizer, tiny_config, tiny_params
from jsonl_file import write

from astro_jax import config as cfg
from astro_jax import llama, pipeline, run_plan
from astro_jax.cli import main
from astro_jax.errors import AstroError
from astro_jax.run_context import RunContext
from astro_jax.search.tree import Tree
from astro_jax.traces.procedure_cloning import clone
from astro_jax.types import Problem
from astro_jax.verify import verify


def test_backtrack_of_a_trace_quotes_the_line_of_its_node():
    """root -> 1 -> 2 (wrong), 1 -> 3 (wrong); root -> 4 -> 5 (right)."""
    tree = Tree(Problem("x", "Tom has 2 cats and 3 dogs. How many pets?", "5", {}, "number"))
    texts = ["He has 2 cats.\n", "The answer is 2.", "The answer is 3.", "2 + 3 = 5.\n", "The answer is 5."]
    for parent, text in zip((0, 1, 1, 0, 4), texts, strict=True):
        node = tree.add_child(parent, (), text, 1.0)
        node.terminal = text.startswith("The")
    text = "".join(segment.text for segment in clone(tree, [1, 2, 3, 4, 5], None, True))
    assert text == (
        "He has 2 cats.\n"
        "The answer is 2.\n"
        " But wait, are we solving the problem correctly so far? Hmm...\n"
        " I'm not sure if we're solving the problem correctly so far.\n"
        " Let's go back to where we wrote: He has 2 cats.\n"
        "The answer is 3.\n"
        " But wait, are we solving the problem correctly so far? Hmm...\n"
        " I'm not sure if we're solving the problem correctly so far.\n"
        " Let's restart our solution from the beginning, and read the problem once more.\n"
        "2 + 3 = 5.\n"
        "The answer is 5.\n"
        " But wait, are we solving the problem correctly so far? Hmm...\n"
        " Our solution seems to be correct so far.\n"
    )
    verdict = verify(tree.problem, text, stopped=True)
    assert (verdict.correct, verdict.valid, verdict.backtracks) == (True, True, 2)


LONG = " Think about it." * 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run of a tiny model. A problem shows two digits, and its answer is the second digit.

    The problems come from two files, and those with the answer 9 are too long for RL. RL takes problems that are not
    searched, whose difficulty is measured on the SFT model.
    """
    folder = tmp_path_factory.mktemp("words")
    tokenizer = chat_tokenizer()
    config = tiny_config(vocab_size=len(tokenizer), d_model=32, head_dim=16, n_layers=2, max_positions=512)
    llama.save(epath.Path(folder / "model"), config, tiny_params(config), tokenizer)
    for name, firsts in (("p", range(5)), ("q", range(5, 10))):
        write(
            folder / f"{name}.jsonl",
            *(
                {"problem": f"{a} {b}?{LONG * (b == 9)}", "answer": b, "solution": f"{a}, {b}.\nThe answer is {b}."}
                for a in firsts for b in range(10)
            ),
        )  # fmt: skip
    c = cfg.parse({
        "model": str(folder / "model"), "out": str(folder / "run"),
        "stages": ["base", "search", "traces", "astro-sft", "astro-rl", "eval", "report"],
        "chat": {"template": True, "system": "Read."},
        "problems": {
            "sources": [
                {"path": str(folder / "p.jsonl"), "search": 3, "rl": 4, "eval": 2},
                {"path": str(folder / "q.jsonl"), "search": 5, "rl": 4, "eval": 6},
            ],
            "rl_prompts": "disjoint", "difficulty_samples": 2, "difficulty_model": "sft", "rl_pass_rate": [0, 1],
            "overlap_threshold": 1,
        },
        "base_sft": {"num_train_epochs": 60, "learning_rate": 1e-2, "batch_size": 8, "max_length": 64},
        "sampler": {"max_num_seqs": 4},
        "search": {"num_proposals": 6, "num_rollouts": 2, "num_simulations": 8, "max_depth": 4, "c_puct": 3,
                   "temperature": 1.5, "step_end": "\n", "max_step_tokens": 24, "max_rollout_tokens": 40},
        "sft": {"num_train_epochs": 2, "learning_rate": 1e-3, "batch_size": 2, "max_length": 512},
        "grpo": {"max_steps": 2, "prompts_per_step": 2, "num_generations": 4, "max_completion_length": 64,
                 "learning_rate": 1e-4, "max_length": 128, "micro_batch_size": 2},
        "eval": {"max_tokens": 64, "shard_size": 8},
    })  # fmt: skip
    return pipeline.execute(c)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_run_goes_from_a_file_of_problems_to_a_report(run):
    results = json.loads((run.folder / "results.json").read_text())
    assert set(results["models"]) == {"base", "astro-sft", "astro-rl"}
    losses = [row["loss"] for row in rows(run.folder / "base" / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]
    traces = rows(run.folder / "traces" / "astro.jsonl")
    assert any("Let's go back to where we wrote: " in t["response"] for t in traces)
    assert {t["prompt"] for t in traces} <= {p.prompt for p in run.problems("search")}
    packed = re.findall(r'"packed": ?"([^"]+)"', (run.folder / "report.html").read_text())
    assert any(b"back to where we wrote: " in gzip.decompress(base64.b64decode(text)) for text in packed)


@pytest.mark.slow
def test_evaluation_uses_the_chat_template_and_held_out_problems(run):
    tokenizer = run.load("base", run.decode_sharding)[2]
    assert tokenizer.decode(tokenizer.prompt("1 2?")) == "<system>Read.<user>1 2?<assistant>"  # <end> is an end token
    held_out = {p.id for p in run.problems("eval")}
    answers = rows(run.folder / "eval" / "astro-rl" / "answers-00000.jsonl")
    assert {a["problem_id"] for a in answers} == held_out
    assert not held_out & {p.id for use in ("search", "rl") for p in run.problems(use)}


@pytest.mark.slow
def test_rl_prompts_are_disjoint_measured_on_the_sft_model_and_not_too_long(run):
    rates = rows(run.folder / "difficulty" / "astro-sft-00000.jsonl")
    prompts = {p.id: p.prompt for p in run.draws.rl_candidates().problems}
    assert all((r["n"] == 0) == (LONG in prompts[r["problem_id"]]) for r in rates)
    assert not prompts.keys() & {p.id for p in run.problems("search")}
    difficulty, rl = (
        json.loads((run.folder / name / "manifest.json").read_text()) for name in ("difficulty", "astro-rl")
    )
    assert difficulty["parents"] == ["astro-sft"] and rl["parents"] == ["astro-sft", "difficulty"]
    assert (
        rl["prompts"] == 8
        and rl["too long"] == sum(r["n"] == 0 for r in rates)
        and difficulty["astro-sft"]["measured"] == rl["measured"]
    )
    assert rl["measured"] == sum(r["n"] == 2 for r in rates)


@pytest.mark.slow
def test_data_card_counts_the_problems_of_each_source(run):
    counts = json.loads((run.folder / "traces" / "card.json").read_text())["problems"]
    names = [f"{i}: {e.path}" for i, e in enumerate(run.c.problems.sources, 1)]
    assert [counts["sources"][name]["read"] for name in names] == [50, 50]
    assert counts["drawn"] == {"search": dict(zip(names, [3, 5], strict=True))}
    assert f"| problems: drawn: search: {names[1]} | 5 |" in (run.folder / "traces" / "README.md").read_text()


@pytest.mark.slow
def test_sample_command_uses_the_chat_template(run, capsys):
    model = str(run.folder / "base" / "model")
    assert main(["sample", model, "--prompt", "3 4?", "--greedy", "--chat", "--system", "Read."]) == 0
    output = capsys.readouterr().out
    assert main(["sample", model, "--prompt", "<system>Read.<end><user>3 4?<end><assistant>", "--greedy"]) == 0
    assert capsys.readouterr().out == output and "The answer is" in output
    assert main(["sample", model, "--prompt", "3 4?", "--system", "Read."]) == 2
    assert "add --chat" in capsys.readouterr().err


@pytest.mark.slow
def test_other_problems_in_the_file_run_the_stages_that_read_them_again(run):
    path = epath.Path(run.c.problems.sources[0].path)
    text = path.read_text()

    def notes():
        return {name: plan.note for name, plan in run_plan.plan(RunContext(run.c), ("search", "eval/base")).items()}

    assert set(notes().values()) == {"kept"}
    try:
        path.write_text(text.replace("?", " !"))
        assert notes()["search"] == "runs again, the content of problems.search changed, base changed"
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "scratch", "base_sft": {}}, "base_sft: model=scratch is trained by `pretrain`"),
        ({"problems": {"path": "p.jsonl"}, "traces": {"replay": 0.1}}, "traces.replay: only Countdown has a corpus"),
        ({"problems": {"path": "nowhere.jsonl"}}, "nowhere.jsonl: cannot be read"),
    ],
)
def test_impossible_config_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(AstroError, match=message):
        pipeline.execute(cfg.parse({"out": str(tmp_path / "run"), **change}))
    assert not (tmp_path / "run").exists()
