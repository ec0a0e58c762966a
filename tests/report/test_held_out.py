"""Which answers the page shows, and their graphs."""

import pytest
from fake_run import fake_run

from astro_jax.phrases import count_backtracks
from astro_jax.report import held_out, run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder.read(fake_run(tmp_path_factory.mktemp("runs") / "quickstart", trees=2))


def test_held_out_problems_cover_all_outcomes(run):
    shown = held_out.held_out(run)
    assert sum(shown["counts"].values()) == 60
    assert {p["outcome"] for p in shown["problems"]} == {"astro", "both", "neither", "direct"}


def test_another_run_shows_the_problems_that_it_is_told(run):
    ids = [p["id"] for p in held_out.held_out(run)["problems"]][3:5]
    assert [p["id"] for p in held_out.held_out(run, [ids[1], "unknown", ids[0]])["problems"]] == ids[::-1]
    assert len(held_out.held_out(run, ["unknown"])["problems"]) > 2  # none in common: its own choice


def test_answers_have_their_graph_and_the_verdict_at_its_end(run):
    for problem in held_out.held_out(run)["problems"]:
        for answer in (a for modes in problem["answers"].values() for a in modes.values()):
            end = answer["segments"][-1].node
            assert answer["verdicts"][end] == answer["correct"] and "text" not in answer
            assert answer["error"] == (None if answer["correct"] else "planning")
            written = count_backtracks("".join(s.text for s in answer["segments"]))
            assert written == sum(s.kind == "backtrack" for s in answer["segments"])
