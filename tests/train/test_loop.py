"""The training loop: stopped at any step and started again, it ends bitwise equal."""

import contextlib
import functools
import json
import os
import resource
import shutil
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from event_file import read_scalars
from helpers import assert_trees_equal, one_device_train, tiny_config, tiny_params

from astro_jax import config as cfg
from astro_jax import host_memory, termination
from astro_jax.errors import AstroError, TransientError
from astro_jax.train import checkpoints, loop, sft, state
from astro_jax.train.data import make_document, packed_batches, prefetched
from astro_jax.train.skip_guard import SkipGuard

CONFIG = tiny_config(n_layers=1)
C = cfg.Sft(learning_rate=0.01, batch_size=2, max_length=16)
STEPS = 7
DOCUMENTS = [make_document(np.random.default_rng(i).integers(1, 20, 3 + i % 9).tolist()) for i in range(12)]
TX = state.make_optimizer(C, STEPS)
ABSTRACT = state.abstract_state(CONFIG, TX, one_device_train())


class Killed(Exception):
    pass


@functools.cache
def compiled_step():
    return state.make_step(sft.make_gradient(C, CONFIG, one_device_train()), TX, CONFIG, one_device_train())


def run(
    folder, max_steps=STEPS, kill_at=None, broken=(), terminate_at=None, is_sampling=False, eval_losses=None, **settings
):
    """(the final state, the steps that ran, the tokens of each). Step i of `broken` has a loss of NaN.

    Args:
      is_sampling: whether step `terminate_at` asks for SIGTERM before its update, as the sampler does.
      eval_losses: the held-out loss after some steps, from 1.
    """
    c = C.model_copy(update={"save_steps": 3} | settings)
    iterator = prefetched(packed_batches(DOCUMENTS, C.batch_size, C.max_length, seed=5, num_train_epochs=9))
    steps, tokens = [], []

    def step_fn(train_state, i):
        if i == kill_at:
            raise Killed
        if i == terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the thread that waits for it is not the one that is asked
            if is_sampling:
                termination.check()  # as the sampler does
        batch = next(iterator).batch
        steps.append(i)
        tokens.append(np.array(batch.tokens))
        if i in broken:
            batch = batch.replace(loss_weights=np.nan * batch.loss_weights)
        train_state, metrics = compiled_step()(train_state, batch)
        measured = {"eval_loss": jnp.float32(eval_losses[i + 1])} if i + 1 in (eval_losses or {}) else {}
        return train_state, metrics | measured

    initial = state.place(state.new_state(jax.tree.map(jnp.array, tiny_params(CONFIG)), TX), ABSTRACT)
    try:
        with termination.watch():
            final, _ = loop.run(
                epath.Path(folder), "test", initial, ABSTRACT, step_fn, lambda i: [f"example-{i}"], max_steps, c,
                iterator,
            )  # fmt: skip
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
    assert all(r.keys() == {"step", "loss", "grad_norm", "learning_rate", "skipped_steps"} for r in records)
    assert all(np.isfinite(r["loss"]) and r["skipped_steps"] == 0 for r in records)


def test_on_a_cpu_no_step_starts_before_the_last_has_ended(tmp_path, monkeypatch):
    """Up to five steps were dispatched ahead, each with its temporary arrays: 21 GB in place of 9 with SmolLM2."""
    step, work, were_ready = compiled_step(), [], []
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: jnp.tanh(y @ y), x).sum())

    def slow_step(train_state, batch):
        were_ready.extend(x.is_ready() for x in work[-1:])
        train_state, metrics = step(train_state, batch)
        work.append(slow(jnp.ones((500, 500))))
        return train_state, metrics | {"work": work[-1]}

    monkeypatch.setattr(sys.modules[__name__], "compiled_step", lambda: slow_step)
    run(tmp_path, max_steps=3)
    assert were_ready == [True, True]


def test_each_step_begins_and_the_last_ends_with_freed_memory_given_back(tmp_path, monkeypatch):
    calls, step = [], compiled_step()
    monkeypatch.setattr(host_memory, "give_back", lambda: calls.append("give back"))
    monkeypatch.setattr(sys.modules[__name__], "compiled_step", lambda: lambda *x: calls.append("step") or step(*x))
    run(tmp_path, max_steps=3)
    assert calls == [*["give back", "step"] * 3, "give back"]


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


# ---- Checkpoints


def saved_steps(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.is_dir())


def test_last_two_checkpoints_are_kept(uninterrupted):
    folder, _, _ = uninterrupted
    assert saved_steps(folder) == [6, STEPS]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, steps",
    [
        ({"save_steps": 1, "save_total_limit": 3}, [5, 6, 7]),
        ({"save_steps": 1, "keep_every_steps": 2}, [2, 4, 6, 7]),
        ({"save_steps": 99, "save_minutes": 1e-9}, [6, 7]),
        ({"save_steps": 99, "save_minutes": 9.0}, [7]),
    ],
)
def test_checkpoints_are_saved_and_kept_by_policy(settings, steps, uninterrupted, tmp_path):
    final, _, _ = run(tmp_path, **settings)
    assert saved_steps(tmp_path) == steps
    assert_trees_equal(final, uninterrupted[1])


