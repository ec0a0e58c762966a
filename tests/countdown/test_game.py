"""Countdown's rules against a brute force over expression trees, and the split by multisets of numbers."""

import itertools
import random

import brute_force
import pytest

from astro_jax import countdown
from astro_jax.countdown import Game, Move
from astro_jax.errors import AstroError

GAMES = [
    *brute_force.GAMES,
    Game(count=2, max_number=9, max_value=9, ops="-/"),
]


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_reachable_equals_a_brute_force_over_all_expressions(game):
    rng = random.Random(0)
    for _ in range(25 if game.count < 4 else 6):
        numbers = tuple(rng.randint(1, game.max_number) for _ in range(game.count))
        assert set(countdown.reachable(numbers, game)) == brute_force.reachable(numbers, game), numbers


@pytest.mark.parametrize("game", [*GAMES, brute_force.LAST_TWO], ids=str)
def test_targets_are_the_keys_of_reachable(game):
    rng = random.Random(1)
    for _ in range(10):
        numbers = tuple(rng.randint(1, game.max_number) for _ in range(game.count))
        assert countdown.targets(numbers, game) == countdown.reachable(numbers, game).keys()


def test_last_two_reaches_what_each_choice_of_operators_gives():
    game = brute_force.LAST_TWO
    rng = random.Random(2)
    for _ in range(40):
        numbers = tuple(rng.randint(1, game.max_number) for _ in range(game.count))
        paths = countdown.reachable(numbers, game)
        assert {target: len(paths[target]) for target in paths} == brute_force.count_choices(numbers, game), numbers


def test_a_step_with_last_two_takes_the_last_two_and_keeps_the_order_of_the_others():
    game = Game(count=4, max_number=9, max_value=20, ops="+-", last_two=True)
    assert set(countdown.moves((5, 3, 9, 5), game)) == {Move(9, "+", 5, 14), Move(9, "-", 5, 4)}
    assert countdown.after((5, 3, 9, 5), Move(9, "-", 5, 4), last_two=True) == (5, 3, 4)
    assert countdown.after((5, 3, 9, 5), Move(9, "-", 5, 4)) == (
        3,
        5,
        4,
    )  # without the rule, the first of equal numbers


def test_reachable_holds_every_sequence_of_moves_once():
    game = Game(count=3, max_number=9, max_value=20, ops="+*")
    # 2 2 3 -> 7: (2 + 2) + 3, and (2 + 3) + 2 = (3 + 2) + 2, and 2 * 2 + 3. Not 3 * 2 + 2, which is 8.
    assert set(countdown.reachable((2, 2, 3), game)[7]) == {
        (Move(2, "+", 2, 4), Move(4, "+", 3, 7)),
        (Move(2, "*", 2, 4), Move(4, "+", 3, 7)),
        (Move(3, "+", 2, 5), Move(5, "+", 2, 7)),
    }
    assert len(countdown.reachable((2, 2, 3), game)[7]) == 3


@pytest.mark.parametrize(
    "move, result",
    [((6, "/", 3), 2), ((6, "/", 4), None), ((6, "/", 0), None), ((3, "-", 5), -2), ((7, "*", 8), 56)],
)
def test_apply_gives_whole_results_only(move, result):
    assert countdown.apply(*move) == result


def test_moves_put_the_larger_operand_first_and_stay_inside_the_rules():
    game = Game(count=2, max_number=9, max_value=12, ops="+-*/")
    assert set(countdown.moves((3, 6), game)) == {Move(6, "+", 3, 9), Move(6, "-", 3, 3), Move(6, "/", 3, 2)}
    assert set(countdown.moves((5, 5), game)) == {Move(5, "+", 5, 10), Move(5, "/", 5, 1)}


def test_the_two_sides_hold_each_multiset_once_in_the_given_shares():
    sides = [set(countdown.multisets(brute_force.SMALL, side)) for side in (False, True)]
    multisets = set(itertools.combinations_with_replacement(range(1, 9), 3))
    assert not sides[0] & sides[1] and sides[0] | sides[1] == multisets
    # 120 multisets, a share of 0.2 with a standard deviation of 0.037
    assert 0.05 < len(sides[1]) / len(multisets) < 0.35
    assert all(countdown.is_held_out((c, a, b), brute_force.SMALL) for a, b, c in sides[1])


@pytest.mark.parametrize("changes", [{"ops": "+%"}, {"ops": ""}, {"count": 1}, {"held_out": 1.0}, {"held_out": -0.1}])
def test_impossible_rules_are_refused(changes):
    with pytest.raises(AstroError, match="impossible rules"):
        Game(**changes)
