"""The numbers that Countdown's rules can reach, by brute force over expression trees."""

import functools
import itertools
import operator
from collections import Counter
from fractions import Fraction

from astro_jax.countdown import Game

# Rules that the brute force can search in a moment.
GAMES = [
    Game(count=3, max_number=12, max_value=40, ops="+-*"),
    Game(count=3, max_number=12, max_value=60, ops="+-*/"),
    Game(count=4, max_number=8, max_value=30, ops="+-*/"),
]
SMALL = Game(count=3, max_number=8, max_value=30, ops="+-*/")
LAST_TWO = Game(count=5, max_number=6, max_value=18, ops="+-*/", last_two=True)
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def trees(leaves):
    """All binary trees over a sequence of leaves, in order, as nested pairs."""
    if len(leaves) == 1:
        yield leaves[0]
    for i in range(1, len(leaves)):
        yield from itertools.product(trees(leaves[:i]), trees(leaves[i:]))


@functools.cache
def values(tree, game):
    """All results of a tree with any operators, if every intermediate result is a whole number in 1..max_value."""
    if isinstance(tree, int):
        return frozenset({tree})
    results = set()
    for a, b in itertools.product(*(values(branch, game) for branch in tree)):
        for op in game.ops:
            value = OPERATORS[op](Fraction(a), Fraction(b))
            if value.denominator == 1 and 1 <= value <= game.max_value:
                results.add(int(value))
    return frozenset(results)


def reachable(numbers, game):
    """All results that use each number once."""
    return set().union(*(values(tree, game) for order in set(itertools.permutations(numbers)) for tree in trees(order)))


def count_choices(numbers, game):
    """How often each result comes of all choices of operators, where each step takes the last two numbers.

    Two operators that give a step the same result are two choices. The larger operand stands first.
    """
    ends = Counter()
    for choice in itertools.product(game.ops, repeat=len(numbers) - 1):
        value = Fraction(numbers[-1])
        for op, number in zip(choice, reversed(numbers[:-1]), strict=True):
            value = OPERATORS[op](max(value, number), min(value, number))
            if value.denominator > 1 or not 1 <= value <= game.max_value:
                break
        else:
            ends[int(value)] += 1
    return ends
