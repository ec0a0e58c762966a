"""A tiny model, engines for it, and requests, for the tests of the engine."""

import functools
import itertools

import jax
import numpy as np
from helpers import one_device, tiny_config, tiny_params

from astro_jax.sampler import Engine, Request, SamplingParams

CONFIG = tiny_config(max_positions=96)
PARAMS = tiny_params(CONFIG)
SEED, STOP = 11, (12,)
FLOAT32 = np.dtype("float32")
uniform = jax.jit(lambda key, position: jax.random.uniform(jax.random.fold_in(key, position)))


def sampling(max_tokens=40, stop_token_ids=STOP, **settings):
    return SamplingParams(max_tokens, stop_token_ids=stop_token_ids, **settings)


def engine(
    max_num_seqs=8,
    sharding=None,
    seed=SEED,
    num_scheduler_steps=4,
    block_size=8,
    config=CONFIG,
    reserve=True,
    **options,
):
    """An engine; with `reserve` all engines have caches of the same length, so that tests share compiled programs."""
    sizes = dict(max_num_seqs=max_num_seqs, num_scheduler_steps=num_scheduler_steps, block_size=block_size)
    made = Engine(config, sharding or one_device(), seed, **sizes, **options)
    if reserve:
        made.reserve(prompt=33, new=40)
    return made


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(1, 20, n).tolist()) for n in lengths]


def make_requests(*lengths, n=2):
    return [Request(prompt, n, ("test", i)) for i, prompt in enumerate(prompts(*lengths))]


REQUESTS = make_requests(1, 3, 3, 17, 8, n=3)


@functools.cache
def expected():
    """The completions of REQUESTS by the default engine."""
    return engine().generate(PARAMS, REQUESTS, sampling())


def as_lists(completions):
    return [[(c.token_ids.tolist(), c.stopped) for c in group] for group in completions]


def assert_same(completions, others, atol=1e-5):
    assert as_lists(completions) == as_lists(others)
    for a, b in zip(itertools.chain(*completions), itertools.chain(*others), strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=atol)
