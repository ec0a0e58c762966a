"""A run of three processes, interrupted again and again at random moments, gives the bytes of an undisturbed run."""

import contextlib
import random
import signal
import time
from collections import Counter

import pytest
import yaml
from forked_cli import AstroProcess, full_disk, group_flags
from micro_run import MICRO, products

NUM_PROCESSES = 3
NUM_INTERRUPTIONS = 100
TIMEOUT = 4  # seconds without a heartbeat after which a process is lost
LIMIT = 60  # seconds in which all processes end after one was interrupted: the timeout, and a save after SIGTERM
FULL_DISK = "full disk"
KINDS = ("SIGKILL", "SIGSTOP", "SIGTERM", FULL_DISK)
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


def start(out, config, prepare=None):
    """Start the processes of a run. prepare: called in each."""
    command = ["run", str(config), f"out={out}", f"--timeout={TIMEOUT}", f"--start-timeout={LIMIT}"]
    return [
        AstroProcess([*command, *flags], out.with_name(f"{out.name}-{i}.log"), prepare)
        for i, flags in enumerate(group_flags(NUM_PROCESSES))
    ]


def interrupt(processes, kind, index, seconds):
    """Wait, and send the signal `kind` to one process. Return the exit codes of all, which end within LIMIT.

    With a full disk wait for the first end.
    """
    until = time.monotonic() + seconds
    while (kind == FULL_DISK or time.monotonic() < until) and all(p.is_alive for p in processes):
        time.sleep(0.05)
    if kind != FULL_DISK:
        with contextlib.suppress(ProcessLookupError):
            processes[index].send_signal(signal.Signals[kind])
    since, codes = time.monotonic(), []
    for process in processes:
        if not (kind == "SIGSTOP" and process is processes[index]):
            codes.append(process.wait()[0])
    assert time.monotonic() - since < LIMIT, processes[0].output
    processes[index].kill()
    processes[index].wait()
    return codes


def undisturbed(out, config):
    """Start the processes of a run, wait for their end, and return the products."""
    ends = [process.wait() for process in start(out, config)]
    assert [code for code, _ in ends] == [0] * NUM_PROCESSES, ends[0][1]
    return products(out)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_random_interruptions_of_three_processes_change_no_byte(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(RUN))
    # One process would round the sums of three devices in another order.
    expected, rng = undisturbed(tmp_path / "undisturbed", config), random.Random(0)
    interruptions, finished = Counter(), 0
    while interruptions.total() < NUM_INTERRUPTIONS:
        out = tmp_path / f"run-{finished}"
        kind, index = rng.choice(KINDS), rng.randrange(NUM_PROCESSES)
        processes = start(out, config, full_disk if kind == FULL_DISK else None)
        codes = interrupt(processes, kind, index, rng.uniform(1, 20))
        if any(codes):
            interruptions[kind] += 1
        else:
            assert products(out) == expected
            finished += 1
        print(f"{sum(interruptions.values())} {kind} of process {index}: {codes}; {finished} runs finished")
    assert undisturbed(tmp_path / f"run-{finished}", config) == expected
