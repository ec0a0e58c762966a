"""The prompts: in one place, each overridable, and checked before anything runs."""

import pytest

from astro_jax import config as cfg
from astro_jax import pipeline, prompts
from astro_jax.errors import AstroError

VALUES = {
    "problem": "PROBLEM {{ x }} {% y %}", "solution": "SO FAR", "step": "THE STEP", "correct": True,
}  # fmt: skip


@pytest.mark.parametrize("name", prompts.VARIABLES)
def test_each_prompt_shows_all_that_it_is_given(name):
    values = {k: VALUES[k] for k in prompts.VARIABLES[name]}
    text = prompts.load({})[name].render(**values)
    assert all(str(v) in text for k, v in values.items() if k != "correct")
    assert text.count("Problem:") == 3 and text == text.strip()  # two examples, and the question at the end
    before, _, after = text.rpartition("PROBLEM {{ x }} {% y %}")  # what a model wrote is never a template
    assert "{" not in before + after


def test_the_evaluation_shows_how_to_end_and_the_reflection_says_how_it_looks():
    every = prompts.load({})
    assert "Verdict: correct\n" in every["evaluate"].source and "Verdict: incorrect\n" in every["evaluate"].source
    said = [every["reflect"].render(problem="", solution="", correct=c).splitlines()[-2:] for c in (True, False)]
    assert said == [["Feeling: it looks right", "Said:"], ["Feeling: something may be wrong", "Said:"]]


def test_a_file_stands_in_the_place_of_ours(tmp_path):
    (tmp_path / "mine.txt").write_text("Judge {{ solution }} of {{ problem }}!")
    found, ours = prompts.load({"evaluate": str(tmp_path / "mine.txt")}), prompts.load({})
    assert found["evaluate"].render(problem="P", solution="S") == "Judge S of P!"
    assert {n for n in found if found[n] != ours[n]} == {"evaluate"}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("judge", "", r"prompts\.judge: no such prompt; there are evaluate, rewrite, go_back, reflect"),
        ("evaluate", None, r"prompts\.evaluate: .*mine\.txt cannot be read"),
        ("evaluate", "Judge {{ solution }}", r"mine\.txt must use problem, solution; it uses solution"),
        ("evaluate", "Judge", r"it uses nothing"),
        ("rewrite", "{{ problem }} {{ solution }} {{ step }} {{ answer }}", r"it uses answer, problem, solution, step"),
        ("evaluate", "{{ problem }}\n{% if %}", r"mine\.txt, line 2: not a jinja2 template"),
    ],
)
def test_a_prompt_that_cannot_serve_is_one_line_before_the_run_begins(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / "mine.txt").write_text(text)
    c = cfg.parse({"out": str(tmp_path / "run"), "prompts": {name: str(tmp_path / "mine.txt")}})
    with pytest.raises(AstroError, match=message) as e:
        pipeline.execute(c)
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_another_prompt_in_the_same_file(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("{{ solution }} {{ problem }}")
    c = cfg.parse({"out": str(tmp_path / "run"), "prompts": {"evaluate": str(mine)}})
    pipeline.execute(c, only=("base",))
    mine.write_text("{{ solution }} of {{ problem }}")
    with pytest.raises(AstroError, match=r"holds other problems or a file of `prompts` another prompt"):
        pipeline.execute(c, only=("base",))


def test_what_is_copied_from_a_prompt_is_found():
    rewrite = prompts.load({})["rewrite"]
    assert rewrite.is_copied("Mia takes 5 of these away, which leaves 24 - 5 = 19 jars.")
    assert rewrite.is_copied("So: keep EVERY number, and every result, then 7.")
    assert rewrite.is_copied("It is 7.\nRewritten step: It is 7.")
    assert not rewrite.is_copied("Mia takes 5 of these, and every number is 7: that is the step.")
