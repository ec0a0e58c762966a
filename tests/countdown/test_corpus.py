"""The corpus of Countdown: true arithmetic, the asked shares, no held-out numbers and no backtracks."""

import itertools

import pytest
from brute_force import OPERATORS

from astro_jax import countdown, phrases
from astro_jax.countdown import HIT, MISS, Game
from astro_jax.verify import verify

GAMES = [
    Game(count=3, max_number=12, max_value=40, ops="+-*"),
    Game(count=3, max_number=12, max_value=60, ops="+-*/"),
    Game(count=4, max_number=8, max_value=30, ops="+-*/"),
]
SMALL = Game(count=3, max_number=8, max_value=30, ops="+-*/")


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
            assert OPERATORS[op](int(a), int(b)) == int(result)
            continue
        numbers, target = stated(prompt)
        lengths.add(len(numbers))
        assert tuple(sorted(numbers)) not in held_out
        verdict = verify(countdown.make_problem(numbers, target), response, True)
        assert verdict.valid and verdict.correct == (verdict.answer == str(target)) == (HIT in response)
    assert lengths == set(range(2, game.count + 1))


def test_solutions_and_drills_have_the_given_shares():
    documents = corpus(SMALL, 2000, solved=1.0, drills=0.25)
    attempts = [response for prompt, response in documents if prompt]
    assert abs(len(attempts) / 2000 - 0.75) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert all(response.endswith(HIT) for response in attempts)
    assert any(response.endswith(MISS) for _, response in corpus(SMALL, 50, solved=0.0))
    assert corpus(SMALL, 50) == corpus(SMALL, 50) != corpus(SMALL, 50, seed=1)


def test_attempts_begin_at_whole_problems_where_asked():
    pairs = itertools.islice(countdown.corpus(SMALL, 0, 0.3, 0.5, 0.0, whole=True), 300)
    prompts = [prompt for prompt, _ in pairs if prompt]
    assert len(prompts) > 100 and all(len(stated(prompt)[0]) == 3 for prompt in prompts)


def test_recall_restates_known_states_word_for_word_and_has_one_attempt():
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
            if ", left " in line:  # a step of the attempt, whose state may be restated after the attempt
                assert i < attempts[0]
                known.add(countdown.restate(countdown.numbers_left(line), target))
            assert " = " in line or line in known
        assert last in known
        inner += last != first
    assert inner > 40


def test_a_prompt_in_the_corpus_is_always_followed_by_an_attempt():
    # When recall began like a prompt, half of the base model's answers restated the problem.
    for prompt, response in corpus(SMALL, 500, recall=0.5):
        assert not response.startswith("Let us") and prompt.startswith("Let us") == bool(prompt)


def test_the_corpus_skips_states_without_a_move():
    # 9 + 9 is above the largest value, so (9, 9) is a dead end, and so is what 5 + 4 makes of (4, 5, 9).
    for count in (2, 3):
        game = Game(count=count, max_number=9, max_value=9 if count == 2 else 12, ops="+-")
        for prompt, response in corpus(game, 2000):
            assert not prompt or response.endswith((HIT, MISS))
