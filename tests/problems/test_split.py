"""The split by the text of a problem, and the draw by the seed."""

import pytest

from astro_jax.errors import AstroError
from astro_jax.problems import records, split


def split_problems(problems):
    """The training and the evaluation side, with a share of 0.2 held out."""
    held_out = [split.is_held_out(p, 0.2) for p in problems]
    return tuple([p for p, held in zip(problems, held_out, strict=True) if held == side] for side in (False, True))


def test_text_decides_side_and_seed_decides_order():
    problems = records.from_records((("", {"problem": f"What is {i}?", "answer": i}) for i in range(400)), "number")
    training, evaluation = split_problems(problems)
    assert 50 < len(evaluation) < 110
    held_out = {s: {p.id for p in split.draw(evaluation, 50, s, evaluation=True)} for s in (0, 1)}
    trained = {s: [p.id for p in split.draw(training, 280, s, evaluation=False)] for s in (0, 1)}
    assert not (held_out[0] | held_out[1]) & (set(trained[0]) | set(trained[1]))
    assert held_out[0] != held_out[1] and trained[0] != trained[1]
    reversed_training = split_problems(problems[::-1])[0][::-1]
    assert trained[0] == [p.id for p in split.draw(reversed_training, 280, 0, evaluation=False)]
    with pytest.raises(AstroError, match=r"400 asked for, the source has \d+ held out for evaluation"):
        split.draw(evaluation, 400, 0, evaluation=True)
