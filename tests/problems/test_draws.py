"""The problems of search, RL and evaluation: shared or disjoint, of one source, of several, and of Countdown."""

import random

import pytest
from jsonl_file import write

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.countdown import Game
from astro_jax.errors import AstroError
from astro_jax.problems import source
from astro_jax.problems.draws import Candidates, Draws
from astro_jax.types import Problem

GAME = Game(count=2, max_number=9, max_value=60)


@pytest.fixture
def path(tmp_path):
    """A file of 300 problems."""
    lines = ({"problem": f"What is {i} plus {i * i}?", "answer": i + i * i} for i in range(300))
    return str(write(tmp_path / "p.jsonl", *lines))


@pytest.fixture
def two(tmp_path):
    """Two files of 100 and 50 problems, as sources."""
    groups = [
        [{"problem": f"What is {i} {word} {i}?", "answer": i} for i in range(n)]
        for word, n in (("or", 100), ("and", 50))
    ]
    return [{"path": str(write(tmp_path / f"{n}.jsonl", *lines))} for n, lines in enumerate(groups)]


def draws(game=GAME, seed=0, **problems):
    return Draws(cfg.Problems(overlap_threshold=1, **problems), seed, game)


def ids(problems):
    return [p.id for p in problems]


def test_shared_draws_of_a_single_source_are_samples_of_the_side_in_its_order(path):
    """The draw that every run before `rl_prompts` made."""
    d = draws(seed=4, path=path, search=20, rl=90, eval=10)
    problems = source.load(d.c, 4)
    for use, n, side in (
        ("search", 20, problems.training),
        ("rl", 90, problems.training),
        ("eval", 10, problems.evaluation),
    ):
        assert d.draw(use) == random.Random(f"4/{use == 'eval'}").sample(side, n)


def test_shared_draws_of_countdown_are_those_of_its_rules():
    d = draws(search=20, rl=40, eval=10)
    for use, n in (("search", 20), ("rl", 40), ("eval", 10)):
        assert d.draw(use) == countdown.problems(GAME, n, 0, held_out=use == "eval")


@pytest.mark.parametrize("kind", ["source", "countdown"])
def test_disjoint_prompts_of_rl_are_training_problems_that_are_not_searched(kind, path):
    keys = {"path": path} if kind == "source" else {}
    d = draws(search=40, rl=40, eval=10, rl_prompts="disjoint", **keys)
    searched, rl, evaluation = (ids(d.draw(use)) for use in cfg.USES)
    assert len({*searched, *rl, *evaluation}) == 40 + 40 + 10
    shared = draws(search=40, rl=40, eval=10, **keys)
    assert (searched, evaluation) == (ids(shared.draw("search")), ids(shared.draw("eval")))
    assert set(searched) & set(ids(shared.draw("rl")))
    assert rl == ids(draws(search=40, rl=40, eval=10, rl_prompts="disjoint", **keys).draw("rl"))


@pytest.mark.parametrize("kind", ["source", "countdown"])
def test_too_few_problems_beside_the_searched_ones_are_one_line(kind, path):
    keys = {"path": path} if kind == "source" else {}
    left = len(draws(search=40, rl=1, rl_prompts="disjoint", **keys).rl_candidates().problems)
    assert len(draws(search=40, rl=left, rl_prompts="disjoint", **keys).draw("rl")) == left
    with pytest.raises(AstroError, match=rf"disjoint: problems.rl={left + 1} prompts asked for, {left} can") as e:
        draws(search=40, rl=left + 1, rl_prompts="disjoint", **keys).draw("rl")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("rl_prompts", ["shared", "disjoint"])
@pytest.mark.parametrize("kind", ["source", "countdown"])
def test_candidates_begin_with_the_prompts_of_rl_and_hold_each_training_problem_once(kind, rl_prompts, path):
    keys = {"path": path} if kind == "source" else {}
    d = draws(search=40, rl=40, eval=10, rl_prompts=rl_prompts, **keys)
    candidates = d.rl_candidates()
    assert list(candidates.problems[:40]) == d.draw("rl") == candidates.take(candidates.problems)
    every = set(ids(source.load(d.c, 0).training if keys else countdown.other_problems(GAME, "", ())))
    excluded = set(ids(d.draw("search"))) if rl_prompts == "disjoint" else set()
    assert sorted(ids(candidates.problems)) == sorted(every - excluded) and excluded <= every
    assert not any(countdown.is_held_out(p.meta["numbers"], GAME) for p in candidates.problems if not keys)


@pytest.mark.parametrize("rl_prompts", ["shared", "disjoint"])
def test_each_source_gives_its_number_of_problems(two, rl_prompts):
    counts = [{"search": 30, "rl": 20, "eval": 4}, {"search": 5, "rl": 0, "eval": 6}]
    d = draws(sources=[a | b for a, b in zip(two, counts, strict=True)], rl_prompts=rl_prompts)
    assert (d.c.search, d.c.rl, d.c.eval) == (35, 20, 10)
    for use in cfg.USES:
        drawn = d.draw(use)
        assert [sum(word in p.prompt for p in drawn) for word in ("or", "and")] == [c[use] for c in counts]
    names = [f"{i}: {entry['path']}" for i, entry in enumerate(two, 1)]
    assert d.counts(*cfg.USES)["drawn"] == {
        use: {n: c[use] for n, c in zip(names, counts, strict=True)} for use in cfg.USES
    }
    assert bool(set(ids(d.draw("search"))) & set(ids(d.draw("rl")))) == (rl_prompts == "shared")


def test_sources_without_numbers_are_drawn_from_together(two):
    d = draws(sources=two, search=60, rl=20, eval=5)
    assert d.draw("search") == random.Random("0/False").sample(source.load(d.c, 0).training, 60)


def test_candidates_take_the_first_problems_of_each_group():
    problems = [Problem(str(i), "", "") for i in range(8)]
    candidates = Candidates(problems, (1, 3), {str(i): i % 2 for i in range(8)})
    assert ids(candidates.take(problems)) == ["0", "1", "3", "5"]
    assert candidates.open_groups(problems[:4]) == {1} and candidates.open_groups(problems) == set()


def test_evaluation_draws_from_its_sets_also_beside_countdown(path, two):
    d = draws(path=path, evaluation=[two[0] | {"eval": 7}, two[1] | {"eval": 2}], held_out=0, search=40, rl=40)
    assert [sum(word in p.prompt for p in d.draw("eval")) for word in ("or", "and")] == [7, 2]
    game = Game(count=2, max_number=9, max_value=60, held_out=0)
    d = draws(game, evaluation=two, held_out=0, search=40, rl=40, eval=30)
    assert {p.task for p in d.draw("eval")} == {"number"} and {p.task for p in d.draw("rl")} == {"countdown"}
