"""The record of a run's commands: hours, goodput and the limit of --max-hours; and `astro status`."""

import json
import time

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from helpers import HttpError
from micro_run import MICRO

from astro_jax import sessions, storage
from astro_jax.cli import main
from astro_jax.errors import AstroError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "_has_started", False)
    monkeypatch.setattr(sessions, "RENEW_SECONDS", 0.02)
    return epath.Path(tmp_path) / "run"


def put(run, name, **record):
    default = {
        "seconds": 3600.0, "kept_s": 3600.0, "start_s": 0.0, "compile_s": 0.0, "chips": 16, "running": False,
        "renewed": 0.0,
    }  # fmt: skip
    (run / sessions.FOLDER).mkdir(parents=True, exist_ok=True)
    (run / sessions.FOLDER / f"{name}.json").write_text(json.dumps(default | record))


def test_goodput_leaves_out_start_compiling_and_what_a_kill_undid(run):
    put(run, "a", start_s=360.0, compile_s=720.0)
    put(run, "b", kept_s=2880.0)  # killed 720 s after its last write
    put(run, "c", seconds=1800.0, kept_s=1800.0, chips=8, restore_s=180.0, wait_s=90.0)
    put(run, "e", seconds=900.0, kept_s=90.0, start_s=36.0, compile_s=400.0, restore_s=100.0)  # killed in a compilation
    (run / sessions.FOLDER / "d.json").write_text('{"seconds":')  # cut off
    assert sessions.summary(sessions.read(run)) == {
        "sessions": 4, "running": False, "hours": 2.75, "chip_hours": 40.0, "goodput": 0.7, "start_h": 0.11,
        "compile_h": 0.215, "restore_h": 0.05, "wait_h": 0.025, "redone_h": 0.425,
    }  # fmt: skip


def test_a_command_records_its_chips_compilations_and_last_write(run):
    with pytest.raises(KeyboardInterrupt), sessions.record(run, "astro run x"):
        jax.jit(lambda x: x * 3 + 1)(jnp.arange(5)).block_until_ready()
        with sessions.restoring():
            time.sleep(0.02)
        storage.write_text(run / "result", "saved")
        time.sleep(0.1)
        (record,) = sessions.read(run)  # renewed while the command runs
        assert record["running"] and sessions.summary([record])["running"]
        raise KeyboardInterrupt
    (record,) = sessions.read(run)
    assert not record["running"] and record["chips"] == jax.device_count()
    assert 0 < record["start_s"] < record["kept_s"] < record["seconds"] - 0.05
    assert record["compile_s"] > 0 and 0.02 <= record["restore_s"] < 1 and record["wait_s"] == 0
    with sessions.record(run, "astro run x"):
        pass
    record = sessions.read(run)[-1]
    assert (
        record["kept_s"] == record["seconds"] and record["start_s"] == record["restore_s"] == 0
    )  # ended well; the process is the same


@pytest.mark.parametrize("error", [None, OSError(), HttpError(503)])
def test_commands_end_after_max_hours_also_where_the_record_cannot_be_written(error, run, monkeypatch, capsys):
    ends, write_json = [], storage.write_json

    def write(path, record, **options):
        if error is not None and record["running"] and path.exists():
            raise error
        write_json(path, record, **options)

    monkeypatch.setattr(sessions.storage, "write_json", write)
    monkeypatch.setattr(sessions.distributed, "exit_all", lambda *end: ends.append(end))
    put(run, "a", seconds=3599.99)
    with sessions.record(run, "", max_hours=1):
        for _ in range(100):
            if ends:
                break
            time.sleep(0.02)
    assert ends[0][0] == 2 and "--max-hours is 1" in capsys.readouterr().err
    with pytest.raises(AstroError, match=r"have run for 1\.0 hours"), sessions.record(run, "", max_hours=1):
        pytest.fail("began")


def test_shards_that_run_at_the_same_time_use_the_hours_once(run):
    for i in range(4):
        put(run, f"shard-{i}", seconds=7 * 3600.0, renewed=8 * 3600.0)
    put(run, "later", seconds=3600.0, renewed=10 * 3600.0)
    with sessions.record(run, "", max_hours=24):
        pass
    with pytest.raises(AstroError, match=r"have run for 8\.0 hours"), sessions.record(run, "", max_hours=8):
        pytest.fail("began")


def test_status_shows_progress_speed_and_cost(run, capsys):
    put(run, "a", start_s=360.0)
    storage.write_json(run / "config.json", {"command": "astro run x", "config": MICRO | {"out": str(run)}})
    for stage in ("base", "search"):
        storage.write_json(run / stage / "manifest.json", {"digest": "0"})
    storage.write_json(run / "astro-sft" / "inputs.json", {})
    steps = [{"step": i + 1, "seconds": 0.5, "tokens_per_s": 1.0} for i in range(30)]
    storage.write_jsonl(run / "astro-sft" / "timings.jsonl", steps)
    assert main(["status", str(run), "--price", "1.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("2 of 15 stages finished")
    assert lines[1].startswith("in progress: astro-sft at step 30, 2 steps/s, ")
    assert lines[2] == "1 commands, none runs now; 1 hours, 16 chip-hours, cost 24"
    assert lines[3].startswith("goodput 0.900; hours lost: start 0.1, ")
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["at"]["steps_per_s"] == 2
    assert main(["status", str(run / "base")]) == 2
