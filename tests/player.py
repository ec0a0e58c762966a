"""A sampler without a model that plays Countdown at random. Each draw is named by its request, as in the real sampler.

Other processes can import this module: `search_problems` is a whole search with such a sampler.
"""

import contextlib
import hashlib
import math
import os
import random
import signal
import time
import unittest.mock

import numpy as np
from etils import epath
from helpers import countdown_tokenizer, tiny_config

from astro_jax import config as cfg
from astro_jax import countdown, storage
from astro_jax.countdown import Game
from astro_jax.policy import Policy
from astro_jax.sampler import Completion, EngineStats
from astro_jax.search import run as searching
from astro_jax.verify import Verifier

TOKENIZER = countdown_tokenizer(99)
EOS = TOKENIZER.eos_token_id
SMALL_SEARCH = {"num_proposals": 4, "num_rollouts": 3, "num_simulations": 8, "max_concurrent_trees": 2, "shard_size": 2}


def completion(text, probability=1.0, ended=False, stopped=True):
    """A Completion of a text. Its probability is spread evenly over its tokens."""
    tokens = TOKENIZER.encode(text) + [EOS] * ended
    logprobs = np.full(len(tokens), math.log(probability) / len(tokens), np.float32)
    return Completion(np.asarray(tokens, np.int32), logprobs, logprobs, "stop" if stopped else "length")


class Player:
    """An engine that writes mostly true steps, some errors, and some steps without an end.

    Args:
      seconds: the time that each call takes besides.

    Attributes:
      problem_ids: the problem of each request, in order.
      problems_per_call: the number of different problems in each call.
    """

    new_prefix_cache = staticmethod(lambda: None)

    def __init__(self, max_positions=1024, seconds=0.0):
        self.config, self.seconds = tiny_config(max_positions=max_positions), seconds
        self.problem_ids, self.problems_per_call, self.stats = [], [], EngineStats()

    def generate(
        self, params, requests, sampling, *, prefix_cache=None, stop_fn=None, progress=None, on_completion=None
    ):
        time.sleep(self.seconds)
        self.problem_ids.extend(r.request_id[1] for r in requests)
        self.problems_per_call.append(len({r.request_id[1] for r in requests}))
        assert all(len(r.prompt_token_ids) + sampling.max_tokens <= self.config.max_positions for r in requests)
        to_the_end = tuple(sampling.stop_token_ids) == (EOS,)
        completions = [[self.one(r, j, to_the_end) for j in range(r.n)] for r in requests]
        lengths = [len(c.token_ids) for group in completions for c in group]
        self.stats.tokens += sum(lengths)
        self.stats.row_steps += 2 * sum(lengths)
        return completions

    def one(self, request, j, to_the_end):
        seed = hashlib.sha256(repr((request.request_id, j)).encode()).hexdigest()
        rng = random.Random(seed)
        lines = TOKENIZER.decode(request.prompt_token_ids).splitlines()
        _, _, _, target, _, *numbers = lines[0].removesuffix(".").split()
        numbers = tuple(map(int, numbers)) if len(lines) == 1 else countdown.numbers_left(lines[-1])
        text = ""
        while len(numbers) > 1:
            moves = countdown.moves(numbers, Game(max_value=90))
            if rng.random() < 0.1 or not moves:
                return completion(text + " 1 = 2.\n" * 3, rng.random(), stopped=False)
            move = rng.choice(moves)
            text += countdown.step_text(numbers, move, int(target))
            numbers = countdown.after(numbers, move)
            if not to_the_end:
                return completion(text, rng.random(), ended=len(numbers) == 1)
        return completion(text, rng.random(), ended=True)


def policy(engine=None):
    return engine if isinstance(engine, Policy) else Policy(engine or Player(), None, TOKENIZER)


def problems(n, count=3):
    return countdown.problems(Game(count=count, max_number=12, max_value=60), n, 0, held_out=False)


def search_problems(
    folder, problems_or_count, changes=None, shard=(0, 1), digest="mine", engine=None, save_seconds=0.0,
    save_share=math.inf,
):  # fmt: skip
    """Search some problems, or the first so many, into a folder. Active trees are saved after each step.

    Returns:
      the counts of the search.
    """
    c = cfg.Search(**SMALL_SEARCH | (changes or {}))
    chosen = problems(problems_or_count) if isinstance(problems_or_count, int) else problems_or_count
    with unittest.mock.patch.multiple(searching, SAVE_SECONDS=save_seconds, SAVE_SHARE=save_share):
        return searching.run(epath.Path(folder), chosen, c, policy(engine), Verifier(), digest, shard)


def search_until_killed(folder, n, changes, write, late):
    """Search in a process of its own, and end it by SIGKILL in its `write`-th write of a file.

    Args:
      late: whether the kill comes when the whole file is written. Otherwise half of the file is written.
    """
    open_whole = storage.writer

    @contextlib.contextmanager
    def writer(path, is_work=True):
        nonlocal write
        write -= 1
        due = not write
        with open_whole(path, is_work) as file:
            yield file
            if due and not late:
                size = file.tell()
                file.truncate(size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)

    storage.writer = writer
    search_problems(folder, n, changes)


def search_slowly(folder, n, changes, shard):
    """Search in one of several processes that are to work at the same time: a call of the sampler takes 10 ms."""
    search_problems(folder, n, changes, shard, engine=Player(seconds=0.01))