BEST = {"eval_share": 0.5, "metric_for_best_model": "eval_loss"}
LOSSES = {1: 3.0, 2: 2.0, 4: 1.0, 6: 1.5, 7: 1.5}


def test_best_checkpoint_by_metric_is_kept_beside_the_last_ones(uninterrupted, tmp_path):
    final, _, _ = run(tmp_path, eval_losses=LOSSES, **BEST)
    assert saved_steps(tmp_path) == [4, 6, 7]  # step 4 is saved since it is the best, between two `save_steps`
    assert_trees_equal(final, uninterrupted[1])
    run(tmp_path / "equal", eval_losses={2: 1.0, 4: 1.0}, **BEST)
    assert saved_steps(tmp_path / "equal") == [4, 6, 7]  # of two equal steps the later one
    run(tmp_path / "broken", eval_losses={2: 1.0, 4: float("nan")}, **BEST)
    assert saved_steps(tmp_path / "broken") == [2, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [None, 2, 5, 6])
def test_best_model_is_returned_also_after_a_kill(kill_at, tmp_path, capsys):
    expected, _, _ = run(tmp_path / "four", max_steps=4)
    best = BEST | {"load_best_model_at_end": True, "eval_losses": LOSSES}
    if kill_at is not None:
        with pytest.raises(Killed):
            run(tmp_path / "best", kill_at=kill_at, **best)
    final, _, _ = run(tmp_path / "best", **best)
    assert_trees_equal(final, expected)
    assert saved_steps(tmp_path / "best") == [4, 6, 7]
    assert "test: the model is that of step 4, the best by eval_loss" in capsys.readouterr().err
    assert run(tmp_path / "best", **best)[1] == []  # a finished run returns the best model again


def test_damaged_best_checkpoint_gives_the_last_model(uninterrupted, tmp_path):
    run(tmp_path, eval_losses=LOSSES, **BEST)
    damage(tmp_path, 4, "empty")
    final, _, _ = run(tmp_path, eval_losses=LOSSES, load_best_model_at_end=True, **BEST)
    assert_trees_equal(final, uninterrupted[1])


def test_save_in_the_background_holds_the_state_of_its_step(tmp_path, uninterrupted):
    """The step after a save donates the state whose copy is being written."""
    run(tmp_path, save_steps=1, save_total_limit=99)
    for last in (6, 4, 1):
        for step in saved_steps(tmp_path):
            if step > last:
                shutil.rmtree(tmp_path / "checkpoints" / str(step))
        final, steps, _ = run(tmp_path, save_total_limit=99)
        assert steps == list(range(last, STEPS))
        assert_trees_equal(final, uninterrupted[1])


