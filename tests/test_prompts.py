"""The prompt templates: their examples, their replacement by files, and their checks before a run starts."""

import pytest

from astro_jax import config as cfg
from astro_jax import pipeline, prompts, run_plan
from astro_jax.errors import AstroError
from astro_jax.run_context import RunContext

VALUES = {
    "problem": "PROBLEM {{ x }} {% y %}", "solution": "SO FAR", "step": "THE STEP", "answer": "42", "correct": True,
}  # fmt: skip
EXAMPLES = {"classify": 3}  # one of each class; of the others 2


@pytest.mark.parametrize("name", prompts.VARIABLES)
def test_each_template_shows_all_its_values_and_its_examples(name):
    values = {k: VALUES[k] for k in prompts.VARIABLES[name]}
    text = prompts.load({})[name].render(**values)
    assert all(str(v) in text for k, v in values.items() if k != "correct")
    assert text.count("Problem:") == EXAMPLES.get(name, 2) + 1 and text == text.strip()  # the question is at the end
    before, _, after = text.rpartition("PROBLEM {{ x }} {% y %}")  # the text of a model is never a template
    assert "{" not in before + after


def test_the_evaluation_shows_both_verdicts_and_the_reflection_its_feeling():
    templates = prompts.load({})
    source = templates["evaluate"].source
    assert "Verdict: correct\n" in source and "Verdict: incorrect\n" in source
    ends = [templates["reflect"].render(problem="", solution="", correct=c).splitlines()[-2:] for c in (True, False)]
    assert ends == [["Feeling: it looks right", "Said:"], ["Feeling: something may be wrong", "Said:"]]


def test_a_file_replaces_a_template(tmp_path):
    (tmp_path / "mine.txt").write_text("Judge {{ solution }} of {{ problem }}!")
    replaced, shipped = prompts.load({"evaluate": str(tmp_path / "mine.txt")}), prompts.load({})
    assert replaced["evaluate"].render(problem="P", solution="S") == "Judge S of P!"
    assert {name for name in replaced if replaced[name] != shipped[name]} == {"evaluate"}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("judge", "", r"prompts\.judge: no such prompt; the prompts are evaluate, rewrite, go_back, reflect, classify"),
        ("evaluate", None, r"prompts\.evaluate: .*mine\.txt cannot be read"),
        ("evaluate", "Judge {{ solution }}", r"mine\.txt must use problem, solution; it uses solution"),
        ("evaluate", "Judge", r"it uses nothing"),
        ("rewrite", "{{ problem }} {{ solution }} {{ step }} {{ answer }}", r"it uses answer, problem, solution, step"),
        ("evaluate", "{{ problem }}\n{% if %}", r"mine\.txt, line 2: not a jinja2 template"),
    ],
)
def test_a_bad_template_is_refused_in_one_line_before_the_run_starts(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / "mine.txt").write_text(text)
    c = cfg.parse({"out": str(tmp_path / "run"), "prompts": {name: str(tmp_path / "mine.txt")}})
    with pytest.raises(AstroError, match=message) as e:
        pipeline.execute(c)
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_a_changed_file_of_a_prompt_changes_the_inputs_of_the_traces_alone(tmp_path):
    path = tmp_path / "mine.txt"
    c = cfg.parse({
        "out": str(tmp_path / "run"), "prompts": {"evaluate": str(path)}, "traces": {"clone": "model", "replay": 0},
    })  # fmt: skip

    def contents(text):
        path.write_text(text)
        plans = run_plan.plan(RunContext(c), ("traces",))
        return {name: plan.inputs.contents for name, plan in plans.items()}

    before, after = contents("{{ solution }} {{ problem }}"), contents("{{ solution }} of {{ problem }}")
    assert {name for name in before if before[name] != after[name]} == {"traces"}


def test_the_traces_of_older_runs_do_not_depend_on_the_prompt_for_errors():
    assert {*prompts.VARIABLES} - {*prompts.OF_TRACES} == {"classify"}


def test_copies_of_a_template_are_recognised():
    rewrite = prompts.load({})["rewrite"]
    assert rewrite.is_copied("Mia takes 5 of these away, which leaves 24 - 5 = 19 jars.")
    assert rewrite.is_copied("So: keep EVERY number, and every result, then 7.")
    assert rewrite.is_copied("It is 7.\nRewritten step: It is 7.")
    assert not rewrite.is_copied("Mia takes 5 of these, and every number is 7: that is the step.")
