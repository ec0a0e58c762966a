"""The corpus that a base model learns Countdown's rules from. The corpus holds no search."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator

from astro_jax.countdown.game import Game, Move, Numbers, after, moves, multisets, reachable, targets
from astro_jax.countdown.language import attempt_text, prompt, restate


def corpus(
    game: Game, seed: int, solved: float, drills: float, recall: float, whole: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield endless (prompt, response) pairs that teach arithmetic and format.

    Problems have 2 to game.count numbers. Held-out multisets never appear.

    Args:
      drills: the share of documents that are one equation, such as " 6 * 3 = 18.\\n".
      recall: the share of documents that restate a state after other lines. They teach to copy from earlier text.
      solved: the share of solutions among the other documents. The rest are random valid attempts with their verdict.
      whole: let every attempt begin at a problem of game.count numbers. Otherwise some begin at a state after a step.
    """
    rng = random.Random(f"corpus/{seed}")
    while True:
        kind = rng.random()
        numbers, target = _random_problem(game, rng, whole and kind >= drills + recall)
        if kind < drills:
            yield "", _equation(numbers, game, rng)
        elif kind < drills + recall:
            yield "", _recall(numbers, target, game, rng)
        elif rng.random() < solved:
            path = rng.choice(reachable(numbers, game)[target])
            yield prompt(numbers, target), attempt_text(numbers, path, target, game.last_two)
        else:
            yield (
                prompt(numbers, target),
                attempt_text(numbers, _random_attempt(numbers, game, rng), target, game.last_two),
            )


def _equation(numbers: Numbers, game: Game, rng: random.Random) -> str:
    move = rng.choice(moves(numbers, game))
    return f" {move.a} {move.op} {move.b} = {move.result}.\n"


def _recall(numbers: Numbers, target: int, game: Game, rng: random.Random) -> str:
    """Write a problem and then, up to three times, other lines and a restated state.

    The restated state is the problem's or, after the document's only attempt, an inner state of the attempt.
    The document does not begin like a prompt, because a prompt must always be followed by an attempt.
    """
    text = restate(numbers, target)
    states: list[Numbers] = []
    for _ in range(rng.randint(1, 3)):
        if not states and rng.random() < 0.6:
            path = _random_attempt(numbers, game, rng)
            text += attempt_text(numbers, path, target, game.last_two)
            make_move = functools.partial(after, last_two=game.last_two)
            states = list(itertools.accumulate(path[:-1], make_move, initial=numbers))
        else:
            text += "".join(_equation(_random_problem(game, rng)[0], game, rng) for _ in range(rng.randrange(4)))
        text += restate(rng.choice(states or [numbers]), target)
    return text


def _random_problem(game: Game, rng: random.Random, whole: bool = False) -> tuple[Numbers, int]:
    """Draw a problem of the training side, or unless `whole` a later state of such a problem."""
    numbers: Numbers = ()
    while not targets(numbers, game):
        numbers = tuple(rng.sample(rng.choice(multisets(game, False)), game.count))
    while len(numbers) > 2 and rng.random() < (0.0 if whole else 0.3):
        numbers = after(numbers, rng.choice(_finishable(numbers, game)), game.last_two)
    return numbers, rng.choice(sorted(targets(numbers, game)))


def _random_attempt(numbers: Numbers, game: Game, rng: random.Random) -> tuple[Move, ...]:
    path: tuple[Move, ...] = ()
    while len(numbers) > 1:
        move = rng.choice(_finishable(numbers, game))
        path, numbers = (*path, move), after(numbers, move, game.last_two)
    return path


def _finishable(numbers: Numbers, game: Game) -> list[Move]:
    """List the moves that lead to no dead end, such as two large numbers whose sum exceeds max_value."""
    return [move for move in moves(numbers, game) if targets(after(numbers, move, game.last_two), game)]
