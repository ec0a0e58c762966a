"""Countdown's verifier: each rule by hand, against reasoning-gym's scorer, and against an independent replay."""

import itertools
import random
import time

import pytest

from astro_jax import countdown
from astro_jax.countdown import HIT, MISS, Game
from astro_jax.phrases import CORRECT, DOUBT, GO_BACK, RESTART, UNSURE
from astro_jax.verify import verify
from astro_jax.verify.countdown import find_fault

# Make 10 from 2 3 4: 2 * 3 + 4, or 3 * 4 - 2, or ...
PROBLEM = countdown.make_problem((2, 3, 4), 10)
STEP, HITS = " 3 * 2 = 6, left 4 6.\n", " 6 + 4 = 10" + HIT
WRONG = " 4 - 3 = 1, left 2 1.\n 2 + 1 = 3" + MISS
BACK = DOUBT + UNSURE + GO_BACK
BACK_TO_ROOT = BACK + " make 10 from 2 3 4.\n"
BACK_TO_STEP = BACK + " make 10 from 4 6.\n"
AGAIN = DOUBT + UNSURE + RESTART + " make 10 from 2 3 4.\n"


def judge(response, problem=PROBLEM, stopped=True):
    verdict = verify(problem, response, stopped)
    return verdict.correct, verdict.valid, verdict.answer


RIGHT, RIGHT_NOT_VALID, NOTHING = (True, True, "10"), (True, False, "10"), (False, False, None)

