"""The fixed phrases of self-reflection (paper, section 2.4). Each is one line of a trace, or the beginning of one.

The Countdown tokenizer gives each phrase a token, traces hold the phrases, and evaluation counts them. So the module
imports no other.
"""

DOUBT = " But wait, are we solving the problem correctly so far? Hmm...\n"
UNSURE = " I'm not sure if we're solving the problem correctly so far.\n"
GO_BACK = " Let's go back to where we"
RESTART = " Let's restart our solution from the beginning, and"
CORRECT = " Our solution seems to be correct so far.\n"

PHRASES = (DOUBT, UNSURE, GO_BACK, RESTART, CORRECT)
BACKTRACKS = (GO_BACK, RESTART)


def count_backtracks(response: str) -> int:
    """Count the backtracks of a response, by the fixed phrases."""
    return sum(response.count(phrase.strip()) for phrase in BACKTRACKS)
