"""Published data sets, read by their columns."""

import pytest

from astro_jax.errors import AstroError
from astro_jax.problems import hub

datasets = pytest.importorskip("datasets", reason="extra `hub` (datasets) is not installed")


@pytest.fixture(autouse=True)
def offline_with_new_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A function that replaces a data set of the hub by records. The real library reads the records."""
    load = datasets.load_dataset

    def publish(name, records, **arguments):
        path = tmp_path / "train.parquet"
        datasets.Dataset.from_list(records).to_parquet(str(path))

        def load_dataset(called_name, subset, split):
            assert called_name == name
            assert {"subset": subset, "split": split} == {"subset": None, "split": "train"} | arguments
            return load("parquet", data_files={split: str(path)}, split=split)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return publish


def test_gsm8k_answer_is_after_the_hashes(published):
    published(
        "openai/gsm8k",
        [
            {"question": "Tom has 5 cats and gets 3.", "answer": "5 + 3 = <<5+3=8>>8\n#### 8"},
            {"question": "How much?", "answer": "A lot: $1,200.\n#### 1,200"},
            {"question": "No answer?", "answer": "No."},
        ],
        subset="main",
    )
    problems, skipped = hub.read("openai/gsm8k")
    assert [(p.answer, p.task) for p in problems] == [("8", "number"), ("1,200", "number")]
    assert problems[0].meta["solution"].startswith("5 + 3")
    assert skipped == {"`answer` must be a number": 1}


def test_math_answer_is_in_the_last_box_of_the_solution(published):
    solution = "First \\boxed{1}. Then $\\boxed{\\frac{\\sqrt{3}}{2}}$."
    records = [
        {"problem": "Find x.", "level": "Level 5", "solution": solution},
        {"problem": "Show it.", "solution": "So."},
    ]
    published("hendrycks/competition_math", records)
    (p,), skipped = hub.read("hendrycks/competition_math")
    assert (p.prompt, p.answer, p.task) == ("Find x.", "\\frac{\\sqrt{3}}{2}", "math")
    assert skipped == {"`answer` must be mathematics": 1}  # and not a gold answer "None"


def test_subsets_of_math_are_read_one_after_the_other(tmp_path, monkeypatch):
    def load_dataset(name, subset, split):
        return [{"problem": f"{subset}?", "solution": f"\\boxed{{{len(subset)}}}"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems, _ = hub.read("EleutherAI/hendrycks_math")
    assert len(problems) == 7 and problems[0].prompt == "algebra?"
    assert len(hub.read("EleutherAI/hendrycks_math", subset="geometry")[0]) == 1


def test_numinamath_skips_proofs_choices_and_invalid_records(published):
    good = {"problem": "1?", "solution": "s", "answer": "2", "question_type": "math-word-problem", "source": "amc_aime",
            "problem_is_valid": "Yes", "solution_is_valid": "Yes"}  # fmt: skip
    published(
        "AI-MO/NuminaMath-1.5",
        [
            good,
            good | {"problem": "2?", "question_type": "proof", "answer": "proof"},
            good | {"problem": "3?", "question_type": "MCQ"},
            good | {"problem": "4?", "problem_is_valid": "Incomplete"},
            good | {"problem": "5?", "source": "aops_forum"},
            good | {"problem": "6?", "source": "synthetic_math"},
            good | {"problem": "7?", "answer": ""},
        ],
    )
    problems, skipped = hub.read("AI-MO/NuminaMath-1.5", filters={"source": ["amc_aime", "aops_forum"]})
    assert [p.prompt for p in problems] == ["1?", "5?"]
    assert skipped == {
        "no answer that can be checked": 3, "not asked for (problems.filters)": 1, "`answer` must be mathematics": 1
    }  # fmt: skip
    problems, _ = hub.read("AI-MO/NuminaMath-1.5", task="judged")  # a judge needs no answer
    assert [(p.prompt[0], p.answer, p.task) for p in problems] == [
        (n, answer, "judged") for n, answer in (("1", "2"), ("2", ""), ("3", "2"), ("5", "2"), ("6", "2"), ("7", ""))
    ]


def test_data_set_without_usable_problems_is_refused(published):
    published("my/set", [{"q": "1 + 1", "a": "2"}] * 3)
    with pytest.raises(AstroError, match=r"no problem is left \(3 `problem` must be a text\); see problems.fields"):
        hub.read("my/set")
    problems, skipped = hub.read("my/set", fields={"problem": "q", "answer": "a"})
    assert len(problems) == 1 and skipped == {"the same text again": 2}


def test_load_failure_is_one_line(tmp_path):
    with pytest.raises(AstroError, match="cannot be loaded") as e:
        hub.read(str(tmp_path / "nowhere"))
    assert "\n" not in str(e.value)