CASES = {
    "a solution": (STEP + HITS, RIGHT),
    "the numbers left in another order": (" 3 * 2 = 6, left 6 4.\n" + HITS, RIGHT),
    "the smaller operand first": (" 2 * 3 = 6, left 4 6.\n 4 + 6 = 10" + HIT, RIGHT),
    "a miss": (WRONG, (False, True, "3")),
    "a miss, back, and a solution": (WRONG + BACK_TO_ROOT + STEP + HITS, RIGHT),
    "a miss, a restart, and a solution": (WRONG + AGAIN + STEP + HITS, RIGHT),
    "back to an inner state": (STEP + " 6 - 4 = 2" + MISS + BACK_TO_STEP + HITS, RIGHT),
    "back before the end of a branch": (" 4 - 3 = 1, left 2 1.\n" + BACK_TO_ROOT + STEP + HITS, RIGHT),
    "a reflection that the steps are right": (STEP + DOUBT + CORRECT + HITS + DOUBT + CORRECT, RIGHT),
    "a negative result": (" 2 - 3 = -1, left 4 -1.\n 4 + -1 = 3" + MISS, (False, True, "3")),
    "a number used twice": (" 3 * 3 = 9, left 2 9.\n 9 + 2 = 11" + MISS, NOTHING),
    "a number that is no current number": (" 5 * 2 = 10, left 3 4.\n", NOTHING),
    "a wrong sum": (" 3 * 2 = 7, left 4 7.\n 7 + 4 = 11" + MISS, NOTHING),
    "a wrong sum that hits": (STEP + " 6 - 4 = 10" + HIT, NOTHING),
    "a number forgotten in what is left": (" 3 * 2 = 6, left 6.\n", NOTHING),
    "a number kept in what is left": (" 3 * 2 = 6, left 3 4 6.\n", NOTHING),
    "a division that does not come out": (" 3 / 2 = 1, left 4 1.\n", NOTHING),
    "a false hit": (" 4 - 3 = 1, left 2 1.\n 2 + 1 = 3" + HIT, NOTHING),
    "a false miss": (STEP + " 6 + 4 = 10" + MISS, NOTHING),
    "a hit with numbers left over": (" 3 * 2 = 6" + HIT, NOTHING),
    "left at the last step": (STEP + " 6 + 4 = 10, left 10.\n", NOTHING),
    "back with another target": (WRONG + BACK + " make 6 from 2 3 4.\n" + STEP + HITS, NOTHING),
    "back to a state never reached": (WRONG + BACK + " make 10 from 4 6.\n" + HITS, NOTHING),
    "a restart from another state": (STEP + DOUBT + UNSURE + RESTART + " make 10 from 4 6.\n" + HITS, NOTHING),
    "a restart with other numbers": (WRONG + RESTART + " make 10 from 2 3 5.\n" + STEP + HITS, NOTHING),
    "a state that only a false step reached": (
        " 4 + 3 = 8, left 2 8.\n" + BACK + " make 10 from 2 8.\n 2 + 8 = 10" + HIT,
        NOTHING,
    ),
    "an error in a branch that was left": (" 3 * 2 = 5, left 4 5.\n" + BACK_TO_ROOT + STEP + HITS, RIGHT_NOT_VALID),
    "garbage in a branch that was left": (" 3 times\n" + BACK_TO_ROOT + STEP + HITS, RIGHT_NOT_VALID),
    "a hit that was left for a miss": (STEP + HITS + BACK_TO_STEP + " 6 - 4 = 2" + MISS, (False, True, "2")),
    "a hit that was left": (STEP + HITS + BACK_TO_STEP, (False, True, None)),
    "an unfinished attempt": (STEP, (False, True, None)),
    "a step after the end": (STEP + HITS + " 2 + 3 = 5, left 4 5.\n", NOTHING),
    "text after the end": (STEP + HITS + " so the answer is 10", NOTHING),
    "an empty line": (STEP + "\n" + HITS, NOTHING),
    "no text": ("", (False, True, None)),
    "no final newline": (STEP + HITS[:-1], NOTHING),
    "no leading space": (STEP[1:] + HITS, NOTHING),
    "two spaces": (STEP.replace(" = ", "  = ") + HITS, NOTHING),
    "a space at the end": (" 3 * 2 = 6, left 4 6 .\n" + HITS, NOTHING),
    "a leading zero": (" 3 * 2 = 06, left 4 6.\n" + HITS, NOTHING),
    "a minus before zero": (" 3 - 2 = 1, left 4 1.\n" + BACK + " make 10 from 2 3 4 -0.\n", NOTHING),
    "Arabic digits": (" ٣ * ٢ = ٦, left ٤ ٦.\n" + HITS, NOTHING),
    "full-width digits": (" ３ * 2 = 6, left 4 6.\n" + HITS, NOTHING),
    "a carriage return": (STEP.replace("\n", "\r\n") + HITS, NOTHING),
    "a line separator": (STEP + HITS + "\u2028", NOTHING),
    "the prompt again": ("Let us make 10 from 2 3 4.\n" + STEP + HITS, NOTHING),
    "code": ("__import__('os').system('true')\n", NOTHING),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    response, expected = CASES[name]
    assert judge(response) == expected


def test_truncated_response_is_neither_correct_nor_valid():
    assert judge(STEP + HITS, stopped=False) == (False, False, None)
    assert verify(PROBLEM, STEP + HITS, False).expression is None


def test_equal_numbers_may_be_used_once_each():
    problem = countdown.make_problem((5, 5, 3), 13)
    assert judge(" 5 + 5 = 10, left 3 10.\n 10 + 3 = 13" + HIT, problem) == (True, True, "13")
    assert judge(" 5 + 3 = 8, left 5 8.\n 8 + 5 = 13" + HIT, problem) == (True, True, "13")
    assert judge(" 5 + 5 = 10, left 5 3 10.\n", problem) == NOTHING
    problem = countdown.make_problem((5, 6, 3), 16)
    assert judge(" 5 + 5 = 10, left 6 10.\n 10 + 6 = 16" + HIT, problem) == NOTHING


# Make 6 from 5 3 9 5 with the rule last_two: 9 - 5, then 4 + 3 = 7, then 7 - 5 = 2, or 4 - 3 = 1, then 5 + 1 = 6.
LAST_TWO = countdown.make_problem((5, 3, 9, 5), 6, last_two=True)
FIRST, SECOND, END = " 9 - 5 = 4, left 5 3 4.\n", " 4 - 3 = 1, left 5 1.\n", " 5 + 1 = 6" + HIT
MISSED = " 4 + 3 = 7, left 5 7.\n 7 - 5 = 2" + MISS


@pytest.mark.parametrize(
    "response, expected, fault",
    [
        (FIRST + SECOND + END, (True, True, "6"), None),
        (FIRST + MISSED + BACK + " make 6 from 5 3 4.\n" + SECOND + END, (True, True, "6"), None),
        (FIRST + MISSED + BACK + " make 6 from 3 5 4.\n" + SECOND + END, NOTHING, "copying"),
        (FIRST + MISSED + RESTART + " make 6 from 5 3 9 5.\n" + FIRST + SECOND + END, (True, True, "6"), None),
        (FIRST + MISSED + RESTART + " make 6 from 5 5 9 3.\n" + FIRST + SECOND + END, NOTHING, "copying"),
        (" 9 - 5 = 4, left 3 5 4.\n", NOTHING, "copying"),
        (" 9 - 3 = 6, left 5 5 6.\n", NOTHING, "rule broken"),
        (" 5 - 3 = 2, left 9 5 2.\n", NOTHING, "rule broken"),
        (FIRST + " 4 + 4 = 8, left 5 8.\n", NOTHING, "rule broken"),
        (" 9 - 5 = 5, left 5 3 5.\n", NOTHING, "arithmetic"),
    ],
)
def test_with_last_two_the_order_of_the_numbers_counts(response, expected, fault):
    assert judge(response, LAST_TWO) == expected
    assert find_fault(LAST_TWO, response) == fault


def test_the_expression_with_last_two_uses_equal_numbers_at_their_places():
    problem = countdown.make_problem((5, 3, 5, 5), 12, last_two=True)
    response = " 5 + 5 = 10, left 5 3 10.\n 10 - 3 = 7, left 5 7.\n 7 + 5 = 12" + HIT
    assert verify(problem, response, True).expression == "(((5 + 5) - 3) + 5)"


def test_backtracks_and_expression():
    verdict = verify(PROBLEM, WRONG + BACK_TO_ROOT + STEP + " 6 - 4 = 2" + MISS + AGAIN + STEP + HITS, True)
    assert (verdict.backtracks, verdict.expression) == (2, "((3 * 2) + 4)")
    assert verify(PROBLEM, WRONG, True).expression is None


@pytest.mark.parametrize(
    "response",
    [
        " 3 * 2 = 6, left " + "1" * 5000,
        " 3 * 2 = 6, left " + "1" * 40 + "x\n",
        GO_BACK + " make 10 from " + "1" * 40 + "x\n",
        " " + "9" * 100_000 + " * " + "9" * 100_000 + " = 1, left 1.\n",
        " 999999999 * 999999999 = 1, left 4 1.\n" * 2000,
        "1 " * 50_000 + "\n",
        " 3 * 2 = 6, left " + "1 " * 50_000 + ".\n",
    ],
    ids=lambda r: r[:24].strip(),
)
def test_no_response_makes_the_verifier_slow(response):
    start = time.monotonic()
    assert not verify(PROBLEM, response, True).correct
    assert time.monotonic() - start < 2


# ---- Against reasoning-gym


def random_problems(n, seed=0, **rules):
    game = Game(**{"count": 4, "max_number": 12, "max_value": 100, "ops": "+-*/", **rules})
    rng = random.Random(seed)
    while n:
        numbers = tuple(rng.randint(1, game.max_number) for _ in range(game.count))
        ends = {t: paths for t, paths in countdown.reachable(numbers, game).items() if t not in numbers}
        if ends:
            n -= 1
            target = rng.choice(sorted(ends))
            problem = countdown.make_problem(numbers, target)
            yield problem, countdown.attempt_text(numbers, rng.choice(ends[target]), target), rng


def test_reasoning_gym_gives_full_marks_to_correct_expressions_only():
    gym = pytest.importorskip("reasoning_gym").create_dataset("countdown", size=1, seed=0)

    def score(expression, problem):
        return gym.score_answer(expression, {"metadata": problem.meta})

    for problem, response, rng in random_problems(40):
        verdict = verify(problem, response, True)
        assert verdict.correct and verdict.valid
        assert score(verdict.expression, problem) == 1.0
        # A number used twice: reasoning-gym gives fewer marks, and this verifier refuses the same first step.
        numbers = problem.meta["numbers"]
        twice, once = max(numbers), min(numbers)
        if numbers.count(twice) == 1:
            assert score(f"{verdict.expression} + {twice} - {twice}", problem) < 1
            left = [n for n in numbers if n not in (twice, once)] + [2 * twice]
            lie = f" {twice} + {twice} = {2 * twice}, left {' '.join(map(str, left))}.\n"
            assert judge(lie + response, problem) == NOTHING
        # Another target: the same expression and the same response are wrong.
        other = countdown.make_problem(tuple(numbers), problem.meta["target"] + rng.choice([-1, 1, 2]))
        assert score(verdict.expression, other) < 1
        assert judge(response, other) == NOTHING


def test_expression_after_backtracks_is_that_of_the_last_branch():
    gym = pytest.importorskip("reasoning_gym").create_dataset("countdown", size=1, seed=0)
    for problem, response, rng in random_problems(20, seed=1, count=3):
        numbers, target = tuple(problem.meta["numbers"]), problem.meta["target"]
        game = Game(count=3, max_value=100, ops="+-*/")
        paths = countdown.reachable(numbers, game)
        wrong = rng.choice([t for t in paths if t != target])
        first = countdown.attempt_text(numbers, rng.choice(paths[wrong]), target)
        again = DOUBT + UNSURE + RESTART + countdown.restate(numbers, target)
        verdict = verify(problem, first + again + response, True)
        assert verdict.correct and verdict.valid and verdict.backtracks == 1
        assert gym.score_answer(verdict.expression, {"metadata": problem.meta}) == 1.0


# ---- Against an independent replay, under fuzz


def next_lines(numbers, target):
    """All lines that may follow a state, with the next state of each line (None: the end)."""
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        results = {"+": a + b, "-": a - b, "*": a * b} | ({"/": a // b} if b and a % b == 0 else {})
        for op, result in results.items():
            if rest:
                for left in itertools.permutations([*rest, result]):
                    yield f" {a} {op} {b} = {result}, left {' '.join(map(str, left))}.\n", tuple(sorted(left))
            else:
                yield f" {a} {op} {b} = {result}" + (HIT if result == target else MISS), None


def replay(problem, response):
    """(correct, valid), by membership in the set of all allowed lines. The replay reads no line."""
    root, target = tuple(sorted(problem.meta["numbers"])), problem.meta["target"]
    reached, at, correct, valid = {root}, root, False, True
    *whole, last = response.split("\n")
    for line in [line + "\n" for line in whole] + ([last] if last else []):
        if line in (DOUBT, UNSURE, CORRECT):
            continue
        restated = [
            (f"{phrase} make {target} from {' '.join(map(str, order))}.\n", state)
            for phrase, states in ((GO_BACK, reached), (RESTART, {root}))
            for state in states
            for order in itertools.permutations(state)
        ]
        allowed = dict(restated) | dict(next_lines(at, target) if at else ())
        correct = at is not None and line in allowed and line not in dict(restated) and line.endswith(HIT)
        valid &= line in allowed
        at = allowed.get(line)
        reached |= {at} if at else set()
    return correct, valid


def mutate(response, rng):
    """Change one character, one number, or the order of lines."""
    lines = response.splitlines(keepends=True)
    kind = rng.randrange(7)
    if kind == 0:  # another character
        at = rng.randrange(len(response))
        return response[:at] + rng.choice("0123456789 +-*/=,.\n") + response[at + 1 :]
    if kind == 1:  # one character more or less
        at = rng.randrange(len(response))
        return response[:at] + rng.choice(["", response[at] * 2])[: 2 * rng.randrange(2)] + response[at + 1 :]
    if kind == 2:
        lines.pop(rng.randrange(len(lines)))
    elif kind == 3:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    elif kind == 4:
        rng.shuffle(lines)
    elif kind == 5:  # another number
        words = response.split(" ")
        at = rng.choice([i for i, w in enumerate(words) if w.isdigit()])
        words[at] = str(int(words[at]) + rng.choice([-2, -1, 1, 2, 10]))
        return " ".join(words)
    else:
        lines.insert(rng.randrange(len(lines)), rng.choice([DOUBT, CORRECT, GO_BACK + "\n", " 1 + 1 = 2\n"]))
    return "".join(lines)


def test_fuzzed_responses_are_judged_like_an_independent_replay():
    game = Game(count=3, max_value=100, ops="+-*/")
    seen = {True: 0, False: 0}
    for problem, response, rng in random_problems(60, seed=2, count=3):
        numbers, target = tuple(problem.meta["numbers"]), problem.meta["target"]
        paths = countdown.reachable(numbers, game)
        first = countdown.attempt_text(numbers, rng.choice(paths[rng.choice(sorted(paths))]), target)
        response = first + BACK + countdown.restate(numbers, target) + response
        assert replay(problem, response) == (True, True) == judge(response, problem)[:2]
        for _ in range(25):
            mutant = mutate(response, rng)
            correct, valid, _ = judge(mutant, problem)
            assert (correct, valid) == replay(problem, mutant), mutant
            seen[correct] += 1
    assert min(seen.values()) > 100  # both verdicts occur often
