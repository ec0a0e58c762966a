"""An engine whose completions are scripted: random, but named by the request, so that a test can recompute them."""

import zlib

import numpy as np
from helpers import countdown_tokenizer

from astro_jax import config as cfg
from astro_jax import countdown
from astro_jax.countdown import MISS, Game
from astro_jax.policy import Policy
from astro_jax.sampler import Completion

TOKENIZER = countdown_tokenizer(60)
GAME = Game(count=2, max_number=9, max_value=60)
PROBLEMS = countdown.problems(GAME, 10, 0, held_out=True)
EVAL = cfg.Eval(max_tokens=21, shard_size=4)
RESTART = " Let's restart our solution from the beginning, and"
KINDS = ("right", "wrong", "false", "truncated", "backtrack")


def answer(problem, kind):
    """A response to a problem of two numbers, and whether the end token stopped it."""
    numbers, target = tuple(problem.meta["numbers"]), problem.meta["target"]
    (right, *_), wrong = countdown.reachable(numbers, GAME)[target], max(numbers) + min(numbers) + 1
    solution = countdown.attempt_text(numbers, right, target)
    other = next(m for m in countdown.moves(numbers, GAME) if m.result != target)
    miss = countdown.step_text(numbers, other, target)
    return {
        "right": (solution, True),
        "wrong": (miss, True),
        "false": (f" {numbers[0]} + {numbers[1]} = {wrong}{MISS}", True),
        "truncated": (solution, False),
        "backtrack": (miss + RESTART + countdown.restate(numbers, target) + solution, True),
    }[kind]


def kind(request_id, sample, temperature):
    """The kind of answer of one sample of a request."""
    return KINDS[zlib.crc32(repr((request_id, sample, temperature)).encode()) % len(KINDS)]


class Scripted:
    """An engine that answers PROBLEMS.

    Attributes:
      problem_ids: the problems of all requests so far.
    """

    def __init__(self):
        self.problem_ids = []

    def generate(
        self, params, requests, sampling, *, prefix_cache=None, stop_fn=None, progress=None, on_completion=None
    ):
        assert sampling.max_tokens == EVAL.max_tokens and sampling.stop_token_ids == (TOKENIZER.eos_token_id,)
        self.problem_ids += [r.request_id[-1] for r in requests]
        by_prompt = {p.prompt: p for p in PROBLEMS}
        prompts = [TOKENIZER.decode(r.prompt_token_ids) for r in requests]
        return [
            [completion(*answer(by_prompt[prompt], kind(r.request_id, j, sampling.temperature))) for j in range(r.n)]
            for r, prompt in zip(requests, prompts, strict=True)
        ]


def completion(text, stopped, tokenizer=TOKENIZER):
    """The completion that holds a text, with log-probabilities of 0."""
    ids = np.asarray(tokenizer.encode_after(text) + [tokenizer.eos_token_id] * stopped, np.int32)
    return Completion(ids, *2 * [np.zeros(len(ids), np.float32)], "stop" if stopped else "length")


def policy(engine=None):
    """A policy of the scripted engine."""
    return Policy(engine or Scripted(), None, TOKENIZER)
