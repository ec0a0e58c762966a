"""Training in a process that records the examples of each step, for tests that kill the process."""

import functools
import json
import os
import zlib

from astro_jax.train.grpo import GRPOTrainer
from astro_jax.train.sft import SFTTrainer
from astro_jax.types import Verdict
from astro_jax.verify import tasks


def prepare(log):
    """Change the trainers of this process.

    Each step appends {"stage", "step", "examples"} to the file `log`. A hash of the response decides whether it is
    correct: random parameters then get different rewards. `max_tokens` of step 5 of GRPO is 100 until the guard has
    rolled back.
    """
    tasks.VERIFIERS = dict(tasks.VERIFIERS, countdown=tasks.LocalVerifier(_judge))
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stage, trainer in (("sft", SFTTrainer), ("grpo", GRPOTrainer)):
        trainer.examples = _recorded(trainer.examples, fd, stage)
    step = GRPOTrainer.step

    def long_step(trainer, state, i):
        state, metrics = step(trainer, state, i)
        return state, metrics | ({"max_tokens": 100.0} if i == 4 and not trainer.guard.rollbacks else {})

    GRPOTrainer.step = long_step


def _judge(problem, text, stopped):
    return Verdict(zlib.crc32(text.encode()) % 2 == 0, True, None, 0)


def _recorded(examples, fd, stage):
    @functools.wraps(examples)
    def record(trainer, i):
        names = examples(trainer, i)
        os.write(fd, (json.dumps({"stage": stage, "step": i, "examples": names}) + "\n").encode())
        return names

    return record
