"""Countdown's game against a brute force over expression trees, its split, and the corpus."""

import itertools
import random
from fractions import Fraction

import pytest

from astro_jax import countdown, phrases
from astro_jax.countdown import HIT, MISS, Game, Move
from astro_jax.errors import AstroError
from astro_jax.verify import verify

GAMES = [
    Game(count=3, max_number=12, max_value=40, ops="+-*"),
    Game(count=3, max_number=12, max_value=60, ops="+-*/"),
    Game(count=4, max_number=8, max_value=30, ops="+-*/"),
    Game(count=2, max_number=9, max_value=9, ops="-/"),
]
SMALL = Game(count=3, max_number=8, max_value=30, ops="+-*/")


def trees(leaves):
    """All binary trees over a sequence of leaves, in order, as nested pairs."""
    if len(leaves) == 1:
        yield leaves[0]
    for cut in range(1, len(leaves)):
        yield from itertools.product(trees(leaves[:cut]), trees(leaves[cut:]))


def values(tree, game):
    """All results of a tree with any operators, every intermediate one a whole number in 1..max_value."""
    if isinstance(tree, int):
        return {tree}
    found = set()
    for a, b in itertools.product(*(values(branch, game) for branch in tree)):
        for op in game.ops:
            value = eval(f"Fraction({a}) {op} Fraction({b})", {"Fraction": Fraction})
            if value.denominator == 1 and 1 <= value <= game.max_value:
                found.add(int(value))
    return found


def brute_force(numbers, game):
    return set().union(*(values(tree, game) for order in set(itertools.permutations(numbers)) for tree in trees(order)))


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_reachable_equals_a_brute_force_over_all_expressions(game):
    rng = random.Random(0)
    for _ in range(25 if game.count < 4 else 6):
        numbers = tuple(rng.randint(1, game.max_number) for _ in range(game.count))
        assert set(countdown.reachable(numbers, game)) == brute_force(numbers, game), numbers


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
def test_apply(move, result):
    assert countdown.apply(*move) == result


def test_moves_put_the_larger_operand_first_and_stay_inside_the_rules():
    game = Game(count=2, max_number=9, max_value=12, ops="+-*/")
    assert set(countdown.moves((3, 6), game)) == {Move(6, "+", 3, 9), Move(6, "-", 3, 3), Move(6, "/", 3, 2)}
    assert set(countdown.moves((5, 5), game)) == {Move(5, "+", 5, 10), Move(5, "/", 5, 1)}


@pytest.mark.parametrize("game", GAMES[:3], ids=str)
def test_problems_are_distinct_solvable_and_split_by_multiset(game):
    train, held_out = (countdown.problems(game, 150, 0, held_out=side) for side in (False, True))
    keys = [(tuple(sorted(p.meta["numbers"])), p.meta["target"]) for p in train + held_out]
    assert len(set(keys)) == len({p.id for p in train + held_out}) == 300
    for numbers, target in keys[::10]:
        assert target in brute_force(numbers, game) and target not in numbers
    assert not {k[0] for k in keys[:150]} & {k[0] for k in keys[150:]}


def test_the_two_sides_hold_every_multiset_once_in_the_asked_shares():
    sides = [set(countdown.multisets(SMALL, side)) for side in (False, True)]
    every = set(itertools.combinations_with_replacement(range(1, 9), 3))
    assert not sides[0] & sides[1] and sides[0] | sides[1] == every
    # 120 multisets, a share of 0.2 with a standard deviation of 0.037
    assert 0.05 < len(sides[1]) / len(every) < 0.35
    assert all(countdown.is_held_out((c, a, b), SMALL) for a, b, c in sides[1])


def test_problems_follow_the_seed_and_more_than_there_are_is_an_error():
    one, same, other = (countdown.problems(SMALL, 40, seed, held_out=False) for seed in (1, 1, 2))
    assert one == same and {p.id for p in one} != {p.id for p in other}
    with pytest.raises(AstroError, match="999999 problems asked for"):
        countdown.problems(SMALL, 999_999, 0, held_out=False)


@pytest.mark.parametrize("changes", [{"ops": "+%"}, {"ops": ""}, {"count": 1}, {"held_out": 1.0}, {"held_out": 0.0}])
def test_impossible_rules_are_refused(changes):
    with pytest.raises(AstroError, match="impossible rules"):
        Game(**changes)


