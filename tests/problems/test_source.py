"""Where problems come from: files, published data sets, reasoning-gym; what is skipped, and kept from evaluation."""

import json
import random
from collections import Counter

import pytest
from etils import epath
from scripted import EVAL, PROBLEMS, TOKENIZER, Scripted

from astro_jax import cli, pipeline
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.evaluate import difficulty
from astro_jax.policy import Policy
from astro_jax.problems import Problem, decontaminate, hub, source, words
from astro_jax.problems import gym as gym_problems
from astro_jax.types import Response
from astro_jax.verify import Verifier

datasets = pytest.importorskip("datasets", reason="extra `hub` (datasets) is not installed")


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Puts records in the place of a data set on the hub; the real library reads them."""
    load = datasets.load_dataset

    def put(name, records, **asked):
        path = tmp_path / "train.parquet"
        datasets.Dataset.from_list(records).to_parquet(str(path))

        def loaded(given, subset, split):
            assert (given, {"subset": subset, "split": split}) == (name, {"subset": None, "split": "train"} | asked)
            return load("parquet", data_files={split: str(path)}, split=split)

        monkeypatch.setattr(datasets, "load_dataset", loaded)

    return put


# ---- Published data sets, by their columns


def test_gsm8k_has_its_answer_after_the_hashes(published):
    published(
        "openai/gsm8k",
        [
            {"question": "Tom has 5 cats and gets 3.", "answer": "5 + 3 = <<5+3=8>>8\n#### 8"},
            {"question": "How much?", "answer": "A lot: $1,200.\n#### 1,200"},
            {"question": "No answer?", "answer": "No."},
        ],
        subset="main",
    )
    found, skipped = hub.read("openai/gsm8k")
    assert [(p.answer, p.task) for p in found] == [("8", "number"), ("1,200", "number")]
    assert found[0].meta["solution"].startswith("5 + 3")
    assert skipped == {"`answer` must be a number": 1}


def test_math_has_its_answer_in_the_solutions_last_box(published):
    solution = "First \\boxed{1}. Then $\\boxed{\\frac{\\sqrt{3}}{2}}$."
    records = [
        {"problem": "Find x.", "level": "Level 5", "solution": solution},
        {"problem": "Show it.", "solution": "So."},
    ]
    published("hendrycks/competition_math", records)
    (p,), skipped = hub.read("hendrycks/competition_math")
    assert (p.prompt, p.answer, p.task) == ("Find x.", "\\frac{\\sqrt{3}}{2}", "math")
    assert skipped == {"`answer` must be mathematics": 1}  # and not a gold answer "None"


def test_maths_seven_subjects_are_read_one_after_the_other(tmp_path, monkeypatch):
    def loaded(name, subset, split):
        return [{"problem": f"{subset}?", "solution": f"\\boxed{{{len(subset)}}}"}]

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    found, _ = hub.read("EleutherAI/hendrycks_math")
    assert len(found) == 7 and found[0].prompt == "algebra?"
    assert len(hub.read("EleutherAI/hendrycks_math", subset="geometry")[0]) == 1


@pytest.mark.parametrize("answer", [None, float("nan"), [1, 2], True, "", "notfound", "Proof", "None", " "])
def test_what_is_no_answer_is_never_a_gold_answer(answer):
    skipped = Counter()
    assert words.collect([("x", {"problem": "a?", "answer": answer})], "math", skipped=skipped) == []
    assert skipped == {"`answer` must be mathematics": 1}


def test_numinamath_without_proofs_choices_and_doubtful_records(published):
    good = {"problem": "1?", "solution": "s", "answer": "2", "question_type": "math-word-problem", "source": "amc_aime",
            "problem_is_valid": "Yes", "solution_is_valid": "Yes"}  # fmt: skip
    published(
        "AI-MO/NuminaMath-1.5",
        [
            good, good | {"problem": "2?", "question_type": "proof", "answer": "proof"}, good | {"problem": "3?", "question_type": "MCQ"},
            good | {"problem": "4?", "problem_is_valid": "Incomplete"}, good | {"problem": "5?", "source": "aops_forum"},
            good | {"problem": "6?", "source": "synthetic_math"}, good | {"problem": "7?", "answer": ""},
        ],
    )  # fmt: skip
    found, skipped = hub.read("AI-MO/NuminaMath-1.5", where={"source": ["amc_aime", "aops_forum"]})
    assert [p.prompt for p in found] == ["1?", "5?"]
    assert skipped == {
        "no answer that can be checked": 3, "not asked for (problems.filters)": 1, "`answer` must be mathematics": 1
    }  # fmt: skip


def test_a_data_set_of_which_nothing_is_left_is_an_error_not_a_silent_zero(published):
    published("my/set", [{"q": "1 + 1", "a": "2"}] * 3)
    with pytest.raises(AstroError, match=r"no problem is left \(3 `problem` must be a text\); see problems.fields"):
        hub.read("my/set")
    found, skipped = hub.read("my/set", fields={"problem": "q", "answer": "a"})
    assert len(found) == 1 and skipped == {"the same text again": 2}


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(AstroError, match="cannot be loaded") as e:
        hub.read(str(tmp_path / "nowhere"))
    assert "\n" not in str(e.value)


# ---- Files


def file(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_fields_of_a_file_and_answers_that_are_mathematics(tmp_path):
    path = file(tmp_path / "p.jsonl", {"q": "Find x.", "a": "\\frac{1}{2}"}, {"q": "Find y.", "a": "x^2"})
    found = words.read(epath.Path(path), "math", {"problem": "q", "answer": "a", "solution": "s"})
    assert [(p.answer, p.task) for p in found] == [("\\frac{1}{2}", "math"), ("x^2", "math")]
    with pytest.raises(AstroError, match=r"line 1: `answer` must be a number, found '.*frac"):
        words.read(epath.Path(path), "number", {"problem": "q", "answer": "a"})
    bad = file(tmp_path / "bad.jsonl", {"problem": "a", "answer": "1"}, {"problem": "b", "answer": ""})
    with pytest.raises(AstroError, match="line 2: `answer` must be mathematics, found ''"):
        words.read(epath.Path(bad), "math")


@pytest.mark.parametrize("two", [{"path": "p", "dataset": "d"}, {"path": "p", "gym": {"task": "chain_sum"}}])
def test_a_run_has_one_source(two):
    with pytest.raises(AstroError, match="set one of path, dataset and gym"):
        cfg.parse({"problems": two})


# ---- reasoning-gym


TASKS = ("chain_sum", "simple_equations", "fraction_simplification", "gcd", "leg_counting", "polynomial_equations")


@pytest.mark.parametrize("task", TASKS)
def test_gym_problems_are_the_same_again_and_their_own_answers_are_right(task):
    pytest.importorskip("reasoning_gym")
    found = gym_problems.read(task, 5, seed=1, params={})
    assert found == gym_problems.read(task, 5, seed=1, params={}) != gym_problems.read(task, 5, seed=2, params={})
    assert json.loads(json.dumps([p.meta for p in found])) == [p.meta for p in found]


def test_gym_answers_are_scored_in_workers():
    pytest.importorskip("reasoning_gym")
    problems = [gym_problems.read(task, 1, seed=1, params={})[0] for task in TASKS]
    verifier = Verifier(cfg.Verify(num_workers=1, timeout_seconds=20))
    right = [Response(p, f"I think <answer>1</answer>, no: <answer>{p.answer}</answer>", True) for p in problems]
    boxed = [Response(p, f"\\boxed{{{p.answer}}}", True) for p in problems[:1]]
    wrong = [Response(p, "<answer>-12345</answer>", True) for p in problems]
    cut = [Response(p, f"<answer>{p.answer}</answer>", False) for p in problems[:1]]
    found = [v.status for v in verifier.judge(right + boxed + wrong + cut)]
    verifier.close()
    assert found == ["correct"] * 7 + ["wrong"] * 6 + ["unparsed"]


@pytest.mark.parametrize(
    "task, params, says",
    [
        ("chain_su", {}, "no task 'chain_su'; those of like names: chain_sum"),
        ("chain_sum", {"foo": 1}, "chain_sum does not take {'foo': 1}"),
        ("chain_sum", {"min_terms": -5}, "min_terms must be positive"),
        ("rearc", {}, "rearc's scorer does not accept its own answers"),
    ],
)
def test_bad_gym_tasks_are_one_line(task, params, says):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(AstroError) as e:
        gym_problems.read(task, 3, 0, params)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_several_gym_tasks_are_one_source_and_are_counted(tmp_path):
    """Each task's problems as it alone gives them, and one that two tasks share once."""
    pytest.importorskip("reasoning_gym")
    two = [{"task": "chain_sum", "size": 30}, {"task": "gcd", "size": 20}]
    c = cfg.parse({"problems": {"gym": [*two, two[0]], "search": 5, "rl": 5, "eval": 5}})
    every = source.load(c.problems, 0).every
    alone = [p for t in two for p in source.load(cfg.parse({"problems": {"gym": t}}).problems, 0).every]
    assert sorted(p.id for p in every) == sorted(p.id for p in alone)
    found = source.describe(c)
    assert found["source"].startswith("reasoning-gym chain_sum, gcd")
    assert found["of tasks"] == Counter(p.meta["task"] for p in every) and len(found["of tasks"]) == 2


