"""The processes that run one program together: who they are, how they agree, and how they end when one is lost.

Every process runs the same Python on the same small values, and holds its part of the arrays. They meet at points that
are counted: each puts what it has there into the key-value store of JAX's coordination service and reads what the
others have. So a process that went another way, or is not there, is known by its number. A thread of each process says
there twice a second that it lives, and ends this one when another has failed or fallen silent. Alone, a process meets
nobody and none of this costs anything.
"""

from __future__ import annotations

import atexit
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
from typing import Any, NoReturn

from astro_jax.errors import AstroError

TIMEOUT_SECONDS = 300.0  # seconds: of a first start, and of a process that says nothing
_BEAT = 0.5  # seconds between two signs of life
_GRACE = 5.0  # seconds that the first process, which holds the store, waits for the others when all end
_ALL = "are all started, with the same --coordinator and --processes? --processes 1 runs on this machine alone"
_STOPPED = 1  # exit code where others are at fault: the same command goes on from here


class ProcessLostError(AstroError):
    """Another process is not there. It is no fault of the input: the same command goes on from here."""


@dataclasses.dataclass
class _Group:
    index: int = 0
    count: int = 1
    timeout: float = TIMEOUT_SECONDS
    store: Any = None
    met: int = 0  # points so far
    ending: bool = False
    lock: Any = dataclasses.field(default_factory=threading.Lock)
    over: Any = dataclasses.field(default_factory=threading.Event)


_group = _Group()


def initialize(
    coordinator: str | None = None, count: int | None = None, index: int | None = None, timeout: float = TIMEOUT_SECONDS
) -> None:
    """Find the other processes, before the first use of a device.

    Args:
      coordinator: HOST:PORT of the first process, where it opens the store. count: of all processes. index: of this
        one, from 0. Without any of them, those of the TPU slice that this machine is part of, or none.
      timeout: seconds.

    Raises:
      AstroError: when only some are given, or they cannot be right, or the others are not found in time.
    """
    if _group.count > 1 or count == 1:
        return
    given = (coordinator, count, index)
    told = all(x is not None for x in given)
    if any(x is not None for x in given) and not told:
        raise AstroError("processes: --coordinator, --processes and --process are given together, or none of them")
    if not told and not on_tpu():
        return
    if count is not None and index is not None and not 0 <= index < count:
        raise AstroError(f"processes: --process {index} is not one of 0 to {count - 1}")
    import jax

    # JAX's own limits are longer: at them it aborts the process, without a word about this program.
    limit = int(timeout) + 60
    nobody = threading.Timer(timeout, _alone, (timeout,))
    nobody.daemon = True
    nobody.start()
    try:
        jax.distributed.initialize(
            coordinator, count, index, initialization_timeout=limit, heartbeat_timeout_seconds=limit
        )
    except (RuntimeError, ValueError, OSError) as e:
        if isinstance(e, ValueError) and not told:  # chips of a machine that is part of no slice, as in a notebook
            return
        raise AstroError(f"processes: the others were not found ({str(e).splitlines()[0]}); {_ALL}") from e
    finally:
        nobody.cancel()
    _join(timeout)


def _alone(timeout: float) -> NoReturn:
    print(f"astro: processes: not all were there within {timeout:g} s; {_ALL}", file=sys.stderr, flush=True)
    os._exit(_STOPPED)


def on_tpu() -> bool:
    """Whether this machine has TPU chips that JAX may use."""
    allowed = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu")
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(allowed and chips and importlib.util.find_spec("libtpu"))


def _join(timeout: float) -> None:
    from jax._src import distributed  # the store has no public name

    state = distributed.global_state
    if state.num_processes == 1:
        return
    _group.index, _group.count, _group.timeout = state.process_id, state.num_processes, timeout
    _group.store = state.client
    watch = threading.Thread(target=_watch, name="processes", daemon=True)
    watch.start()

    def leave() -> None:  # a thread that is inside the store when the interpreter ends would abort the process
        _group.over.set()
        watch.join()

    atexit.register(leave)


def is_main_process() -> bool:
    """Whether this process writes files and logs."""
    return _group.index == 0


def process_count() -> int:
    """How many processes run this program."""
    return _group.count


def process_index() -> int:
    """The number of this one, from 0."""
    return _group.index


