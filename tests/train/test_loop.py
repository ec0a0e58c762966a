"""The training loop: stopped anywhere and started again, it ends bitwise the same."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import assert_trees_equal, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax.train import loop, sft, state
from astro_jax.train.data import batches, document

CONFIG = tiny_config(n_layers=1)
C = cfg.Sft(learning_rate=0.01, batch_size=2, max_length=16)
STEPS = 7
DOCUMENTS = [document(np.random.default_rng(i).integers(1, 20, 3 + i % 9).tolist(), 16) for i in range(12)]
TX = state.make_optimizer(C, STEPS)
LIKE = state.abstract_state(CONFIG, TX, one_device_train())


class Killed(Exception):
    pass


@functools.cache
def make_step():
    return state.make_step(sft.make_loss(C, CONFIG, one_device_train()), TX, CONFIG, one_device_train())


def run(folder, steps=STEPS, save_every=3, kill_at=None):
    """(the final state, the steps that were made, the tokens they saw)"""
    data = batches(DOCUMENTS, C.batch, C.length, seed=5)
    made, seen = [], []

    def advance(at, i):
        if i == kill_at:
            raise Killed
        batch = next(data)
        made.append(i)
        seen.append(np.array(batch.tokens))
        return make_step()(at, batch)

    start = state.place(state.new_state(jax.tree.map(jnp.array, tiny_params(CONFIG)), TX), LIKE)
    try:
        at = loop.run(epath.Path(folder), "test", start, LIKE, advance, steps, save_every, data=data)
    finally:
        data.close()
    return at, made, seen


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: (folder, state, tokens)."""
    folder = tmp_path_factory.mktemp("straight")
    at, made, seen = run(folder)
    assert made == list(range(STEPS))
    return folder, at, seen


def say(folder):
    return (folder / "metrics.jsonl").read_text()


def test_the_log_has_a_line_a_step(straight):
    folder, at, _ = straight
    records = [json.loads(line) for line in say(folder).splitlines()]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1)) and at.step == STEPS
    assert all(r.keys() == {"step", "loss", "grad_norm", "lr"} and np.isfinite(r["loss"]) for r in records)


# Saved after steps 3, 6 and 7. A kill before step 3 starts again from nothing, one at 3 exactly loses nothing.
@pytest.mark.parametrize("kill_at, goes_on_from", [(2, 0), (3, 3), (5, 3), (6, 6)])
def test_a_killed_run_ends_bitwise_the_same(kill_at, goes_on_from, straight, tmp_path):
    folder, expected, seen = straight
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    at, made, seen_again = run(tmp_path)
    assert made == list(range(goes_on_from, STEPS))
    np.testing.assert_array_equal(seen_again, seen[goes_on_from:])  # no data is skipped or seen twice
    assert_trees_equal(at, expected)
    assert say(tmp_path) == say(folder)


def test_a_run_of_fewer_steps_goes_on(straight, tmp_path):
    folder, expected, _ = straight
    run(tmp_path, steps=2)
    at, made, _ = run(tmp_path)
    assert made == [2, 3, 4, 5, 6] and say(tmp_path) == say(folder)
    assert_trees_equal(at, expected)


def test_a_finished_run_does_nothing_and_gives_its_state(straight):
    folder, expected, _ = straight
    before = say(folder)
    at, made, _ = run(folder)
    assert made == [] and say(folder) == before
    assert_trees_equal(at, expected)


def test_a_torn_line_and_lines_after_the_checkpoint_are_written_again(straight, tmp_path):
    folder, _, _ = straight
    with pytest.raises(Killed):
        run(tmp_path, kill_at=6)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 7, "loss": 99.0, "grad_norm": 1.0, "lr": 1.0}\n{"step": 8, "lo')
    run(tmp_path)
    assert say(tmp_path) == say(folder)


def test_only_the_last_checkpoint_is_kept(straight):
    folder, _, _ = straight
    assert [p.name for p in (folder / "checkpoints").iterdir() if p.is_dir()] == [str(STEPS)]