# ---- Kept apart from evaluation


def texts(n, seed):
    """Sentences of few words, and variants of them in which some words are others."""
    rng = random.Random(seed)
    vocabulary = [f"word{i}" for i in range(300)]
    found = [[rng.choice(vocabulary) for _ in range(rng.randint(3, 40))] for _ in range(n)]
    for words_ in found[: n // 2]:
        found.append([rng.choice(vocabulary) if rng.random() < rng.choice((0.0, 0.02, 0.1)) else w for w in words_])
    return [" ".join(words_) for words_ in found]


@pytest.mark.parametrize("near", [0.5, 0.7, 0.9])
def test_near_duplicates_are_those_of_all_pairs(near):
    every = texts(300, seed=0)
    against, mine = every[:300], [Problem(str(i), t, "") for i, t in enumerate(every[300:])]
    kept, dropped = decontaminate.drop(mine, against, near)
    grams = [decontaminate.ngrams(t) for t in against]
    duplicates = {
        p.id for p in mine if any(decontaminate.jaccard(decontaminate.ngrams(p.prompt), g) >= near for g in grams)
    }
    exact = sum(p.prompt in against for p in mine)
    contained = {p.id for p in mine if any(inside(decontaminate.ngrams(p.prompt), g, near) for g in grams)} - duplicates
    assert {p.id for p in mine} - {p.id for p in kept} == duplicates | contained
    assert dropped == {"exact": exact, "near": len(duplicates) - exact, "contained": len(contained)}
    assert exact and dropped["near"] and contained


def inside(a, b, share):
    size = min(len(a), len(b))
    return size >= decontaminate.MIN_GRAMS and len(a & b) / size >= share


def test_a_problem_inside_a_much_longer_text_and_the_reverse_are_found_but_not_a_short_phrase():
    short = "Tom has 5 red cats and buys 3 blue ones at the market. How many cats has he now?"
    around = " ".join(f"word{i}" for i in range(200))
    long, phrase = f"{around} {short} {around}", "How many cats has he now?"
    counts = {"exact": 0, "near": 0, "contained": 1}
    assert decontaminate.drop([Problem("x", long, "")], [short], 0.7) == ([], counts)
    assert decontaminate.drop([Problem("x", short, "")], [long], 0.7) == ([], counts)
    for a, b, near in [(phrase, long, 0.7), (long, phrase, 0.7), (short, around, 0.7), (short, long, 1.0)]:
        assert not decontaminate.drop([Problem("x", a, "")], [b], near)[1].total()


def test_other_numbers_make_another_problem_and_other_spaces_do_not():
    text = "Tom has 5 red cats and buys 3 blue ones at the market. How many cats has he now?"
    mine = [
        Problem("numbers", text.replace("5", "7").replace("3", "4"), ""),
        Problem("spaces", text.upper().replace(" ", "  ").replace(".", " ."), ""),
        Problem("tail", text + " Explain.", ""),
    ]
    kept, dropped = decontaminate.drop(mine, [text], 0.7)
    assert [p.id for p in kept] == ["numbers"] and dropped == {"exact": 1, "near": 1, "contained": 0}
    assert [p.id for p in decontaminate.drop(mine, [text], 1.0)[0]] == ["numbers", "tail"]


@pytest.mark.parametrize("a, b", [("12 + 3", "1 + 23"), ("5 + 3", "5 * 3"), ("x^2 - 1", "x^2 + 1"), ("x < 2", "x > 2")])
def test_other_signs_make_another_problem(a, b):
    mine = [Problem("x", f"What is {a}?", "")]
    assert decontaminate.drop(mine, [f"What is {b}?"], 1.0)[1]["exact"] == 0
    assert decontaminate.drop(mine, [f"what  is {a}"], 1.0)[1]["exact"] == 1


def test_an_evaluation_set_needs_no_answers_to_be_kept_from(tmp_path, monkeypatch):
    path = file(tmp_path / "test.jsonl", {"problem": "Prove it.", "answer": "proof"}, {"problem": "And this?"})
    assert source._texts(path) == ["Prove it.", "And this?"]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, split: asked.append((*a, split)) or [{"question": "Why?"}])
    assert source._texts("org/aime:train") == source._texts("org/aime") == ["Why?"]
    assert asked == [("org/aime", None, "train"), ("org/aime", None, "test")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, split: [{"text": "Why?"}])
    with pytest.raises(AstroError, match="no column `problem` or `question` of texts"):
        source._texts("org/aime")


