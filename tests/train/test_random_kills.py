"""SFT and GRPO in processes that SIGKILL and SIGTERM end at random moments, against a run that nothing disturbs.

ASTRO_TEST_KILLS=30 raises the number of kills. More than two are spread over runs with 1 and with 4 updates a batch.
"""

import functools
import json
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest
import recorded_training
import yaml
from forked_cli import AstroProcess
from grpo_fixtures import read_lines
from helpers import assert_trees_equal, countdown_tokenizer, tiny_config, tiny_params
from micro_run import MICRO, files

from astro_jax import llama
from astro_jax.llama import checkpoint

KILLS = int(os.environ.get("ASTRO_TEST_KILLS", 2))
UPDATES = [1, 4] if KILLS > 2 else [4]  # optimizer steps a batch of rollouts
KILLS_OF_A_RUN = 4  # at most
EPOCHS = 2
RULE = {"metric": "max_tokens", "above": 99, "action": "rollback"}
CONFIG = {
    "stages": ["base", "sft", "grpo"],
    "problems": MICRO["problems"] | {"rl": 12, "max_number": 6},
    "sampler": MICRO["sampler"],
    "sft": dict(batch_size=2, max_length=48, num_train_epochs=EPOCHS, learning_rate=0.003, save_steps=3),
    "grpo": dict(max_steps=EPOCHS * 12 // 4, prompts_per_step=4, num_generations=4, max_completion_length=16,
                 max_length=64, learning_rate=0.003, save_steps=2, guard={"rules": [RULE]}),
}  # fmt: skip


def write_config(folder, updates):
    """Write a model, examples and a config with `updates` optimizer steps a batch of rollouts."""
    tokenizer = countdown_tokenizer(25)
    config = tiny_config(vocab_size=len(tokenizer))
    llama.save(folder / "model", config, tiny_params(config), tokenizer)
    examples = [{"prompt": f"Let us make {i} from 1 {i}.\n", "response": f" {i} * 1 = {i}.\n" * (i % 3 + 1)}
                for i in range(2, 23)]  # fmt: skip
    (folder / "examples.json").write_text(json.dumps(examples))
    paths = {"model": str(folder / "model"), "examples": str(folder / "examples.json")}
    grpo = CONFIG["grpo"] | {"steps_per_generation": updates}
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG | paths | {"grpo": grpo}))


def start(folder, out):
    prepare = functools.partial(recorded_training.prepare, str(out.with_suffix(".steps")))
    return AstroProcess(["run", str(folder / "run.yaml"), f"out={out}"], out.with_suffix(".log"), prepare)


def num_steps(out):
    """Return how many steps have run so far, those that ran again too."""
    path = out.with_suffix(".steps")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def train(folder, out):
    """Train to the end."""
    code, output = start(folder, out).wait()
    assert code == 0, output


def train_with_kills(folder, out, most, total, rng):
    """Train to the end, with at most `most` kills at random moments.

    Args:
      total: steps of a run without kills.

    Returns:
      the signals that have ended a process.
    """
    signals = []
    for number in rng.choice([signal.SIGKILL, signal.SIGTERM], most):
        process, goal = start(folder, out), num_steps(out) + rng.integers(2 * total // (most + 1))
        while process.is_alive and num_steps(out) < goal:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if process.is_alive:
            process.send_signal(number)
        code, output = process.wait()
        assert code in (0, -number, 128 + number), output
        if code == 0:
            return signals
        signals.append(int(number))
    train(folder, out)
    return signals


def examples_of_steps(out):
    """Return the examples of each step of a stage that has counted: of those that ran again, the last."""
    return {(r["stage"], r["step"]): r["examples"] for r in read_lines(out.with_suffix(".steps"))}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("updates", UPDATES)
def test_training_after_random_kills_is_bitwise_equal(updates, tmp_path):
    """Two epochs, shuffled, and a guard that rolls back once. No example is skipped or repeated."""
    write_config(tmp_path, updates)
    expected, rng, signals = tmp_path / "expected", np.random.default_rng(updates), []
    train(tmp_path, expected)
    steps = examples_of_steps(expected)
    orders = [[name for key, names in steps.items() if key[0] == stage for name in names] for stage in ("sft", "grpo")]
    for order, n in zip(orders, (21, 12), strict=True):
        assert set(Counter(order).values()) == {EPOCHS} and len(order) == EPOCHS * n
        assert order[:n] != order[n:] and order[:n] != sorted(order[:n])  # shuffled, anew in each epoch
    assert len(read_lines(expected / "grpo" / "guard.jsonl")) == 1
    kills = KILLS // len(UPDATES)
    while len(signals) < kills:
        out = tmp_path / f"killed-{len(signals)}"
        most = min(KILLS_OF_A_RUN, kills - len(signals))
        signals += train_with_kills(tmp_path, out, most, len(steps), rng)
        assert examples_of_steps(out) == steps
        for name in ("metrics.jsonl", "guard.jsonl", "rollouts.jsonl"):
            paths = {path: p.read_bytes() for path, p in files(out).items() if p.name == name}
            assert paths == {path: p.read_bytes() for path, p in files(expected).items() if p.name == name}
        for stage in ("sft", "grpo"):
            a, b = (checkpoint.load(folder / stage / "model")[1] for folder in (out, expected))
            assert_trees_equal(a, b)
    print(f"{updates} updates a batch: {dict(Counter(signals))} kills by signal")
