"""The record of each command that works on a run: when, on which chips, and how much of its time was kept.

RUN/sessions holds one file a command. Its process renews the file, so that a killed command leaves its last state. From
these files come the limit of `--max-hours`, and the goodput and chip-hours of `astro status`.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import socket
import sys
import time
from collections.abc import Iterator

import jax
from etils import epath

from astro_jax import distributed, storage
from astro_jax.errors import AstroError
from astro_jax.storage import Json

FOLDER = "sessions"
RENEW_SECONDS = 15.0  # between two writes of a record
EXIT_MAX_HOURS = 2  # as for bad input: launchers do not start the run again


@contextlib.contextmanager
def record(run: epath.Path, command: str, max_hours: float | None = None) -> Iterator[None]:
    """Record this command in RUN/sessions until the end of the block. Only the main process writes.

    Args:
      run: the folder of the run.
      command: the command line.
      max_hours: of all commands on this run together; shards that run at the same time count once. None for no limit.
        At the limit the process ends at once: the same command goes on later from what it has saved, as after a kill.

    Raises:
      AstroError: when the limit is reached already.
    """
    if not distributed.is_main_process():
        yield
        return
    before = _used_seconds(read(run)) if max_hours is not None else 0.0
    if max_hours is not None and before >= 3600 * max_hours:
        raise AstroError(_limit_message(run, before, max_hours))
    start, started_s, compile_s = time.monotonic(), _start_seconds(command), 0.0
    restored_before, waited_before = _restored, distributed.waited_seconds()
    name = datetime.datetime.now(datetime.UTC).strftime(f"%Y%m%d-%H%M%S-%f-{socket.gethostname()}-{os.getpid()}")
    path = run / FOLDER / f"{name}.json"
    chips = {"chips": jax.device_count(), "chip": jax.devices()[0].device_kind}

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal compile_s
        if event == "/jax/core/compile/backend_compile_duration":
            compile_s += duration_secs

    def elapsed() -> float:
        return started_s + time.monotonic() - start

    def state(is_running: bool, is_complete: bool = False) -> Json:
        seconds = elapsed()
        kept = seconds if is_complete else started_s + max(0.0, storage.last_write() - start)
        times = {"seconds": seconds, "kept_s": kept, "start_s": started_s, "compile_s": compile_s}
        times |= {"restore_s": _restored - restored_before, "wait_s": distributed.waited_seconds() - waited_before}
        return {"command": command, **chips, "renewed": time.time(), "running": is_running} | {
            key: round(value, 2) for key, value in times.items()
        }

    def renew() -> None:
        with contextlib.suppress(Exception):  # the limit holds without the record too
            storage.write_json(path, state(is_running=True), is_work=False)
        if max_hours is not None and (total := before + elapsed()) >= 3600 * max_hours:
            message = _limit_message(run, total, max_hours)
            print(f"astro: {message}", file=sys.stderr, flush=True)
            distributed.exit_all(EXIT_MAX_HOURS, message)

    jax.monitoring.register_event_duration_secs_listener(listen)
    storage.write_json(path, state(is_running=True), is_work=False)
    is_complete = False
    try:
        with storage.renewing(RENEW_SECONDS, renew):
            yield
        is_complete = True
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        storage.write_json(path, state(is_running=False, is_complete=is_complete), is_work=False)


_restored = 0.0  # seconds of this process


@contextlib.contextmanager
def restoring() -> Iterator[None]:
    """Count the time of the block as reading what an earlier command has saved."""
    global _restored
    start = time.monotonic()
    try:
        yield
    finally:
        _restored += time.monotonic() - start


def read(run: epath.Path) -> list[Json]:
    """Return the records of a run, oldest first. A record that a kill has cut off is left out."""
    folder, records = run / FOLDER, []
    for path in sorted(folder.iterdir(), key=lambda path: path.name) if folder.exists() else ():
        if path.name.endswith(".json"):
            with contextlib.suppress(AstroError):
                records.append(storage.read_json(path))
    return records


def summary(records: list[Json]) -> Json:
    """Return the hours of a run by what they were for.

    Goodput is the share of the time whose work was kept: without the start of the processes, without compiling, without
    reading what earlier commands have saved, without the main process's waits for other processes, and without the work
    after the last write before a kill.

    Returns:
      `sessions`, `running` (whether one is), `hours`, `chip_hours`, `goodput` (None without time), and the lost hours
      `start_h`, `compile_h`, `restore_h`, `wait_h` and `redone_h`.
    """
    seconds = sum(s["seconds"] for s in records)
    lost = {"start_s": 0.0, "compile_s": 0.0, "restore_s": 0.0, "wait_s": 0.0}
    for record in records:
        rest = record["kept_s"]  # no second counts twice: what came after the last write is redone
        for name in lost:
            part = min(record.get(name, 0.0), rest)
            lost[name], rest = lost[name] + part, rest - part
    lost["redone_s"] = sum(s["seconds"] - s["kept_s"] for s in records)
    return {
        "sessions": len(records),
        "running": any(s["running"] and time.time() - s["renewed"] < 4 * RENEW_SECONDS for s in records),
        "hours": round(seconds / 3600, 3),
        "chip_hours": round(sum(s["seconds"] * s["chips"] for s in records) / 3600, 2),
        "goodput": round(max(0.0, 1 - sum(lost.values()) / seconds), 3) if seconds else None,
    } | {f"{name.removesuffix('_s')}_h": round(value / 3600, 3) for name, value in lost.items()}


def _used_seconds(records: list[Json]) -> float:
    """The time in which commands ran on a run. Shards of a search run at the same time."""
    total, end = 0.0, -math.inf
    for start, stop in sorted((record["renewed"] - record["seconds"], record["renewed"]) for record in records):
        total, end = total + max(0.0, stop - max(start, end)), max(end, stop)
    return total


def _limit_message(run: epath.Path, seconds: float, max_hours: float) -> str:
    return (
        f"{run}: its commands have run for {seconds / 3600:.1f} hours, and --max-hours is {max_hours:g}; saved work is "
        "kept, raise --max-hours to go on"
    )


_has_started = False


def _start_seconds(command: str) -> float:
    """Return the seconds since the start of this process, where the command line has just started it; else 0."""
    global _has_started
    if _has_started or not command:
        return 0.0
    _has_started = True
    fields = epath.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[19])  # field 22 of proc(5), in clock ticks since the boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
