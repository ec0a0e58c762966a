"""The fixed phrases of self-reflection (paper, section 2.4). Each stands on a line of its own.

The module imports nothing: the Countdown tokenizer gives each phrase a token, traces write them, evaluation counts them.
"""

DOUBT = " But wait, are we solving the problem correctly so far? Hmm...\n"
UNSURE = " I'm not sure if we're solving the problem correctly so far.\n"
GO_BACK = " Let's go back to where we"
RESTART = " Let's restart our solution from the beginning, and"
CORRECT = " Our solution seems to be correct so far.\n"

PHRASES = (DOUBT, UNSURE, GO_BACK, RESTART, CORRECT)
BACKTRACKS = (GO_BACK, RESTART)


def count_backtracks(response: str) -> int:
    """Count how often a response goes back, by the fixed phrases."""
    return sum(response.count(phrase.strip()) for phrase in BACKTRACKS)
