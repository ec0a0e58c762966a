"""metrics.jsonl and the event file beside it."""

import jax.numpy as jnp
import pytest
from etils import epath
from event_file import read_events, read_scalars
from helpers import bucket

from astro_jax import distributed, storage
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
