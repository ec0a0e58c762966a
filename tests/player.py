"""A sampler without a model that plays Countdown at random: every draw is named by its request, as in the real one.

It is also a module that other processes can load: `searched` is a whole search with it.
"""

import contextlib
import hashlib
import math
import os
import random
import signal
import time

import numpy as np
from etils import epath
from helpers import countdown_tokenizer, tiny_config

from astro_jax import config as cfg
from astro_jax import countdown, storage
from astro_jax.countdown import Game
from astro_jax.policy import Policy
from astro_jax.sampler import Completion
from astro_jax.sampler.run import EngineStats
from astro_jax.search import run as searching
from astro_jax.verify import Verifier

TOKENIZER = countdown_tokenizer(99)
EOS = TOKENIZER.eos_token_id


def sample(text, probability=1.0, ended=False, stopped=True):
    """A Completion of a text; its probability is spread evenly over its tokens."""
    tokens = TOKENIZER.encode(text) + [EOS] * ended
    logprobs = np.full(len(tokens), math.log(probability) / len(tokens), np.float32)
    return Completion(np.asarray(tokens, np.int32), logprobs, logprobs, stopped)


class Player:
    """Mostly true steps, some errors, some long ones.

    Args:
      seconds: that each call takes besides.
    """

    keeping = contextlib.nullcontext

    def __init__(self, max_positions=1024, seconds=0.0):
        self.config, self.seconds = tiny_config(max_positions=max_positions), seconds
        self.problems, self.flights, self.stats = [], [], EngineStats()

    def generate(self, params, requests, *, max_tokens, stop, temperature, progress=None):
        time.sleep(self.seconds)
        self.problems.extend(r.name[1] for r in requests)
        self.flights.append(len({r.name[1] for r in requests}))
        assert all(len(r.prefix) + max_tokens <= self.config.max_positions for r in requests)
        found = [[self.one(r, j, tuple(stop) == (EOS,)) for j in range(r.n)] for r in requests]
        lengths = [len(s.tokens) for each in found for s in each]
        self.stats.tokens += sum(lengths)
        self.stats.row_steps += 2 * sum(lengths)
        return found

    def one(self, request, j, to_the_end):
        seed = hashlib.sha256(repr((request.name, j)).encode()).hexdigest()
        rng = random.Random(seed)
        lines = TOKENIZER.decode(request.prefix).splitlines()
        _, _, _, target, _, *numbers = lines[0].removesuffix(".").split()
        numbers = tuple(map(int, numbers)) if len(lines) == 1 else countdown.numbers_left(lines[-1])
        text = ""
        while len(numbers) > 1:
            moves = countdown.moves(numbers, Game(max_value=90))
            if rng.random() < 0.1 or not moves:
                return sample(text + " 1 = 2.\n" * 3, rng.random(), stopped=False)
            move = rng.choice(moves)
            text += countdown.step_text(numbers, move, int(target))
            numbers = countdown.after(numbers, move)
            if not to_the_end:
                return sample(text, rng.random(), ended=len(numbers) == 1)
        return sample(text, rng.random(), ended=True)


def policy(player=None):
    return player if isinstance(player, Policy) else Policy(player or Player(), None, TOKENIZER)


def problems(n, count=3):
    return countdown.problems(Game(count=count, max_number=12, max_value=60), n, 0, held_out=False)


def searched(folder, asked, changes=None, part=(0, 1), digest="mine", player=None, save_seconds=0.0):
    """A search of some problems, or so many, into a folder, with a look at it saved each iteration: its counts."""
    c = cfg.Search(**{"proposals": 4, "rollouts": 3, "iterations": 8, "wave": 2} | (changes or {}))
    asked = problems(asked) if isinstance(asked, int) else asked
    before, searching.SAVE_SECONDS = searching.SAVE_SECONDS, save_seconds
    try:
        return searching.run(epath.Path(folder), asked, c, policy(player), Verifier(), digest, part)
    finally:
        searching.SAVE_SECONDS = before


def killed(folder, n, changes, write, late):
    """The same, for a process of its own, which SIGKILL ends in its `write`-th write of a file: when half of it is
    there, or late, when all of it is."""
    whole = storage.write_text

    def write_text(path, text):
        nonlocal write
        write -= 1
        if not write:
            whole(path, text) if late else (path.parent / f"{path.name}.part").write_text(text[: len(text) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, text)

    storage.write_text = write_text
    searched(folder, n, changes)


def slowly(folder, n, changes, part):
    """The same, for processes that are to work at the same time: a call of the sampler takes 10 ms."""
    searched(folder, n, changes, part, player=Player(seconds=0.01))
