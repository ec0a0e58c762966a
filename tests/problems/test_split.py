"""The split by the text of a problem, and the draw by the seed."""

import pytest

from astro_jax.errors import AstroError
from astro_jax.problems import records, split
from astro_jax.types import Problem


def split_problems(problems):
    """The training and the evaluation side, with a share of 0.2 held out."""
    held_out = [split.is_held_out(p, 0.2) for p in problems]
    return tuple([p for p, held in zip(problems, held_out, strict=True) if held == side] for side in (False, True))


def test_text_decides_side_and_seed_decides_order():
    problems = records.from_records((("", {"problem": f"What is {i}?", "answer": i}) for i in range(400)), "number")
    training, evaluation = split_problems(problems)
    assert 50 < len(evaluation) < 110
    held_out = {s: {p.id for p in split.draw([evaluation], [50], f"{s}/True", "evaluation")} for s in (0, 1)}
    trained = {s: [p.id for p in split.draw([training], [280], f"{s}/False", "search and RL")] for s in (0, 1)}
    assert not (held_out[0] | held_out[1]) & (set(trained[0]) | set(trained[1]))
    assert held_out[0] != held_out[1] and trained[0] != trained[1]
    reversed_training = split_problems(problems[::-1])[0][::-1]
    assert trained[0] == [p.id for p in split.draw([reversed_training], [280], "0/False", "search and RL")]
    with pytest.raises(AstroError, match=r"400 asked for, the source has \d+ for evaluation"):
        split.draw([evaluation], [400], "0/True", "evaluation")


def test_each_group_gives_its_number_of_problems_and_their_order_is_mixed():
    problems = [Problem(str(i), f"What is {i}?", "1") for i in range(60)]
    groups = [problems[:10], problems[10:30], problems[30:]]
    drawn = split.draw(groups, [10, 0, 20], "0/False", "search and RL")
    assert [sum(p in group for p in drawn) for group in groups] == [10, 0, 20] and len(set(p.id for p in drawn)) == 30
    first = [p in groups[0] for p in drawn]
    assert first != sorted(first) and first != sorted(first, reverse=True)
    assert drawn == split.draw(groups, [10, 0, 20], "0/False", "search and RL")
    with pytest.raises(AstroError, match=r"problems: 21 asked for, source 2 has 20 for search and RL: lower"):
        split.draw(groups, [10, 21, 20], "0/False", "search and RL")
