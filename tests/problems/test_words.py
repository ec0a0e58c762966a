"""Word problems from a file: read, split, worked, judged, written as traces; and a run on a tiny Llama that chats."""

import json
from fractions import Fraction

import pytest
from etils import epath
from helpers import chat_tokenizer, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import llama, pipeline
from astro_jax.cli import main
from astro_jax.errors import AstroError
from astro_jax.problems import words
from astro_jax.search.tree import Tree
from astro_jax.traces.procedure_cloning import clone
from astro_jax.types import Problem
from astro_jax.verify import number, verify

# ---- Problems


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return epath.Path(path)


def test_a_file_gives_each_problem_once_whatever_its_spaces_and_capitals(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"problem": "How many is 2 and 3?", "answer": "5", "grade": 1},
        {"problem": "how many  is 2 and 3?", "answer": 5.0},
        {"problem": "How many is 2 and 4?", "answer": 6, "solution": "2 and 4 are 6."},
    )
    first, second = words.read(path)
    assert (first.prompt, first.answer, first.task) == ("How many is 2 and 3?", "5", "number")
    assert (second.answer, second.meta) == ("6", {"solution": "2 and 4 are 6."})


@pytest.mark.parametrize(
    "record, what",
    [
        ({"answer": "5"}, "line 2: `problem` must be a text"),
        ({"problem": " ", "answer": "5"}, "line 2: `problem` must be a text"),
        ({"problem": "a"}, "line 2: `answer` must be a number, found None"),
        ({"problem": "a", "answer": "five"}, "line 2: `answer` must be a number, found 'five'"),
        ({"problem": "a", "answer": "5", "solution": 5}, "line 2: `solution` must be a text"),
        (
            {"problem": "How many is 2 and 3?", "answer": "6"},
            "line 2: this problem was there before, with the answer 5",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, record, what):
    path = write(tmp_path / "p.jsonl", {"problem": "How many is 2 and 3?", "answer": "5"}, record)
    with pytest.raises(AstroError, match=r"p\.jsonl, ") as e:
        words.read(path)
    assert what in str(e.value) and "\n" not in str(e.value)


def many(tmp_path):
    return words.read(write(tmp_path / "p.jsonl", *({"problem": f"What is {i}?", "answer": i} for i in range(400))))


def sides(every):
    return [p for p in every if not words.held_out(p, 0.2)], [p for p in every if words.held_out(p, 0.2)]


def test_the_split_is_the_texts_and_the_order_is_the_seeds(tmp_path):
    every = many(tmp_path)
    training, evaluation = sides(every)
    assert 50 < len(evaluation) < 110
    held = {s: {p.id for p in words.draw(evaluation, 50, s, evaluation=True)} for s in (0, 1)}
    train = {s: [p.id for p in words.draw(training, 280, s, evaluation=False)] for s in (0, 1)}
    assert not (held[0] | held[1]) & (set(train[0]) | set(train[1]))
    assert held[0] != held[1] and train[0] != train[1]
    again = [p.id for p in words.draw(sides(every[::-1])[0][::-1], 280, 0, evaluation=False)]
    assert train[0] == again
    with pytest.raises(AstroError, match=r"400 asked for, the source has \d+ held out for evaluation"):
        words.draw(evaluation, 400, 0, evaluation=True)


@pytest.mark.parametrize(
    "text, answer, solution",
    [
        ("Tom has 5 cats and gets 3 more.", "8", "We compute 5 + 3 = 8.\nThe answer is 8."),
        ("There are 12 birds, and 3 nests.", "4", "We compute 12 / 3 = 4.\nThe answer is 4."),
        ("Take 3 from 1,200.", "1197", "We compute 1,200 - 3 = 1197.\nThe answer is 1197."),
        ("2 cats and 2 dogs", "4", None),  # a number that stands twice is one number: nothing gives the answer
        ("2 cats, 2 dogs, 4 birds", "2", None),  # 4 - 2 and 4 / 2
        ("Tom has three cats and 3 dogs.", "6", None),
    ],
)
def test_a_worked_solution_is_the_only_sum_that_gives_the_answer(text, answer, solution):
    assert words.worked(Problem("x", text, answer, {"solution": ""}, "number")) == solution


def test_the_files_own_solution_comes_first():
    assert words.worked(Problem("x", "5 and 3", "8", {"solution": "Count."}, "number")) == "Count."


# ---- Verdicts


@pytest.mark.parametrize(
    "text, value",
    [("7", 7), ("-3.50", Fraction(-7, 2)), ("1,200", 1200), ("3/4", Fraction(3, 4)), ("3 / 0", None), ("1,20", None),
     ("seven", None), ("", None), ("1e9", None), ("9" * 21, None), ("−4", -4), ("7 apples", None)],
)  # fmt: skip
def test_numbers_are_read_exactly(text, value):
    assert number.parse(text) == value


@pytest.mark.parametrize(
    "response, answer, correct",
    [
        ("The answer is 12.", "12", True),
        ("The answer is 12.50 dollars.", "12.5", True),
        ("The answer is $1,200.", "1200", True),
        (r"So it is \boxed{3/4}.", "0.75", True),
        ("5 and 7 are 12", "12", True),
        ("The answer is 5.\nBut wait.\nThe answer is 12.", "12", True),
        ("The answer is 12, since 7 and 5 are.", "12", True),  # what is marked, not what comes last
        ("**The answer is: 12**", "12", True),
        ("The answer is 120.", "12", False),
        ("The answer is 1.2", "12", False),
        ("The answer is twelve.", "12", False),
        ("x12 is no number", "12", False),
        ("", "12", False),
    ],
)
def test_the_last_answer_that_is_given_counts(response, answer, correct):
    problem = Problem("x", "", answer, {}, "number")
    assert verify(problem, response, stopped=True).correct == correct
    assert not verify(problem, response, stopped=False).correct


@pytest.mark.parametrize(
    "response, valid",
    [
        ("We compute 5 + 7 = 12.\nThe answer is 12.", True),
        ("We compute 177 - 12 = 143.\nThe answer is 143.", False),
        ("(8 / 3 = 2.67) The answer is 2.67", True),
        ("8 / 3 = 2.66\nThe answer is 2.66", True),
        ("8 / 3 = 2.7\nThe answer is 2.7", True),
        ("8 / 3 = 2.5\nThe answer is 2.5", False),
        ("5 * 7 = 35.5 The answer is 35.5", False),
        ("3 + 4 + 5 = 12\nThe answer is 12", True),  # longer sums are not judged
        ("5 x 7 = 35, 4 / 0 = 3\nThe answer is 3", False),
        ("No number", False),
    ],
)
def test_a_response_is_valid_when_its_sums_are_true(response, valid):
    assert verify(Problem("x", "", "1", {}, "number"), response, stopped=True).valid == valid


def test_hostile_text_is_judged_at_once():
    for text in ("1," * 50_000, "1/" * 50_000, "9" * 100_000, "answer is " * 10_000, "1 + " * 30_000, "-" * 100_000):
        assert not verify(Problem("x", "", "7", {}, "number"), text, stopped=True).correct


# ---- Traces


def test_a_trace_quotes_the_line_that_it_goes_back_to():
    """root -> 1 -> 2 (wrong), 1 -> 3 (wrong); root -> 4 -> 5 (right)."""
    tree = Tree(Problem("x", "Tom has 2 cats and 3 dogs. How many pets?", "5", {}, "number"))
    texts = ["He has 2 cats.\n", "The answer is 2.", "The answer is 3.", "2 + 3 = 5.\n", "The answer is 5."]
    for parent, text in zip((0, 1, 1, 0, 4), texts, strict=True):
        node = tree.add_child(parent, (), text, 1.0)
        node.terminal = text.startswith("The")
    text = "".join(p.text for p in clone(tree, [1, 2, 3, 4, 5], None, True))
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


# ---- A whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that a tiny model does in seconds: which of two digits that a problem shows is asked for."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = chat_tokenizer()
    config = tiny_config(vocab_size=len(tokenizer), d_model=32, head_dim=16, n_layers=2, max_positions=512)
    llama.save(epath.Path(folder / "model"), config, tiny_params(config), tokenizer)
    write(
        folder / "p.jsonl",
        *(
            {"problem": f"{a} {b}?", "answer": b, "solution": f"{a}, {b}.\nThe answer is {b}."}
            for a in range(10) for b in range(10)
        ),
    )  # fmt: skip
    c = cfg.parse({
        "model": str(folder / "model"), "out": str(folder / "run"),
            "stages": ["base", "search", "traces", "astro-sft", "astro-rl", "eval", "report"],
        "chat": {"template": True, "system": "Read."},
        "problems": {"path": str(folder / "p.jsonl"), "search": 8, "rl": 16, "eval": 8},
        "warm_up": {"epochs": 60, "learning_rate": 1e-2, "batch": 8, "length": 64},
        "sampler": {"slots": 4},
        "search": {"proposals": 6, "rollouts": 2, "iterations": 8, "depth": 4, "c_puct": 3, "temperature": 1.5,
                   "step_end": "\n", "max_step_tokens": 24, "max_tokens": 40},
        "sft": {"epochs": 2, "learning_rate": 1e-3, "batch": 2, "length": 512},
        "grpo": {"steps": 2, "prompts": 2, "group": 4, "max_tokens": 64, "learning_rate": 1e-4, "length": 128,
                 "micro_batch": 2},
        "eval": {"max_tokens": 64},
    })  # fmt: skip
    return pipeline.execute(c)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_on_word_problems_goes_from_a_file_to_a_report(run):
    results = json.loads((run.folder / "results.json").read_text())
    assert set(results["models"]) == {"base", "astro-sft", "astro-rl"}
    losses = [row["loss"] for row in rows(run.folder / "base" / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]  # the warm-up
    traces = rows(run.folder / "traces" / "astro.jsonl")
    assert any("Let's go back to where we wrote: " in t["response"] for t in traces)
    assert {t["prompt"] for t in traces} <= {p.prompt for p in run.problems("search")}
    assert "back to where we wrote: " in (run.folder / "report.html").read_text()


def test_evaluation_asks_through_the_chat_template(run):
    tokenizer = run.load("base", run.decode_sharding)[2]
    assert tokenizer.decode(tokenizer.prompt("1 2?")) == "<system>Read.<user>1 2?<assistant>"  # <end> is an end token
    held_out = {p.id for p in run.problems("eval")}
    answers = rows(run.folder / "eval" / "astro-rl-00000.jsonl")
    assert {a["problem_id"] for a in answers} == held_out
    assert not held_out & {p.id for use in ("search", "rl") for p in run.problems(use)}


def test_sample_chats_when_asked_to(run, capsys):
    model = str(run.folder / "base" / "model")
    assert main(["sample", model, "--prompt", "3 4?", "--greedy", "--chat", "--system", "Read."]) == 0
    said = capsys.readouterr().out
    assert main(["sample", model, "--prompt", "<system>Read.<end><user>3 4?<end><assistant>", "--greedy"]) == 0
    assert capsys.readouterr().out == said and "The answer is" in said
    assert main(["sample", model, "--prompt", "3 4?", "--system", "Read."]) == 2
    assert "add --chat" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_problems_in_its_file(tmp_path):
    path = tmp_path / "p.jsonl"
    records = [{"problem": f"What is {i}?", "answer": i} for i in range(40)]
    write(path, *records)
    c = cfg.parse({"out": str(tmp_path / "run"), "problems": {"path": str(path), "search": 4, "rl": 4, "eval": 2}})
    pipeline.execute(c, only=("base",))
    pipeline.execute(c, only=("base",))
    write(path, *records[:-1], {"problem": "What is 39?", "answer": 40})
    with pytest.raises(AstroError, match="holds other problems"):
        pipeline.execute(c, only=("base",))


@pytest.mark.parametrize(
    "change, what",
    [
        ({"warm_up": {}}, "warm_up: only problems from a source"),
        ({"problems": {"path": "p.jsonl"}, "traces": {"replay": 0.1}}, "traces.replay: only Countdown has a corpus"),
        ({"problems": {"path": "nowhere.jsonl"}}, "nowhere.jsonl: cannot be read"),
    ],
)
def test_a_config_that_cannot_run_is_refused_before_anything_is_written(tmp_path, change, what):
    with pytest.raises(AstroError, match=what):
        pipeline.execute(cfg.parse({"out": str(tmp_path / "run"), **change}))
    assert not (tmp_path / "run").exists()