def damage(folder, step, how):
    """Damage the checkpoint of a step."""
    files = [p for p in (folder / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
    if how == "torn":
        largest = max(files, key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:40])
    else:
        for p in files:
            p.unlink()


@pytest.mark.parametrize("how", ["torn", "empty"])
def test_damaged_last_checkpoint_is_passed_over_and_said(how, uninterrupted, tmp_path, capsys):
    folder, expected, _ = uninterrupted
    with pytest.raises(Killed):
        run(tmp_path, kill_at=6)
    damage(tmp_path, 6, how)
    final, steps, _ = run(tmp_path)
    assert steps == [3, 4, 5, 6] and saved_steps(tmp_path) == [6, STEPS]
    assert "test: the checkpoint of step 6 cannot be read and is passed over (" in capsys.readouterr().err
    assert_trees_equal(final, expected)
    assert read_metrics(tmp_path) == read_metrics(folder)
    assert run(tmp_path)[1] == []  # the damaged checkpoint was replaced


def test_no_readable_checkpoint_is_one_line(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=5)
    damage(tmp_path, 3, "torn")
    with pytest.raises(AstroError, match=r"checkpoints: no checkpoint can be read \([^\n]*$"):
        run(tmp_path)


@contextlib.contextmanager
def limited_files(size):
    """Writes beyond so many bytes of a file fail, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_checkpoint_that_cannot_be_written_is_one_line_and_the_run_goes_on(uninterrupted, tmp_path, capfd):
    with (
        limited_files(4000),
        pytest.raises(TransientError, match=r"^test: the last checkpoint was not written .*File too large"),
    ):
        run(tmp_path / "failed")
    assert "Traceback" not in capfd.readouterr().err  # Orbax logs it
    assert not (tmp_path / "failed" / "checkpoints" / "3").exists()
    # A run that has failed ends with its process. Here Orbax's other writers live on, and lose their folder.
    (tmp_path / "failed").rename(tmp_path / "again")
    assert_trees_equal(run(tmp_path / "again")[0], uninterrupted[1])


@pytest.mark.parametrize("terminate_at, is_sampling, message", [(3, False, "after step 4"), (4, True, "in step 5")])
def test_sigterm_saves_and_exits_and_the_run_goes_on(
    terminate_at, is_sampling, message, uninterrupted, tmp_path, capsys
):
    """A step that only samples is given up: the state before the step is saved."""
    with pytest.raises(SystemExit) as error:
        run(tmp_path, terminate_at=terminate_at, is_sampling=is_sampling)
    assert error.value.code == 143 and saved_steps(tmp_path) == [3, 4]
    assert f"test, {message}: stopped by SIGTERM; the same command goes on from here" in capsys.readouterr().err
    final, steps, _ = run(tmp_path)
    assert steps == [4, 5, 6]
    assert_trees_equal(final, uninterrupted[1])
    assert read_metrics(tmp_path) == read_metrics(uninterrupted[0])


def test_sigterm_while_the_first_step_samples_saves_nothing(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, terminate_at=0, is_sampling=True)
    assert saved_steps(tmp_path) == []


# ---- Steps without a finite loss


def test_nan_loss_is_skipped_and_counted_and_training_goes_on(uninterrupted, tmp_path, capsys):
    final, steps, _ = run(tmp_path, broken={1, 2, 4})
    assert steps == list(range(STEPS)) and final.step == STEPS - 3
    records = [json.loads(line) for line in read_metrics(tmp_path).splitlines()]
    assert [r["skipped_steps"] for r in records] == [0, 1, 1, 0, 1, 0, 0]
    assert ["loss" in r for r in records] == [not r["skipped_steps"] for r in records]
    rates = [json.loads(line)["learning_rate"] for line in read_metrics(uninterrupted[0]).splitlines()]
    # A skipped step has the rate of the last update, and does not move the schedule on.
    assert [r["learning_rate"] for r in records] == [rates[i] for i in (0, 0, 0, 1, 1, 2, 3)]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(final))
    assert (
        "test: step 3 is skipped, its loss or gradient is not finite; its batch: example-2" in capsys.readouterr().err
    )


def test_nan_loss_in_three_steps_in_a_row_stops_and_names_the_batch(tmp_path):
    message = (
        r"^test: no finite loss and gradient in steps 5 to 7; the batch of step 7: example-6; the last good "
        r"checkpoint: step 3; .*learning_rate[^\n]*$"
    )
    with pytest.raises(AstroError, match=message):
        run(tmp_path, broken={4, 5, 6})
    assert saved_steps(tmp_path) == [3]


@pytest.mark.parametrize("kill_at", [3, 4])
def test_nan_loss_after_a_kill_stops_at_the_same_step(kill_at, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, save_steps=1, kill_at=kill_at, broken={2, 3, 4})
    # Steps 1 and 2 are saved, steps 3 and 4 are skipped: the next process runs step 3 (from 1) again.
    with pytest.raises(AstroError, match="in steps 3 to 5"):
        run(tmp_path, save_steps=1, broken={2, 3, 4})


def test_nan_loss_never_overwrites_the_good_checkpoint(tmp_path):
    """The state before the first NaN may be damaged by its last update: an older state is kept."""
    with pytest.raises(AstroError, match="the last good checkpoint: step 2;"):
        run(tmp_path, save_steps=1, broken={3, 4, 5})
    assert saved_steps(tmp_path) == [2, 3]


def test_a_lost_connection_is_no_damaged_checkpoint(tmp_path, monkeypatch, capsys):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=5)

    def lose_connection(*_):
        raise ConnectionResetError("the bucket closed the connection")

    with monkeypatch.context() as patch, pytest.raises(ConnectionResetError):
        patch.setattr(checkpoints.ocp.training.Checkpointer, "load_checkpointables", lose_connection)
        run(tmp_path)
    assert "passed over" not in capsys.readouterr().err
    assert run(tmp_path)[1] == [3, 4, 5, 6]


def test_a_step_of_which_some_updates_were_applied_is_not_skipped(capsys):
    guard = SkipGuard("test", max_skipped_steps=2, updates=4)
    records = [
        {"step": 1, "skipped_steps": 1.0, "no_gradient_steps": 0.0},
        {"step": 2, "skipped_steps": 3.0, "no_gradient_steps": 0.0},
        {"step": 3, "skipped_steps": 3.0, "no_gradient_steps": 1.0},
    ]
    for i in range(1, 5):
        guard.add(i, ["a"])
    guard.check(records, [])
    assert guard.in_a_row == 1 and "step 2 is skipped in 3 of 4 updates" in capsys.readouterr().err
    with pytest.raises(AstroError, match="in steps 3 to 4"):
        guard.check([{"step": 4, "skipped_steps": 4.0}], [])
