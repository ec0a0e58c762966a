"""Evaluation suites: each set in the form in which its authors publish it, and bad input."""

import json
import random

import pytest

from astro_jax import countdown
from astro_jax.errors import AstroError
from astro_jax.problems import hub, suites
from astro_jax.types import Response
from astro_jax.verify import Verifier, verify
from astro_jax.verify.answer import RULES

# One made-up record in the form of each published set, and its gold answer, level and subject.
FORMS = {
    "math500": (
        {"problem": "Convert $(0,3)$.", "solution": "It is $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
         "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2,
         "unique_id": "test/precalculus/807.json"},
        "\\left( 3, \\frac{\\pi}{2} \\right)", "2", "Precalculus",
    ),
    "amc2023": ({"id": 0, "problem": "How far is it?", "answer": 27.0, "url": "https://a.b/c"}, "27", None, None),
    "amc2023 of questions": ({"question": "How far?", "answer": "27.0", "id": 3}, "27", None, None),
    "aime2024": ({"ID": "2024-II-4", "Problem": "Find $m+n$.", "Solution": "So $\\boxed{033}$.", "Answer": 33},
                 "33", None, None),
    "aime2024 of texts": ({"id": 60, "problem": "Find $m+n$.", "solution": "$\\boxed{073}$", "answer": "073",
                           "url": "u", "year": "2024"}, "073", None, None),
    "aime2025": ({"problem": "Find the sum.", "answer": "70", "id": "0"}, "70", None, None),
    "aime2026": ({"problem_idx": 1, "answer": 277, "problem": "Patrick walks."}, "277", None, None),
    "gsm8k": ({"question": "How much does Jo earn?", "answer": "She sells 9 * 2 = $<<9*2=18>>18.\n#### 1,018"},
              "1,018", None, None),
    "math-test": ({"problem": "How many?", "level": "Level 5", "type": "Counting & Probability",
                   "solution": "First \\boxed{1}, then $\\boxed{\\frac{3}{4}}$."},
                  "\\frac{3}{4}", "5", "Counting & Probability"),
    "a list": ({"problem": "How many?", "answer": ["25"]}, "25", None, None),
}  # fmt: skip


def write(path, records):
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        lines = json.dumps(records) if path.suffix == ".json" else "\n".join(map(json.dumps, records))
        path.write_text(lines)
    return str(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_each_suites_file_is_read_without_a_setting(form, ending, tmp_path):
    record, answer, level, subject = FORMS[form]
    suite = suites.load(write(tmp_path / f"mine.{ending}", [record]))
    (p,) = suite.problems
    assert (suite.name, p.task, p.answer) == ("mine", "math", answer)
    assert p.prompt == record.get("problem", record.get("question", record.get("Problem")))
    assert (p.meta.get("level"), p.meta.get("subject")) == (level, subject)
    ids = [str(record[key]) for key in ("unique_id", "id", "ID", "problem_idx") if key in record]
    assert p.meta["source_id"] == (ids or ["0"])[0]


def test_each_gold_answer_in_a_box_is_right_by_all_rules(tmp_path):
    golds = ["\\text{Evelyn}", "x^2-2x+1", "[2,5)", "\\$18.90", "10\\%", "\\dfrac{9}{7}", "5\\sqrt{3}", "336^\\circ"]
    records = [record for record, *_ in FORMS.values()]
    records = [{k.lower(): v for k, v in r.items()} for r in records]
    records += [{"problem": f"Problem {i}", "answer": gold} for i, gold in enumerate(golds)]
    for r in records:
        r.pop("id", None)
    problems = suites.load(write(tmp_path / "all.jsonl", records)).problems
    assert len(problems) == len(FORMS) + len(golds)
    verifier = Verifier()
    try:
        for rule in RULES:
            responses = [Response(p, f"So it is $\\boxed{{{p.answer}}}$.", True) for p in problems]
            wrong = [v.answer for v in verifier.grade(responses, rule) if not v.correct]
            assert not wrong, (rule, wrong)
        # The rules differ: without a box, with another last box, and cut off.
        p = next(p for p in problems if p.answer == "70")
        texts = [("The answer is 70.", True), ("So $x = 70$.", True), ("\\boxed{70} or \\boxed{71}", True),
                 ("\\boxed{70}", False), ("It is 70", False)]  # fmt: skip
        responses = [Response(p, *text) for text in texts]
        verdicts = {
            rule: [v.correct for v in verifier.grade(responses, rule)] for rule in ("strict", "lenient", "math500")
        }
        assert verdicts == {
            "strict": [False, False, False, False, False],
            "lenient": [True, False, False, False, False],
            "math500": [True, True, False, True, True],
        }
        assert not verifier.counts.by_status
    finally:
        verifier.close()


def test_level_and_subject_choose_problems_of_math(tmp_path, monkeypatch):
    def load_subset(name, subset, split):
        assert (name, split) == ("EleutherAI/hendrycks_math", "test")
        subject = subset.replace("_", " ").title().replace("And", "&")
        return [
            {"problem": f"{subset} {i}", "level": f"Level {1 + i % 5}", "type": subject, "solution": "\\boxed{1}"}
            for i in range(10)
        ]

    monkeypatch.setattr(hub, "load_subset", load_subset)
    assert len(suites.load("math-test").problems) == 70
    hard = suites.load("math-test:level=5,level=4,subject=counting_and_probability")
    assert {(p.meta["level"], p.meta["subject"]) for p in hard.problems} == {
        ("4", "Counting & Probability"), ("5", "Counting & Probability"),
    }  # fmt: skip
    assert hard.name == "math-test_level=5_level=4_subject=counting_and_probability"
    first = suites.load("math-test", limit=9)
    assert [p.prompt.split()[0] for p in first.problems] == [*hub.SUBJECTS, *hub.SUBJECTS[:2]]
    with pytest.raises(AstroError, match="no problem with level=6; it has 1, 2, 3, 4, 5"):
        suites.load("math-test:level=6")


def test_text_that_stands_twice_is_two_problems(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"problem": "1 + 1?", "answer": 2}] * 2)
    ids = [p.id for p in suites.load(path).problems]
    assert len(set(ids)) == 2 and ids[1].endswith(ids[0])


