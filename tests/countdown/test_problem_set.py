"""Countdown problems drawn from one side of the split: distinct, solvable, and named by the seed."""

import itertools

import brute_force
import pytest

from astro_jax import countdown
from astro_jax.errors import AstroError


@pytest.mark.parametrize("game", brute_force.GAMES, ids=str)
def test_problems_are_distinct_solvable_and_split_by_multiset(game):
    train, held_out = (countdown.problems(game, 150, 0, held_out=side) for side in (False, True))
    keys = [(tuple(sorted(p.meta["numbers"])), p.meta["target"]) for p in train + held_out]
    assert len(set(keys)) == len({p.id for p in train + held_out}) == 300
    for numbers, target in keys[::10]:
        assert target in brute_force.reachable(numbers, game) and target not in numbers
    assert not {k[0] for k in keys[:150]} & {k[0] for k in keys[150:]}


def test_with_last_two_each_multiset_has_one_order_that_reaches_its_targets():
    game = brute_force.LAST_TWO
    orders = {}
    for seed, side in itertools.product((0, 1), (False, True)):
        for p in countdown.problems(game, 60, seed, held_out=side):
            numbers = tuple(p.meta["numbers"])
            assert p.meta["target"] in brute_force.count_choices(numbers, game) and p.meta["last_two"]
            assert countdown.is_held_out(numbers, game) == side
            assert orders.setdefault(tuple(sorted(numbers)), numbers) == numbers
    assert any(numbers != multiset for multiset, numbers in orders.items())


def test_problems_follow_the_seed_and_too_many_are_refused():
    one, same, other = (countdown.problems(brute_force.SMALL, 40, seed, held_out=False) for seed in (1, 1, 2))
    assert one == same and {p.id for p in one} != {p.id for p in other}
    with pytest.raises(AstroError, match="999999 problems asked for"):
        countdown.problems(brute_force.SMALL, 999_999, 0, held_out=False)


@pytest.mark.parametrize("name", ["a", "b"])
def test_other_problems_are_all_training_problems_but_the_excluded_ones(name):
    game = brute_force.SMALL
    expected = {
        (numbers, target)
        for numbers in countdown.multisets(game, False)
        for target in brute_force.reachable(numbers, game) - set(numbers)
    }
    drawn = countdown.problems(game, 40, 0, held_out=False)
    others = countdown.other_problems(game, name, {p.id for p in drawn})
    keys = [(tuple(sorted(p.meta["numbers"])), p.meta["target"]) for p in drawn + others]
    assert len(keys) == len(expected) and set(keys) == expected
    assert others != countdown.other_problems(game, "c", {p.id for p in drawn})
