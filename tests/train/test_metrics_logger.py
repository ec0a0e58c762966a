"""metrics.jsonl and the event file beside it."""

import types

import jax.numpy as jnp
import pytest
from etils import epath
from event_file import read_events, read_scalars
from helpers import bucket

from astro_jax import distributed, storage
from astro_jax.train import metrics_logger
from astro_jax.train.metrics_logger import MetricsLogger


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, monkeypatch):
    return epath.Path(tmp_path) if request.param == "disk" else bucket(monkeypatch)


def log_steps(folder, resume_from, losses):
    logger = MetricsLogger(folder)
    logger.start(resume_from)
    for step, loss in losses.items():
        logger.add(step, {"loss": loss, "learning_rate": 0.5})
    logger.flush()
    logger.close()
    return logger


def read_losses(folder):
    return [(r["step"], r["loss"]) for r in storage.read_jsonl(folder / "metrics.jsonl")]


def test_resumed_log_drops_later_steps_and_goes_on(folder):
    """In a bucket too, where nothing can be appended."""
    log_steps(folder, 0, {step: float(step) for step in range(1, 8)})
    log_steps(folder, 5, {6: 60.0})
    assert read_losses(folder) == [*((i, float(i)) for i in range(1, 6)), (6, 60.0)]


def test_event_file_holds_the_same_values_and_no_step_twice(tmp_path):
    folder = epath.Path(tmp_path)
    for resume_from, losses in ((0, {i: float(i) for i in range(1, 8)}), (5, {6: 60.0}), (6, {})):
        log_steps(folder, resume_from, losses)
        rows = read_scalars(folder / "tensorboard")
        assert [(step, values["loss"]) for step, values in rows] == read_losses(folder)
        assert all(values.keys() == {"loss", "learning_rate"} for _, values in rows)


def test_watching_tensorboard_drops_the_replaced_curves(tmp_path):
    log_steps(epath.Path(tmp_path), 0, {1: 1.0})
    events = read_events(epath.Path(tmp_path) / "tensorboard")
    assert [e.step for e in events if e.session_log.status == e.session_log.START] == [0]


def test_bucket_has_no_event_file_and_one_line_is_logged(monkeypatch, capsys):
    folder = bucket(monkeypatch)
    log_steps(folder, 0, {1: 1.0})
    assert {p.name for p in folder.iterdir()} == {"metrics.jsonl", "timings.jsonl"}
    assert capsys.readouterr().err.count("no TensorBoard curves") == 1


def test_only_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    log_steps(epath.Path(tmp_path), 0, {1: 1.0})
    assert list(tmp_path.iterdir()) == []


def test_progress_bar_shows_last_fetched_step(tmp_path):
    logger = MetricsLogger(epath.Path(tmp_path))
    logger.start(0)
    for step in range(1, MetricsLogger.FETCH_STEPS):
        logger.add(step, {"loss": jnp.float32(step)})
    assert logger.latest == {}  # not fetched yet
    logger.add(MetricsLogger.FETCH_STEPS, {"loss": jnp.float32(9), "grad_norm": 1.0})
    assert logger.latest == {"loss": 9.0}
    logger.add(MetricsLogger.FETCH_STEPS + 1, {"loss": 8.0})  # on the host already
    assert logger.latest == {"loss": 8.0}
    logger.close()


def test_long_run_appends_and_does_not_write_the_file_again(tmp_path, monkeypatch):
    """The file was written whole every five steps: 1,000 steps wrote 100 MB."""
    written = []
    monkeypatch.setattr(storage, "write_text", lambda path, text: written.append(len(text)))
    monkeypatch.setattr(storage, "append_text", lambda path, text: written.append(len(text)))
    log_steps(epath.Path(tmp_path), 0, {step: 1.0 for step in range(1, 1001)})
    assert sum(written) < 200 * 1000


def test_torn_last_line_is_dropped_and_the_bytes_are_those_of_one_process(tmp_path):
    one, two = (epath.Path(tmp_path) / name for name in ("one", "two"))
    losses = {step: 1 / step for step in range(1, 9)}
    log_steps(one, 0, losses)
    log_steps(two, 0, {step: losses[step] for step in range(1, 6)})
    with (two / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    log_steps(two, 5, {step: losses[step] for step in range(6, 9)})
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()


def test_timings_have_tokens_per_second_of_each_step(tmp_path, monkeypatch):
    clock = iter([10.0, 12.0, 13.0])
    monkeypatch.setattr(metrics_logger, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    logger = MetricsLogger(epath.Path(tmp_path))
    logger.start(0)
    logger.add(1, {"loss": jnp.float32(1), "tokens": 30})
    logger.add(2, {"loss": jnp.float32(1), "tokens": 50})
    logger.flush()  # two steps and 80 tokens in 2 s
    logger.add(3, {"loss": 1.0, "tokens": 7})
    logger.close()
    assert list(storage.read_jsonl(epath.Path(tmp_path) / "timings.jsonl")) == [
        {"step": 1, "seconds": 1.0, "tokens_per_s": 40.0},
        {"step": 2, "seconds": 1.0, "tokens_per_s": 40.0},
        {"step": 3, "seconds": 1.0, "tokens_per_s": 7.0},
    ]


def test_value_that_is_not_finite_is_left_out(tmp_path):
    log_steps(epath.Path(tmp_path), 0, {1: float("nan"), 2: float("inf"), 3: 1.0})
    assert [r.keys() for r in storage.read_jsonl(epath.Path(tmp_path) / "metrics.jsonl")] == [
        {"step", "learning_rate"}, {"step", "learning_rate"}, {"step", "loss", "learning_rate"},
    ]  # fmt: skip
