"""A run of three processes, interrupted again and again at random moments, gives the bytes of an undisturbed run."""

import contextlib
import random
import signal
import time
from collections import Counter

import bucket_server
import pytest
import yaml
from forked_cli import assert_success, full_disk, start_group
from micro_run import MICRO, products

NUM_PROCESSES = 3
NUM_INTERRUPTIONS = {"disk": 75, "bucket": 25}
TIMEOUT = 4  # seconds without a heartbeat after which a process is lost
LIMIT = 60  # seconds in which all processes end after one was interrupted: the timeout, and a save after SIGTERM
START_LIMIT = 120  # seconds to start in: in a bucket the lock of a killed process holds for 25 of them
SIGNALS = ("SIGKILL", "SIGSTOP", "SIGTERM")
FULL_DISK = "full disk"  # in each process
FAULTS = {"refusal": dict(status=503), "delay": dict(delay=2)}  # of each request, for a minute
KINDS = {"disk": (*SIGNALS, FULL_DISK), "bucket": (*SIGNALS, *FAULTS)}
RUN = {
    **MICRO,
    "stages": ["base", "search", "traces", "direct-sft", "direct-rl", "eval", "report"],
    "mesh": dict(data=NUM_PROCESSES),
    "sampler": {**MICRO["sampler"], "max_num_seqs": 6},
    "corpus": {**MICRO["corpus"], "documents": 4000},
    "pretrain": {**MICRO["pretrain"], "batch_size": 15, "save_steps": 20},
    "sft": {**MICRO["sft"], "batch_size": 3, "save_steps": 1},
    "grpo": {**MICRO["grpo"], "prompts_per_step": 3, "max_steps": 6},
}


def start(out, config, log, prepare=None):
    """Start the processes of a run. prepare: called in each."""
    command = ["run", str(config), f"out={out}", f"--timeout={TIMEOUT}", f"--start-timeout={START_LIMIT}"]
    return start_group(NUM_PROCESSES, command, log, prepare)


def interrupt(processes, kind, index, seconds, server):
    """Wait, and send the signal `kind` to one process, or let the bucket fail for a minute.

    After a signal, and after the first end on a full disk, all processes end within LIMIT. A bucket that fails need not
    end them.

    Returns:
      (whether all processes were alive until then, their exit codes).
    """
    until = time.monotonic() + seconds
    while (kind == FULL_DISK or time.monotonic() < until) and all(p.is_alive for p in processes):
        time.sleep(0.05)
    were_alive = all(p.is_alive for p in processes)
    if kind in FAULTS:
        server.fail(60, **FAULTS[kind])
        codes = [process.wait()[0] for process in processes]
        server.fail(0)
        assert set(codes) <= {0, 1}, processes[0].output  # 2 would end the launchers' attempts
        return were_alive, codes
    if kind in SIGNALS:
        with contextlib.suppress(ProcessLookupError):
            processes[index].send_signal(signal.Signals[kind])
    since = time.monotonic()
    codes = [process.wait()[0] for process in processes if not (kind == "SIGSTOP" and process is processes[index])]
    assert time.monotonic() - since < LIMIT, processes[0].output
    processes[index].kill()
    processes[index].wait()
    return were_alive, codes


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("place", KINDS)
def test_random_interruptions_of_three_processes_change_no_byte(place, tmp_path):
    if place == "bucket":
        pytest.importorskip("gcsfs", reason="extra `plan` (gcsfs) is not installed")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(RUN))
    # One process would round the sums of three devices in another order.
    assert_success(start(tmp_path / "undisturbed", config, tmp_path / "undisturbed"))
    expected, rng = products(tmp_path / "undisturbed"), random.Random(0)
    parent = f"gs://{bucket_server.BUCKET}" if place == "bucket" else str(tmp_path)
    interruptions, finished = Counter(), 0

    def assert_finished(name):
        folder = server.download(tmp_path / "bucket") if place == "bucket" else tmp_path
        assert products(folder / name) == expected

    with bucket_server.serve() as server:
        prepare = server.prepare() if place == "bucket" else None
        while interruptions.total() < NUM_INTERRUPTIONS[place]:
            name, kind, index = f"run-{finished}", rng.choice(KINDS[place]), rng.randrange(NUM_PROCESSES)
            processes = start(f"{parent}/{name}", config, tmp_path / name, full_disk if kind == FULL_DISK else prepare)
            were_alive, codes = interrupt(processes, kind, index, rng.uniform(1, 20), server)
            if any(codes) or (kind in FAULTS and were_alive):
                interruptions[kind] += 1
            if not any(codes):
                assert_finished(name)
                finished += 1
            print(f"{interruptions.total()} {kind} of process {index}: {codes}; {finished} runs finished")
        name = f"run-{finished}"
        assert_success(start(f"{parent}/{name}", config, tmp_path / name, prepare))
        assert_finished(name)