def test_records_without_an_answer_are_counted(tmp_path):
    records = [
        {"problem": "1 + 1?", "answer": 2},
        {"problem": "Show it.", "answer": "proof"},
        {"problem": "", "answer": 1},
    ]
    suite = suites.load(write(tmp_path / "a.jsonl", records))
    assert len(suite.problems) == 1
    assert suite.skipped == {"no answer that can be checked": 1, "no text of a problem": 1}


@pytest.mark.parametrize("count", [2, 6])
def test_countdown_of_any_size_is_solvable_and_held_out(count):
    suite = suites.load(f"countdown:count={count},max_number=9,max_value=40,size=12")
    assert len({p.id for p in suite.problems}) == 12
    for p in suite.problems:
        numbers = tuple(p.meta["numbers"])
        game = countdown.Game(count, 9, 40, "+-*", 0.2)
        assert len(numbers) == count and countdown.is_held_out(numbers, game)
        if count < 4:
            assert p.meta["target"] in countdown.reachable(tuple(sorted(numbers)), game)
    again = suites.load(f"countdown:count={count},max_number=9,max_value=40,size=12")
    assert again.digest == suite.digest != suites.load(f"countdown:count={count},max_number=9,size=12").digest


def test_countdown_suite_with_last_two_can_be_solved_in_its_order():
    suite = suites.load("countdown:count=5,max_number=9,max_value=40,ops=+-,last_two=1,size=12")
    game = countdown.Game(5, 9, 40, "+-", 0.2, last_two=True)
    for p in suite.problems:
        assert p.meta["last_two"] and p.meta["target"] in countdown.targets(tuple(p.meta["numbers"]), game)


def test_a_game_that_is_played_back_gives_a_right_answer():
    (p,) = suites.load("countdown:count=3,max_number=9,size=1").problems
    game = countdown.Game(3, 9, 75)
    numbers = tuple(p.meta["numbers"])
    moves = countdown.reachable(tuple(sorted(numbers)), game)[p.meta["target"]][0]
    assert verify(p, countdown.attempt_text(numbers, moves, p.meta["target"]), True).correct


def test_reasoning_gym_tasks_are_not_those_of_a_run():
    pytest.importorskip("reasoning_gym", reason="extra `gym` is not installed")
    from astro_jax.problems import gym

    suite = suites.load("gym:chain_sum,size=20,max_terms=3")
    assert len(suite.problems) + suite.skipped["the same text again"] == 20
    assert not {p.id for p in suite.problems} & {p.id for p in gym.read("chain_sum", 20, 0, {"max_terms": 3})}


@pytest.mark.parametrize(
    "spec, message",
    [
        ("math50", "suite math50: no such file or suite; there are math500"),
        ("nothing.jsonl", "no such file or suite"),
        ("math500:5", "write key=value after the colon"),
        ("countdown:size=x", "size=x must be a number"),
        ("countdown:sizes=3", "no key sizes; there are count"),
        ("countdown:max_number=1,count=2,size=3", "give 1 games in place of 3"),
        ("gym", "name a task"),
    ],
)
def test_bad_names_are_one_clear_line(spec, message):
    with pytest.raises(AstroError, match=message):
        suites.load(spec)


@pytest.mark.parametrize(
    "records, spec, message",
    [
        ([{"text": "1+1?", "answer": 2}], "", "line 1: no field of the problem; the record has text, answer: name"),
        ([{"problem": "1+1?", "result": 2}], "", "line 1: no field of the answer; the record has problem, result"),
        ([{"problem": "1+1?", "result": 2}], ":answer=value", "no field `value`; the record has problem, result"),
        (
            [{"problem": "What is x?", "answer": None, "solution": "We see that x is 5."}], "",
            "no problem is left .1 no answer that can be checked",
        ),
        ([{"problem": "Prove it.", "answer": None}], "", "no problem is left .1 no answer that can be checked"),
        ([], "", "no problem is left .the source is empty"),
        ([{"problem": "1+1?", "answer": 2}], ":level=3", "no problem with level=3; choose by a level or a subject"),
    ],
)  # fmt: skip
def test_bad_files_say_what_is_there(records, spec, message, tmp_path):
    with pytest.raises(AstroError, match=message):
        suites.load(write(tmp_path / "a.jsonl", records) + spec)


def test_fields_can_be_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "1+1?", "result": 2}])
    (p,) = suites.load(f"{path}:problem=text,answer=result").problems
    assert (p.prompt, p.answer) == ("1+1?", "2")


def test_json_that_is_no_list_says_so(tmp_path):
    (tmp_path / "a.json").write_text('{"problem": "1+1?"}\n')
    with pytest.raises(AstroError, match="must hold one list of objects; one object a line needs the ending"):
        suites.load(str(tmp_path / "a.json"))
    (tmp_path / "a.txt").write_text("1+1?")
    with pytest.raises(AstroError, match="must end with"):
        suites.load(str(tmp_path / "a.txt"))


def test_order_of_countdown_does_not_depend_on_a_global_seed():
    random.seed(3)
    first = suites.load("countdown:size=3").digest
    random.seed(4)
    assert suites.load("countdown:size=3").digest == first
