"""A floor on backtracks while sampling: answers that would end too early are made to go back (`eval.min_backtracks`).

When an answer ends with fewer backtracks, its end token is dropped, the words of a restart are written in the model's
place, and the model samples on from there. Example with at least 1 backtrack, the forced words in brackets:

    7 * 4 = 28, which misses the target!
    [But wait, are we solving the problem correctly so far? Hmm...
    I'm not sure if we're solving the problem correctly so far.
    Let's restart our solution from the beginning, and] make 3 from 4 7.
    7 - 4 = 3, which is the target!

Which answers are forced depends on their number of backtracks alone, never on a verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from astro_jax import attempts, phrases
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.sampler import Completion, Request, SamplingParams

# The words before a restart in a trace, doubts included, up to where the model writes what it restarts with. They hold
# for every problem: each has a beginning. "Let's go back to where we" needs an earlier step, which an answer may lack.
WORDS = phrases.DOUBT + phrases.UNSURE + phrases.RESTART


class SampledText(NamedTuple):
    """One answer, with what was forced in it.

    Attributes:
      token_ids: sampled and forced tokens in their order, with the end token that ended the answer.
      stopped: whether an end token ended the answer.
      forced: the places of the forced tokens in `token_ids`.
      forced_at: where each forced backtrack begins in the text, in characters.
    """

    token_ids: list[int]
    stopped: bool
    forced: list[int]
    forced_at: list[int]


def sample(
    policy: Policy,
    requests: Sequence[Request],
    sampling: SamplingParams,
    min_backtracks: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[SampledText]]:
    """Sample answers that go back at least `min_backtracks` times, where `sampling.max_tokens` allows it.

    Forced tokens and dropped end tokens do not count for `max_tokens`. An answer is forced at most `min_backtracks`
    times. The samples up to the first forced backtrack are those without a floor: the requests have the same names.

    Args:
      requests: prompts with a number of answers each.
      progress: called with the number of answers that have ended for the first time.

    Returns:
      for each request its answers, in order.

    Raises:
      RequestError: if a prompt leaves no space for `max_tokens` and the forced words (`most_forced_tokens`).
    """
    cache = policy.engine.new_prefix_cache() if min_backtracks else None
    groups = [
        [SampledText(c.token_ids.tolist(), c.stopped, [], []) for c in group]
        for group in policy.generate(requests, sampling, progress, cache)
    ]
    for round_ in range(1, min_backtracks + 1):
        begun = {
            (i, j): _go_back(answer, policy.tokenizer)
            for i, group in enumerate(groups)
            for j, answer in enumerate(group)
            if answer.stopped and _backtracks(answer, policy.tokenizer) < min_backtracks
        }
        if not begun:
            break
        left = [sampling.max_tokens - (len(a.token_ids) - len(a.forced)) for a in begun.values()]
        more = [
            Request((*requests[i].prompt_token_ids, *a.token_ids), 1, (*requests[i].request_id, j, round_), (n,))
            for ((i, j), a), n in zip(begun.items(), left, strict=True)
        ]
        limits = dataclasses.replace(sampling, max_tokens=max(left))
        for ((i, j), a), (c,) in zip(begun.items(), policy.generate(more, limits, None, cache), strict=True):
            groups[i][j] = _continue(a, c)
    return groups


def most_forced_tokens(tokenizer: Tokenizer, min_backtracks: int) -> int:
    """The most forced tokens of an answer."""
    return min_backtracks * len(tokenizer.encode_after("\n" + WORDS))


def _backtracks(answer: SampledText, tokenizer: Tokenizer) -> int:
    """The backtracks and restarts that leave an attempt, in any words, as the cap on backtracks counts them."""
    return len(attempts.ends(tokenizer.decode(answer.token_ids)))


def _go_back(answer: SampledText, tokenizer: Tokenizer) -> SampledText:
    """Replace the end token by the words of a restart, on a line of their own where the tokenizer can write it."""
    kept = answer.token_ids[:-1]
    text = tokenizer.decode(kept)
    words = tokenizer.encode_after("\n" + WORDS)
    if not text or text.endswith("\n") or tokenizer.decode(words) != "\n" + WORDS:  # Countdown has no lone line break
        words = tokenizer.encode_after(WORDS)
    forced = range(len(kept), len(kept) + len(words))
    return SampledText([*kept, *words], False, [*answer.forced, *forced], [*answer.forced_at, len(text)])


def _continue(answer: SampledText, more: Completion) -> SampledText:
    return answer._replace(token_ids=[*answer.token_ids, *more.token_ids.tolist()], stopped=more.stopped)
