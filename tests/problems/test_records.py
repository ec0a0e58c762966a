"""Problems read from records: each text once, bad records named, missing answers never a gold answer."""

from collections import Counter

import pytest
from jsonl_file import write

from astro_jax.errors import AstroError
from astro_jax.problems import records


def test_same_text_with_other_spaces_and_capitals_is_one_problem(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"problem": "How many is 2 and 3?", "answer": "5", "grade": 1},
        {"problem": "how many  is 2 and 3?", "answer": 5.0},
        {"problem": "How many is 2 and 4?", "answer": 6, "solution": "2 and 4 are 6."},
    )
    first, second = records.read_jsonl(path)
    assert (first.prompt, first.answer, first.task) == ("How many is 2 and 3?", "5", "number")
    assert (second.answer, second.meta) == ("6", {"solution": "2 and 4 are 6."})


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"answer": "5"},
            "line 2: `problem` must be a text, found None; problems.fields names a field of another name",
        ),
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
def test_error_names_bad_line(tmp_path, record, message):
    path = write(tmp_path / "p.jsonl", {"problem": "How many is 2 and 3?", "answer": "5"}, record)
    with pytest.raises(AstroError, match=r"p\.jsonl, ") as e:
        records.read_jsonl(path)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("answer", [None, float("nan"), [1, 2], True, "", "notfound", "Proof", "None", " "])
def test_missing_answer_is_never_a_gold_answer(answer):
    skipped = Counter()
    assert records.from_records([("x", {"problem": "a?", "answer": answer})], "math", skipped=skipped) == []
    assert skipped == {"`answer` must be mathematics": 1}


def test_fields_are_renamed_and_answers_are_checked_by_task(tmp_path):
    path = write(tmp_path / "p.jsonl", {"q": "Find x.", "a": "\\frac{1}{2}"}, {"q": "Find y.", "a": "x^2"})
    problems = records.read_jsonl(path, "math", {"problem": "q", "answer": "a", "solution": "s"})
    assert [(p.answer, p.task) for p in problems] == [("\\frac{1}{2}", "math"), ("x^2", "math")]
    with pytest.raises(AstroError, match=r"line 1: `answer` must be a number, found '.*frac"):
        records.read_jsonl(path, "number", {"problem": "q", "answer": "a"})
    (judged,) = records.read_jsonl(write(tmp_path / "essays.jsonl", {"problem": "Why?"}), "judged")
    assert (judged.answer, judged.task) == ("", "judged")
    bad = write(tmp_path / "bad.jsonl", {"problem": "a", "answer": "1"}, {"problem": "b", "answer": ""})
    with pytest.raises(AstroError, match="line 2: `answer` must be mathematics, found ''"):
        records.read_jsonl(bad, "math")
