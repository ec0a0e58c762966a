"""Multi-process runs: start and end of the processes, synchronization points, and heartbeats.

Every process runs the same program on the same host-side values and holds its own shards of the arrays. The processes
meet at numbered synchronization points. At each point a process writes a small value to the key-value store of JAX's
coordination service and reads the values of the others, so an error message can name the process that is late or
differs. A background thread of each process writes a heartbeat twice a second. The thread ends its process when another
process has failed or its heartbeats have stopped. A run of one process uses no store and no thread.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import glob
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, NoReturn

from astro_jax.errors import AstroError, TransientError

TIMEOUT_SECONDS = 300.0  # without a heartbeat
# Until all processes have connected, and at a synchronization point: a process that sends heartbeats may be late, as
# when it reads a large model.
START_TIMEOUT_SECONDS = 1800.0
_HEARTBEAT_SECONDS = 0.5  # between two heartbeats
_EXIT_WAIT_SECONDS = 5.0  # the main process, which holds the store, waits so long for the others after an error
_START_HINT = (
    "start all processes with the same --coordinator and --processes; --processes 1 runs on this machine alone"
)
_MISMATCH_HINT = "run the same program on the same files in every process"
_PREEMPTION_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # a key of the store; the name is XLA's (preemption_sync_manager.cc)
_EXIT_PROCESS_LOST = 1  # exit code when another process is lost: run the same command again to resume


class ProcessLostError(TransientError):
    """Another process is lost. The input is not at fault: run the same command again to resume."""


@dataclasses.dataclass
class _ProcessGroup:
    """The state of this process in the run.

    Attributes:
      index: number of this process, from 0.
      count: number of processes.
      start_timeout: seconds to wait for another process that sends heartbeats.
      timeout: seconds to wait for a heartbeat of another process.
      store: client of the coordination service's key-value store.
      num_synced: synchronization points that this process has passed.
      exiting: whether this process has written its last heartbeat.
      waited: seconds that this process has waited for others at synchronization points.
      lock: guards `exiting` and the heartbeat's key.
      stop: ends the heartbeat thread.
    """

    index: int = 0
    count: int = 1
    start_timeout: float = START_TIMEOUT_SECONDS
    timeout: float = TIMEOUT_SECONDS
    store: Any = None
    num_synced: int = 0
    exiting: bool = False
    waited: float = 0.0
    lock: Any = dataclasses.field(default_factory=threading.Lock)
    stop: Any = dataclasses.field(default_factory=threading.Event)


_group = _ProcessGroup()


def initialize(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    timeout: float = TIMEOUT_SECONDS,
    start_timeout: float = START_TIMEOUT_SECONDS,
) -> None:
    """Connect to the other processes of the run. Call before the first use of a device.

    With no arguments the processes are those of the TPU slice that this machine belongs to; without a slice the run has
    one process. With `count` alone the slice must have so many processes: where their discovery fails, no process goes
    on alone.

    Args:
      coordinator: HOST:PORT of the main process, which serves the store at this address.
      count: number of processes.
      index: number of this process, from 0.
      timeout: seconds without a heartbeat, after which a process counts as lost.
      start_timeout: seconds to wait for a process that is alive.

    Raises:
      AstroError: when only some of the first three arguments are set outside of a slice, or `index` is out of range.
      TransientError: when the other processes cannot be found or reached.
    """
    if _group.count > 1 or count == 1:
        return
    arguments = (coordinator, count, index)
    explicit = all(x is not None for x in arguments)
    discovered = coordinator is None and index is None and on_tpu()
    if any(x is not None for x in arguments) and not explicit and not discovered:
        raise AstroError("processes: set all of --coordinator, --processes and --process, or none of them")
    if not explicit and not discovered:
        return
    if count is not None and index is not None and not 0 <= index < count:
        raise AstroError(f"processes: --process {index} is not one of 0 to {count - 1}")
    import jax

    # JAX's own limits are longer: JAX aborts the process without an error message of this program.
    timer = threading.Timer(start_timeout, _abort_start, (start_timeout,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *(arguments if explicit else (None, None, None)),
            initialization_timeout=int(start_timeout) + 60,
            heartbeat_timeout_seconds=int(timeout) + 60,
        )
    except (RuntimeError, ValueError, OSError) as e:
        if isinstance(e, ValueError) and discovered and count is None:  # TPU chips outside of a slice, as in a notebook
            return
        error = AstroError if isinstance(e, ValueError) and explicit else TransientError
        raise error(
            f"processes: cannot connect to the other processes ({str(e).splitlines()[0]}); {_START_HINT}"
        ) from e
    finally:
        timer.cancel()
    _join_group(timeout, start_timeout, count)


def _abort_start(timeout: float) -> NoReturn:
    print(f"astro: processes: not all connected within {timeout:g} s; {_START_HINT}", file=sys.stderr, flush=True)
    os._exit(_EXIT_PROCESS_LOST)


def on_tpu() -> bool:
    """Return whether this machine has TPU chips that JAX may use."""
    allowed = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu")
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(allowed and chips and importlib.util.find_spec("libtpu"))


def _join_group(timeout: float, start_timeout: float, count: int | None) -> None:
    """Fill in the process group and start the heartbeat thread.

    Raises:
      TransientError: when the slice has not `count` processes.
    """
    from jax._src import distributed  # JAX has no public name for the store

    state = distributed.global_state
    if count is not None and state.num_processes != count:
        raise TransientError(f"processes: {state.num_processes} of {count} found; {_START_HINT}")
    if state.num_processes == 1:
        return
    _group.index, _group.count, _group.timeout = state.process_id, state.num_processes, timeout
    _group.start_timeout = start_timeout
    _group.store = state.client
    monitor = threading.Thread(target=_monitor, name="heartbeats", daemon=True)
    monitor.start()

    def stop() -> None:  # a thread that still uses the store when the interpreter ends would abort the process
        _group.stop.set()
        monitor.join()

    atexit.register(stop)


def is_main_process() -> bool:
    """Return whether this is process 0, which writes files and logs."""
    return _group.index == 0


def process_count() -> int:
    """Return the number of processes of the run."""
    return _group.count


def process_index() -> int:
    """Return the number of this process, from 0."""
    return _group.index


def is_own(i: int) -> bool:
    """Say whether part i of work that is split over the processes is this one's: process k of n has k, k + n, ..."""
    return i % process_count() == process_index()