def all_gather(point: str, value: Any = None) -> list[Any]:
    """What each process has at a point that all of them come to, in their order; JSON.

    Args:
      point: its name, for people, and to tell that all are at the same one.

    Raises:
      AstroError: when another process is at another point.
      ProcessLostError: when it comes to none within the timeout.
    """
    if _group.count == 1:
        return [value]
    store, n = _group.store, _group.met
    _group.met += 1
    store.key_value_set(f"astro/at/{n}/{_group.index}", json.dumps([point, value]))
    every = [_get(n, other, point) for other in range(_group.count)]
    for other, (theirs, _) in enumerate(every):
        if theirs != point:
            raise AstroError(
                f"processes: {_name(other)} is at {theirs!r} where this one is at {point!r}: do all run the same "
                "program, on the same files?"
            )
    if n:  # all have read what came before
        store.key_value_delete(f"astro/at/{n - 1}/{_group.index}")
    return [value for _, value in every]


def assert_equal_across_processes(point: str, value: Any = None) -> None:
    """Wait for all processes, and check that they have the same.

    Raises:
      AstroError: as `all_gather`, and when they do not.
    """
    every = all_gather(point, value)
    for other, theirs in enumerate(every):
        if theirs != (mine := every[_group.index]):
            raise AstroError(
                f"processes: at {point!r} {_name(other)} has {theirs!r}, {_name(_group.index)} has {mine!r}: do all "
                "run the same program, on the same files?"
            )


def _get(n: int, other: int, point: str) -> Any:
    try:
        return json.loads(_group.store.blocking_key_value_get(f"astro/at/{n}/{other}", int(1000 * _group.timeout)))
    except RuntimeError as e:
        raise ProcessLostError(
            f"processes: {_name(other)} did not come to {point!r} within {_group.timeout:g} s ({str(e)[:80]})"
        ) from e


def exit_all(code: int, message: str) -> NoReturn:
    """End this process after an error, and let the others know. JAX's own way out waits for them first."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _group.count > 1:
        _say(code, message)
        until = time.monotonic() + _GRACE
        while is_main_process() and time.monotonic() < until and any("code" not in s for s in _signs().values()):
            time.sleep(_BEAT / 5)
    os._exit(code)


def silent_processes() -> str:
    """The processes that say nothing, for a message; empty where all do."""
    before = _signs()
    time.sleep(4 * _BEAT)
    return _names(i for i, sign in _signs().items() if sign == before.get(i) and i != _group.index)


def _watch() -> None:
    """Say that this process lives; end it when another has failed, or has said nothing for too long."""
    heard: dict[int, tuple[Any, float]] = {}
    for beat in range(sys.maxsize):
        try:
            _say(None, "", beat)
            signs = _signs()
        except Exception:  # the first process is gone; JAX ends this one
            return
        now = time.monotonic()
        for other, sign in signs.items():
            if heard.get(other, (None, 0.0))[0] != sign:
                heard[other] = (sign, now)
        failed = [(i, s) for i, s in signs.items() if "code" in s and i != _group.index]
        silent = [i for i, (_, since) in heard.items() if now - since > _group.timeout]
        if not _group.ending and (failed or silent):
            if failed:
                i, sign = failed[0]
                told, code = f"{_name(i)} failed: {sign['message']}", sign["code"]
            else:
                told, code = f"{_names(silent)} has said nothing for {_group.timeout:g} s", _STOPPED
            print(f"astro: {told}; {_name(_group.index)} ends", file=sys.stderr, flush=True)
            exit_all(code, told)
        if _group.over.wait(_BEAT):
            return


def _say(code: int | None, message: str, beat: int = 0) -> None:
    sign: dict[str, Any] = {"host": _host(), "beat": beat}
    with _group.lock:
        if code is not None:
            _group.ending = True
            sign |= {"code": code, "message": message}
        elif _group.ending:  # the last word stands
            return
        _group.store.key_value_set(f"astro/lives/{_group.index}", json.dumps(sign), allow_overwrite=True)


def _signs() -> dict[int, dict[str, Any]]:
    found = _group.store.key_value_dir_get("astro/lives/")
    return {int(key.rpartition("/")[2]): json.loads(sign) for key, sign in found}


def _name(i: int) -> str:
    host = _signs().get(i, {}).get("host", "")
    return f"process {i} of {_group.count}" + (f" ({host})" if host else "")


def _names(which: Any) -> str:
    return ", ".join(map(_name, which))


@functools.cache
def _host() -> str:
    return socket.gethostname()
