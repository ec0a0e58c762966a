"""The training loop: stopped at any step and started again, it ends bitwise equal."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from event_file import read_scalars
from helpers import assert_trees_equal, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax.train import loop, sft, state
from astro_jax.train.data import batches, make_document

CONFIG = tiny_config(n_layers=1)
C = cfg.Sft(learning_rate=0.01, batch_size=2, max_length=16)
STEPS = 7
DOCUMENTS = [make_document(np.random.default_rng(i).integers(1, 20, 3 + i % 9).tolist(), 16) for i in range(12)]
TX = state.make_optimizer(C, STEPS)
ABSTRACT = state.abstract_state(CONFIG, TX, one_device_train())


class Killed(Exception):
    pass


@functools.cache
def compiled_step():
    return state.make_step(sft.make_loss(C, CONFIG, one_device_train()), TX, CONFIG, one_device_train())


def run(folder, max_steps=STEPS, save_steps=3, kill_at=None):
    """(the final state, the steps that ran, the tokens of each)"""
    iterator = batches(DOCUMENTS, C.batch_size, C.max_length, seed=5)
    steps, tokens = [], []

    def step_fn(train_state, i):
        if i == kill_at:
            raise Killed
        batch = next(iterator)
        steps.append(i)
        tokens.append(np.array(batch.tokens))
        return compiled_step()(train_state, batch)

    initial = state.place(state.new_state(jax.tree.map(jnp.array, tiny_params(CONFIG)), TX), ABSTRACT)
    try:
        final = loop.run(epath.Path(folder), "test", initial, ABSTRACT, step_fn, max_steps, save_steps, iterator)
    finally:
        iterator.close()
    return final, steps, tokens


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(folder, final state, tokens of each step)"""
    folder = tmp_path_factory.mktemp("uninterrupted")
    final, steps, tokens = run(folder)
    assert steps == list(range(STEPS))
    return folder, final, tokens


def read_metrics(folder):
    return (folder / "metrics.jsonl").read_text()


def test_metrics_have_one_line_a_step(uninterrupted):
    folder, final, _ = uninterrupted
    records = [json.loads(line) for line in read_metrics(folder).splitlines()]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1)) and final.step == STEPS
    assert all(r.keys() == {"step", "loss", "grad_norm", "learning_rate"} and np.isfinite(r["loss"]) for r in records)


def assert_event_file_equals_metrics(folder):
    records = [json.loads(line) for line in read_metrics(folder).splitlines()]
    rows = [{"step": step} | values for step, values in read_scalars(folder / "tensorboard")]
    assert rows == [{k: v if k == "step" else float(np.float32(v)) for k, v in r.items()} for r in records]


# Saved after steps 3, 6 and 7. Killed before step 3, a run starts from nothing; killed at step 3, it loses nothing.
@pytest.mark.parametrize("kill_at, resumes_from", [(2, 0), (3, 3), (5, 3)])
def test_killed_run_ends_bitwise_equal(kill_at, resumes_from, uninterrupted, tmp_path):
    folder, expected, tokens = uninterrupted
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    final, steps, resumed_tokens = run(tmp_path)
    assert steps == list(range(resumes_from, STEPS))
    np.testing.assert_array_equal(resumed_tokens, tokens[resumes_from:])  # no data is skipped or seen twice
    assert_trees_equal(final, expected)
    assert read_metrics(tmp_path) == read_metrics(folder)
    assert_event_file_equals_metrics(epath.Path(tmp_path))


def test_run_of_fewer_steps_goes_on(uninterrupted, tmp_path):
    folder, expected, _ = uninterrupted
    run(tmp_path, max_steps=2)
    final, steps, _ = run(tmp_path)
    assert steps == [2, 3, 4, 5, 6] and read_metrics(tmp_path) == read_metrics(folder)
    assert_trees_equal(final, expected)


def test_finished_run_does_nothing_and_returns_its_state(uninterrupted):
    folder, expected, _ = uninterrupted
    before = read_metrics(folder)
    final, steps, _ = run(folder)
    assert steps == [] and read_metrics(folder) == before
    assert_trees_equal(final, expected)
    assert_event_file_equals_metrics(epath.Path(folder))


def test_torn_line_and_lines_after_checkpoint_are_written_again(uninterrupted, tmp_path):
    folder, expected, tokens = uninterrupted
    with pytest.raises(Killed):
        run(tmp_path, kill_at=6)
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 7, "loss": 99.0, "grad_norm": 1.0, "learning_rate": 1.0}\n{"step": 8, "lo')
    (event_file,) = (tmp_path / "tensorboard").iterdir()
    event_file.write_bytes(event_file.read_bytes()[:-5])
    final, steps, resumed_tokens = run(tmp_path)
    assert steps == [6]
    np.testing.assert_array_equal(resumed_tokens, tokens[6:])
    assert_trees_equal(final, expected)
    assert read_metrics(tmp_path) == read_metrics(folder)
    assert_event_file_equals_metrics(epath.Path(tmp_path))


def test_only_last_checkpoint_is_kept(uninterrupted):
    folder, _, _ = uninterrupted
    assert [p.name for p in (folder / "checkpoints").iterdir() if p.is_dir()] == [str(STEPS)]