def waited_seconds() -> float:
    """Return the seconds that this process has waited for others at synchronization points."""
    return _group.waited


def all_gather(name: str, value: Any = None) -> list[Any]:
    """Gather a small value from every process, at a synchronization point.

    Args:
      name: of the point. Error messages show the name, and all processes must be at a point of the same name.
      value: any JSON value.

    Returns:
      the values of process 0, 1, 2, ...

    Raises:
      AstroError: when another process is at a point of another name.
      ProcessLostError: when another process does not reach the point within the timeout.
    """
    if _group.count == 1:
        return [value]
    store, point = _group.store, _group.num_synced
    _group.num_synced += 1
    store.key_value_set(f"astro/sync/{point}/{_group.index}", json.dumps([name, value]))
    start = time.monotonic()
    entries = [_read_entry(point, i, name) for i in range(_group.count)]
    _group.waited += time.monotonic() - start
    for i, (other_name, _) in enumerate(entries):
        if other_name != name:
            raise AstroError(
                f"processes: {_describe(i)} is at {other_name!r}, {_describe(_group.index)} is at {name!r}; "
                f"{_MISMATCH_HINT}"
            )
    if point:  # every process has read the entries of the previous point
        store.key_value_delete(f"astro/sync/{point - 1}/{_group.index}")
    return [value for _, value in entries]


def assert_equal_across_processes(name: str, value: Any = None) -> None:
    """Wait for all processes, and check that every process has the same value.

    Args:
      name: of the synchronization point, as for `all_gather`.
      value: any JSON value.

    Raises:
      AstroError: when the values differ, and as `all_gather`.
    """
    values = all_gather(name, value)
    own = values[_group.index]
    for i, other in enumerate(values):
        if other != own:
            raise AstroError(
                f"processes: at {name!r} {_describe(i)} has {other!r}, {_describe(_group.index)} has {own!r}; "
                f"{_MISMATCH_HINT}"
            )


def _read_entry(point: int, index: int, name: str) -> Any:
    """Wait for the [name, value] of a process at a synchronization point."""
    try:
        return json.loads(
            _group.store.blocking_key_value_get(f"astro/sync/{point}/{index}", int(1000 * _group.start_timeout))
        )
    except RuntimeError as e:
        raise ProcessLostError(
            f"processes: {_describe(index)} did not reach {name!r} within {_group.start_timeout:g} s ({str(e)[:80]})"
        ) from e


def has_preemption_notice() -> bool:
    """Return whether a process of the run has got SIGTERM, the signal of a preemption.

    In a run of several processes JAX handles the signal, and writes a notice to the store.
    """
    try:
        _group.store.key_value_try_get(_PREEMPTION_NOTICE)
    except RuntimeError:  # no notice, or the store is lost: then JAX ends this process
        return False
    return True


