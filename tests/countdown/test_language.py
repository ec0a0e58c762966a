"""How Countdown's states and steps are written and read."""

from astro_jax import countdown, phrases
from astro_jax.countdown import HIT, MISS, Move


def test_states_and_steps_are_written_and_read():
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
    assert countdown.numbers_left(" 3 - 5 = -2, left 4 -2.\n") == (4, -2)
    assert countdown.numbers_left(" 7 + 3 = 10, left two.\n") == countdown.numbers_left(phrases.DOUBT) == ()
    assert countdown.numbers_left(" 10 * 2 = 20" + HIT) == countdown.numbers_left(" 10 * 2 = 20" + MISS) == ()
