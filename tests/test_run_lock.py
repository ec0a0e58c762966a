"""The lock of a run's folder."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
from etils import epath

from astro_jax import run_lock, storage
from astro_jax.errors import AstroError


def _hold(folder, connection):
    with run_lock.hold(epath.Path(folder), "astro run first"):
        connection.send("held")
        connection.recv()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(str(tmp_path), theirs))
    process.start()
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


def test_a_second_command_is_refused_with_the_first_one_named_and_a_killed_one_holds_nobody_up(holder, tmp_path):
    with pytest.raises(AstroError, match=rf"in use by process {holder.pid} on .*, since 20.*\(astro run first\)"):
        with run_lock.hold(epath.Path(tmp_path), "astro run second"):
            pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with run_lock.hold(epath.Path(tmp_path), "astro run second"):
        assert json.loads((tmp_path / ".lock").read_text())["command"] == "astro run second"


def test_shards_share_the_lock_and_exclude_a_whole_run(tmp_path):
    folder = epath.Path(tmp_path)
    with run_lock.hold(folder, "shard 0", shared=True), run_lock.hold(folder, "shard 1", shared=True):
        with pytest.raises(AstroError, match="in use by"), run_lock.hold(folder, "whole"):
            pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that counts as a bucket, with short times."""
    monkeypatch.setattr(storage, "is_remote", lambda path: True)
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(run_lock, "CONFIRM_SECONDS", 0.5)
    return epath.Path(tmp_path)


def test_in_a_bucket_a_living_holder_is_seen_by_its_renewals(bucket):
    with run_lock.hold(bucket, "first"):
        with pytest.raises(AstroError, match=r"in use by process \d+ .*\(first\)"), run_lock.hold(bucket, "second"):
            pass
    assert not (bucket / ".lock").exists()


def test_in_a_bucket_shards_and_a_whole_run_exclude_each_other(bucket):
    with run_lock.hold(bucket, "shard 0", shared=True), run_lock.hold(bucket, "shard 1", shared=True):
        with pytest.raises(AstroError, match=r"in use by .*\(shard [01]\)"), run_lock.hold(bucket, "whole"):
            pass
    with run_lock.hold(bucket, "whole"):
        with pytest.raises(AstroError, match=r"\(whole\)"), run_lock.hold(bucket, "shard 0", shared=True):
            pass
    assert not list(bucket.iterdir())


def test_of_two_commands_that_begin_together_in_a_bucket_one_goes_on(bucket):
    begun, refused, both = [], [], threading.Barrier(2)

    def start(name):
        both.wait()
        try:
            with run_lock.hold(bucket, name):
                begun.append(name)
                time.sleep(2)
        except AstroError:
            refused.append(name)

    threads = [threading.Thread(target=start, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == len(refused) == 1


def test_a_lock_that_is_just_being_written_is_not_taken(bucket):
    """A write to a disk first empties the file; a second command that read it then took the lock."""
    (bucket / ".lock").write_text("")
    holder = '{"host": "here", "pid": 1, "start": "now", "command": "first"}'
    writer = threading.Timer(0.3, (bucket / ".lock").write_text, (holder,))
    writer.start()
    with pytest.raises(AstroError, match=r"in use by process 1 .*\(first\)"), run_lock.hold(bucket, "second"):
        pass
    writer.join()


def test_in_a_bucket_a_lock_without_renewals_holds_nobody_up(bucket):
    (bucket / ".lock").write_text('{"host": "gone", "pid": 1, "start": "", "command": ""}')
    with run_lock.hold(bucket, "second"):
        assert json.loads((bucket / ".lock").read_text())["command"] == "second"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AstroError, match=r"file/run: cannot be made .*out=DIR"):
        with run_lock.hold(epath.Path(tmp_path / "file" / "run"), "astro run"):
            pass