def largest_over_processes(name: str, number: int, timeout: float) -> int:
    """Return the largest of the processes' numbers. Other than at a synchronization point, any thread may ask.

    Args:
      name: of the question; each process asks it once.
      number: of this process.
      timeout: seconds to wait for the other processes.

    Raises:
      RuntimeError: when a process has given no number in this time.
    """
    if _group.count == 1:
        return number
    _group.store.key_value_set(f"astro/largest/{name}/{_group.index}", str(number))
    keys = [f"astro/largest/{name}/{i}" for i in range(_group.count)]
    return max(int(_group.store.blocking_key_value_get(key, int(1000 * timeout))) for key in keys)


def exit_all(code: int, message: str) -> NoReturn:
    """End this process after an error, and make the other processes end too.

    `sys.exit` would wait for the other processes: JAX synchronizes all processes at the end of a program.

    Args:
      code: exit code.
      message: what the other processes print.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a file on a disk that is full
            stream.flush()
    if _group.count > 1:
        _write_heartbeat(code, message)
        deadline = time.monotonic() + _EXIT_WAIT_SECONDS
        while (
            is_main_process()
            and time.monotonic() < deadline
            and any("code" not in heartbeat for heartbeat in _read_heartbeats().values())
        ):
            time.sleep(_HEARTBEAT_SECONDS / 5)
    os._exit(code)


def silent_processes() -> str:
    """Return the names of the processes without a heartbeat, for an error message; empty if there are none.

    The call takes two seconds.
    """
    before = _read_heartbeats()
    time.sleep(4 * _HEARTBEAT_SECONDS)
    after = _read_heartbeats()
    return _describe_all(i for i, beat in after.items() if beat == before.get(i) and i != _group.index)


def _monitor() -> None:
    """Write heartbeats. End this process when another process has failed or its heartbeats have stopped."""
    last_seen: dict[int, tuple[Any, float]] = {}  # process: its last new heartbeat, and when this process read it
    for number in range(sys.maxsize):
        try:
            _write_heartbeat(None, "", number)
            heartbeats = _read_heartbeats()
        except Exception:  # the main process is lost; JAX ends this process
            return
        now = time.monotonic()
        for i, heartbeat in heartbeats.items():
            if last_seen.get(i, (None, 0.0))[0] != heartbeat:
                last_seen[i] = (heartbeat, now)
        failed = [(i, heartbeat) for i, heartbeat in heartbeats.items() if "code" in heartbeat and i != _group.index]
        silent = [i for i, (_, seen) in last_seen.items() if now - seen > _group.timeout]
        if not _group.exiting and (failed or silent):
            if failed:
                i, heartbeat = failed[0]
                reason, code = f"{_describe(i)} failed: {heartbeat['message']}", heartbeat["code"]
            else:
                reason = f"no heartbeat from {_describe_all(silent)} for {_group.timeout:g} s"
                code = _EXIT_PROCESS_LOST
            print(f"astro: {reason}; {_describe(_group.index)} exits", file=sys.stderr, flush=True)
            exit_all(code, reason)
        if _group.stop.wait(_HEARTBEAT_SECONDS):
            return


def _write_heartbeat(code: int | None, message: str, number: int = 0) -> None:
    """Write this process's heartbeat. With an exit code it is the last heartbeat, which later calls keep."""
    heartbeat: dict[str, Any] = {"host": _host(), "number": number}
    with _group.lock:
        if code is not None:
            _group.exiting = True
            heartbeat |= {"code": code, "message": message}
        elif _group.exiting:
            return
        _group.store.key_value_set(f"astro/heartbeat/{_group.index}", json.dumps(heartbeat), allow_overwrite=True)


def _read_heartbeats() -> dict[int, dict[str, Any]]:
    """Return the last heartbeat of each process, by its number."""
    entries = _group.store.key_value_dir_get("astro/heartbeat/")
    return {int(key.rpartition("/")[2]): json.loads(heartbeat) for key, heartbeat in entries}


def _describe(index: int) -> str:
    """Return, for a message, "process 1 of 2 (host name)"."""
    host = _read_heartbeats().get(index, {}).get("host", "")
    return f"process {index} of {_group.count}" + (f" ({host})" if host else "")


def _describe_all(indices: Iterable[int]) -> str:
    return ", ".join(map(_describe, indices))


@functools.cache
def _host() -> str:
    return socket.gethostname()