def test_training_is_kept_apart_from_the_held_out_side_and_from_evaluation_sets(tmp_path):
    shared = "In how many ways can seven people sit around a table if two of them will not sit together?"
    many = [{"problem": f"What is {i} times {i * i} plus the number {7 * i}?", "answer": i} for i in range(200)]
    path = file(tmp_path / "p.jsonl", *many, {"problem": shared, "answer": 1})
    test = file(tmp_path / "test.jsonl", {"problem": shared + " Find it.", "answer": "480"})
    plain = source.load(cfg.Problems(path=path), 0)
    found = source.load(cfg.Problems(path=path, decontaminate=(test,)), 0)
    gone = {p.prompt for p in plain.training} - {p.prompt for p in found.training}
    assert gone == {shared} or shared in {p.prompt for p in plain.evaluation}
    assert found.counts["read"] == 201
    assert (
        found.counts["for training"]
        == len(found.training)
        == 201 - len(found.evaluation) - sum(found.counts["dropped"].values())
    )


# ---- Difficulty


def test_prompts_for_rl_are_those_that_are_solved_now_and_then(tmp_path):
    problems, c, folder = PROBLEMS, EVAL, epath.Path(tmp_path)

    def measure():
        return difficulty.run(folder, problems, 4, c, Policy(Scripted(), None, TOKENIZER), Verifier())

    counts = measure()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    rates = {
        r["problem_id"]: r["right"] / r["n"] for x in sorted(before) for r in map(json.loads, before[x].splitlines())
    }
    assert set(rates) == {p.id for p in problems} and 0 < sum(rates.values()) < len(problems)
    assert counts == {
        "problems": len(problems), "never solved": list(rates.values()).count(0), "always solved": list(rates.values()).count(1)
    }  # fmt: skip
    (tmp_path / sorted(before)[1]).unlink()
    measure()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    middle = [p for p in problems if 0.25 <= rates[p.id] <= 0.75]
    easy, hard = (sum(rates[p.id] > 0.75 for p in problems), sum(rates[p.id] < 0.25 for p in problems))
    kept, left_out = difficulty.filter_by_pass_rate(folder, problems, 0.25, 0.75, len(middle))
    assert kept == middle and left_out == {"too easy": easy, "too hard": hard}
    with pytest.raises(
        AstroError, match=rf"{len(middle)} of \d+ prompts .* takes grpo.prompts_per_step={len(middle) + 1}; "
    ):
        difficulty.filter_by_pass_rate(folder, problems, 0.25, 0.75, len(middle) + 1)