def test_texts():
    problem = countdown.make_problem((7, 2, 3), 20)
    assert problem.prompt == "Let us make 20 from 7 2 3.\n" and problem.answer == "20"
    assert problem.meta == {"numbers": [7, 2, 3], "target": 20} and problem.id == "countdown-2-3-7-to-20"
    first, second = Move(7, "+", 3, 10), Move(10, "*", 2, 20)
    assert countdown.step_text((7, 2, 3), first, 20) == " 7 + 3 = 10, left 2 10.\n"
    assert countdown.step_text((2, 10), second, 20) == " 10 * 2 = 20, which is the target!\n"
    assert countdown.step_text((2, 10), second, 21) == " 10 * 2 = 20, which misses the target!\n"
    assert countdown.restate((2, 10), 20) == " make 20 from 2 10.\n"
    assert countdown.attempt_text((7, 2, 3), (first, second), 20) == (
        " 7 + 3 = 10, left 2 10.\n 10 * 2 = 20, which is the target!\n"
    )
    assert countdown.numbers_left(" 7 + 3 = 10, left 2 10.\n") == (2, 10)
    assert countdown.numbers_left(" Let's go back to where we make 4 from 3 5.\n") == (3, 5)
    assert countdown.numbers_left(" 7 + 3 = 10, left two.\n") == countdown.numbers_left(phrases.DOUBT) == ()
    assert countdown.numbers_left(" 10 * 2 = 20" + HIT) == countdown.numbers_left(" 10 * 2 = 20" + MISS) == ()


def corpus(game, n, solved=0.3, drills=0.1, seed=0, recall=0.0):
    return list(itertools.islice(countdown.corpus(game, seed, solved, drills, recall), n))


def stated(prompt):
    """The numbers and target of a prompt."""
    words = prompt.removesuffix(".\n").split()
    return tuple(map(int, words[5:])), int(words[3])


@pytest.mark.parametrize("game", GAMES[:3], ids=str)
def test_the_corpus_is_true_and_holds_neither_held_out_multisets_nor_backtracks(game):
    held_out = set(countdown.multisets(game, True))
    lengths = set()
    for prompt, response in corpus(game, 600):
        assert not any(phrase in prompt + response for phrase in phrases.PHRASES)
        if not prompt:  # a drill
            a, op, b, _, result = response.removesuffix(".\n").split()
            assert eval(f"{a} {op} {b}") == int(result)
            continue
        numbers, target = stated(prompt)
        lengths.add(len(numbers))
        assert tuple(sorted(numbers)) not in held_out
        verdict = verify(countdown.make_problem(numbers, target), response, True)
        assert verdict.valid and verdict.correct == (verdict.answer == str(target)) == (HIT in response)
    assert lengths == set(range(2, game.count + 1))


def test_the_shares_of_solutions_and_drills_are_as_asked():
    documents = corpus(SMALL, 2000, solved=1.0, drills=0.25)
    attempts = [response for prompt, response in documents if prompt]
    assert abs(len(attempts) / 2000 - 0.75) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert all(response.endswith(HIT) for response in attempts)
    assert any(response.endswith(MISS) for _, response in corpus(SMALL, 50, solved=0.0))
    assert corpus(SMALL, 50) == corpus(SMALL, 50) != corpus(SMALL, 50, seed=1)


def test_recall_says_states_again_word_for_word_and_tries_nothing_twice():
    held_out = set(countdown.multisets(SMALL, True))
    inner = 0
    for prompt, response in corpus(SMALL, 400, drills=0.0, recall=1.0):
        first, *between, last = response.splitlines(keepends=True)
        numbers, target = stated("Let us" + first)
        assert not prompt and first == countdown.restate(numbers, target)
        assert tuple(sorted(numbers)) not in held_out
        attempts = [i for i, line in enumerate(between) if line.endswith((HIT, MISS))]
        assert len(attempts) <= 1
        known = {first}
        for i, line in enumerate(between):
            if ", left " in line:  # a step of the attempt: what is left may be said again once the attempt has ended
                assert i < attempts[0]
                known.add(countdown.restate(countdown.numbers_left(line), target))
            assert " = " in line or line in known
        assert last in known
        inner += last != first
    assert inner > 40


def test_a_prompt_in_the_corpus_is_always_followed_by_an_attempt():
    # Recall once began like a prompt, and half of the base's answers were another statement of the problem.
    for prompt, response in corpus(SMALL, 500, recall=0.5):
        assert not response.startswith("Let us") and prompt.startswith("Let us") == bool(prompt)


def test_the_corpus_passes_over_states_without_a_move():
    # 9 + 9 is above the largest value, so (9, 9) is a dead end, and so is what 5 + 4 makes of (4, 5, 9).
    for count in (2, 3):
        game = Game(count=count, max_number=9, max_value=9 if count == 2 else 12, ops="+-")
        for prompt, response in corpus(game, 2000):
            assert not prompt or response.endswith((HIT, MISS))
