"""A lock on a run's folder: two commands must not write one run at the same time.

On a disk the lock is one of the operating system (flock), which ends with its process, also after a kill. A bucket has
no such locks. There the holder renews a file every few seconds, and a file that is not renewed holds nobody up.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator

from etils import epath

from astro_jax import distributed, storage
from astro_jax.errors import AstroError

RENEW_SECONDS = 10.0  # between two renewals of the lock of a bucket
STALE_SECONDS = 25.0  # without a renewal, after which the holder counts as killed
CONFIRM_SECONDS = 2.0  # between the first write of a lock and the look whether another command has written one too
_FILE = ".lock"
Holder = dict[str, str | int]


@contextlib.contextmanager
def hold(run: epath.Path, command: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a run's folder. In a run of several processes the main process holds it.

    Args:
      command: of the holder, for the message to others.
      shared: commands that hold a shared lock do not exclude each other (`astro search --shard`).

    Raises:
      AstroError: when another command holds the lock; the message names its host, process and start.
    """
    if not distributed.is_main_process():
        yield
        return
    holder: Holder = {
        "host": socket.gethostname(), "pid": os.getpid(), "command": command,
        "start": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    }  # fmt: skip
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise AstroError(f"{run}: cannot be made ({e.strerror or e}); choose another folder with out=DIR") from e
    with _bucket_lock(run, holder, shared) if storage.is_remote(run) else _disk_lock(run, holder, shared):
        yield


@contextlib.contextmanager
def _disk_lock(run: epath.Path, holder: Holder, shared: bool) -> Iterator[None]:
    with open(run / _FILE, "a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AstroError(_refusal(run, file.read())) from None
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()
        yield


@contextlib.contextmanager
def _bucket_lock(run: epath.Path, holder: Holder, shared: bool) -> Iterator[None]:
    own = uuid.uuid4().hex
    path = run / (f"{_FILE}-{own}" if shared else _FILE)
    _refuse_holders(run, shared)

    def renew() -> None:
        path.write_text(json.dumps(holder | {"id": own, "renewal": uuid.uuid4().hex}))

    renew()
    if not shared:  # of two commands that have begun together, the one that has written last goes on
        time.sleep(CONFIRM_SECONDS)
        text = _read(path)
        if text and json.loads(text)["id"] != own:
            raise AstroError(_refusal(run, text))
    try:
        with storage.renewing(RENEW_SECONDS, renew):
            yield
    finally:
        with contextlib.suppress(Exception):  # without a renewal it ends by itself; gcsfs has errors of its own
            path.unlink(missing_ok=True)


def _refuse_holders(run: epath.Path, shared: bool) -> None:
    """Refuse a run that another command holds. A shared lock excludes only commands that hold the run alone."""
    paths = [run / _FILE]
    with contextlib.suppress(OSError):  # a bucket without a file of this run
        paths += [] if shared else [path for path in run.iterdir() if path.name.startswith(f"{_FILE}-")]
    first = {path: text for path in paths if (text := _read(path)) is not None}
    deadline = time.monotonic() + STALE_SECONDS
    while first and time.monotonic() < deadline:  # a living holder renews its file in this time
        time.sleep(1)
        for path, before in list(first.items()):
            text = _read(path)
            if text is None:
                del first[path]
            elif text not in ("", before):
                raise AstroError(_refusal(run, text))
    for path in first:  # of commands that were killed
        path.unlink(missing_ok=True)


def _read(path: epath.Path) -> str | None:
    """The text of a lock: None where there is none, empty while it is written to a disk that counts as a bucket."""
    try:
        return path.read_text()
    except OSError:
        return None


def _refusal(run: epath.Path, text: str) -> str:
    try:
        h = json.loads(text)
        who = f"process {h['pid']} on {h['host']}, since {h['start']} ({h['command']})"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"{run}: in use by {who}; nothing was changed, wait until it ends or choose another folder with out=DIR"