def test_difficulty_is_a_stage_before_rl_only_where_it_is_asked_for():
    assert "difficulty" not in pipeline.planned(cfg.Config())
    stages = pipeline.planned(cfg.parse({"problems": {"rl_samples": 4}}))
    assert stages.index("difficulty") == stages.index("direct-rl") - 1


# ---- The command


def test_the_command_shows_what_a_run_would_draw(tmp_path, capsys):
    path = file(tmp_path / "p.jsonl", *({"problem": f"Find the {i}-th one.", "answer": f"x^{i % 90}"} for i in range(99)),
                {"problem": "And this?", "answer": "\\frac{1}"})  # fmt: skip
    config = tmp_path / "c.yaml"
    config.write_text(f"problems: {{path: {path}, task: math, search: 20, rl: 20, eval: 5, near: 1}}\n")
    assert cli.main(["problems", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["read"] == 100 and found["task"] == "math" and len(found["samples"]) == 3
    assert found["answers compared as text"] == {"count": 1, "first": ["\\frac{1}"]}
    assert cli.main(["problems", str(config)]) == 0
    assert "answers compared as text  count 1" in capsys.readouterr().out
    assert cli.main(["problems", str(config), "problems.search=500"]) == 2
    assert "500 asked for, the source has" in capsys.readouterr().err
    assert cli.main(["problems", "configs/quickstart.yaml"]) == 2
