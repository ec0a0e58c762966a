"""Several processes that run one program. They are real ones here, on CPU devices, two in each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
import yaml
from etils import epath
from micro_run import MICRO, products

from astro_jax import config as cfg
from astro_jax import distributed, pipeline, storage
from astro_jax.cli import main
from astro_jax.errors import AstroError
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier
from astro_jax.verify.pool import Outcome

RUN = {
    **MICRO,
    "mesh": dict(fsdp=2, tp=2),
    "architecture": {**MICRO["architecture"], "n_kv_heads": 2},
    "pretrain": {**MICRO["pretrain"], "save_every": 50},
    "sft": {**MICRO["sft"], "batch": 4, "save_every": 1},
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """(out, *more) -> the command of a run of four devices; all runs share their compiled programs."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    yield lambda out, *more: [sys.executable, "-m", "astro_jax", "run", f"{folder}/run.yaml", f"out={out}", *more]
    del os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def start(commands, timeout=60):
    """Processes that know each other, each with its own command."""
    port, n = free_port(), len(commands)
    return [
        subprocess.Popen(
            [*command, f"--coordinator=localhost:{port}", f"--processes={n}", f"--process={i}", f"--timeout={timeout}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i, command in enumerate(commands)
    ]  # fmt: skip


def ended(started):
    """(exit code, output) of each."""
    outputs = [p.communicate(timeout=300)[0] for p in started]
    return [(p.returncode, output) for p, output in zip(started, outputs, strict=True)]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The run of one process with four devices."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = subprocess.run(command(out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_two_processes_give_the_run_of_one_and_go_on_after_one_was_killed(command, alone, tmp_path):
    """The same trees, traces, figures and answers to the byte, also where the second process was killed in training
    and the run was taken up by both again. The survivor names it, and does not wait for the timeout."""
    out = tmp_path / "run"
    started = start([command(out)] * 2)
    wait_for(out / "direct-sft" / "metrics.jsonl", started[0])
    started[1].send_signal(signal.SIGKILL)
    (code, output), _ = ended(started)
    assert code == 1 and "process 1 of 2" in output and "the same command goes on from here" in output, output
    again = ended(start([command(out)] * 2))
    assert [code for code, _ in again] == [0, 0], again
    assert "report:" in again[0][1] and "report:" not in again[1][1]  # one process logs
    assert products(out) == products(alone)


def test_a_first_process_that_is_killed_is_named(command, tmp_path):
    """In JAX's words: it aborts the others in the moment in which the store is lost."""
    started = start([command(tmp_path / "run")] * 2)
    wait_for(tmp_path / "run" / "base" / "metrics.jsonl", started[0])
    started[0].send_signal(signal.SIGKILL)
    _, (code, output) = ended(started)
    assert code != 0 and "leader task" in output, output


def test_a_silent_process_is_named_after_the_timeout(command, tmp_path):
    """One that was stopped, as by a machine that hangs: its connections stay open."""
    started = start([command(tmp_path / "run")] * 2, timeout=4)
    wait_for(tmp_path / "run" / "base" / "metrics.jsonl", started[0])
    started[1].send_signal(signal.SIGSTOP)
    output, _ = started[0].communicate(timeout=60)
    started[1].kill()
    started[1].communicate()
    assert started[0].returncode == 1
    assert "process 1 of 2" in output and "has said nothing for 4 s" in output, output


def test_processes_of_different_configs_stop_before_anything_is_written(command, tmp_path):
    out = tmp_path / "run"
    found = ended(start([command(out), command(out, "seed=1")]))
    assert [code for code, _ in found] == [2, 2]
    assert all("the run's configuration" in output and "process 1 of 2" in output for _, output in found), found
    assert not out.exists()


def test_a_process_that_fails_alone_is_heard_by_the_others(command, tmp_path):
    """The second has a config that cannot be read: the first does not wait for it."""
    out = tmp_path / "run"
    (code, output), (other, _) = ended(start([command(out), command(out, "sft.no_such=1")]))
    assert (code, other) == (2, 2) and "process 1 of 2" in output and "no_such" in output, output


def test_a_process_that_never_starts_is_waited_for_no_longer_than_the_timeout(command, tmp_path):
    port = free_port()
    one = [*command(tmp_path / "run"), f"--coordinator=localhost:{port}", "--processes=2", "--process=0", "--timeout=3"]
    done = subprocess.run(one, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "processes: not all were there within 3 s" in done.stderr, done.stderr


# ---- Alone, and bad input


def test_alone_there_is_nobody_to_meet():
    assert distributed.is_main_process() and distributed.process_count() == 1
    assert distributed.all_gather("here", [1]) == [[1]]
    distributed.assert_equal_across_processes("here", object())  # nothing is written down


@pytest.mark.parametrize("flags", [["--process=0"], ["--coordinator=x:1", "--processes=2"], ["--processes=2"]])
def test_half_of_the_flags_is_an_error(flags, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**MICRO, "out": str(tmp_path / "run")}))
    assert main(["run", str(config), *flags]) == 2
    assert "are given together" in capsys.readouterr().err


def test_a_profile_is_served_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(jax.profiler, "start_server", asked.append)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**MICRO, "out": str(tmp_path / "run")}))
    for flags in ([], ["--profile", "9012"]):
        assert main(["eval", str(config), *flags]) == 2  # nothing was trained
    assert asked == [9012]


def test_a_process_that_is_lost_is_not_bad_input(tmp_path, monkeypatch, capsys):
    """Launchers start such a run again, and leave one that refuses its input."""

    def lost(*_, **__):
        raise distributed.ProcessLostError("process 1 of 2 did not come")

    monkeypatch.setattr(pipeline, "execute", lost)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**MICRO, "out": str(tmp_path / "run")}))
    assert main(["eval", str(config)]) == 1
    assert capsys.readouterr().err == "astro: process 1 of 2 did not come\n"


def test_a_number_that_is_not_one_of_the_processes_is_an_error():
    with pytest.raises(AstroError, match="--process 2 is not one of 0 to 1"):
        distributed.initialize("localhost:1", 2, 2)


@pytest.mark.parametrize("allowed, expected", [("cpu", False), ("", True), ("tpu", True)])
def test_a_tpu_slice_is_looked_for_only_where_jax_may_use_chips(allowed, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", allowed)
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert distributed.on_tpu() is expected


@pytest.fixture
def chips(monkeypatch):
    """A machine with chips, where JAX is asked to find the others by itself; returns what it was asked."""
    asked = []
    monkeypatch.setattr(distributed, "on_tpu", lambda: True)
    monkeypatch.setattr(distributed, "_join", lambda timeout: asked.append("joined"))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *who, **limits: asked.append(who))
    return asked


def test_on_a_slice_the_others_are_found_by_jax_itself(chips):
    distributed.initialize()
    assert chips == [(None, None, None), "joined"]


def test_one_process_of_a_slice_can_be_alone(chips):
    distributed.initialize(count=1)
    assert chips == []


def test_chips_of_a_machine_that_is_part_of_no_slice_are_used_alone(chips, monkeypatch):
    def nobody(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    distributed.initialize()
    assert chips == [] and distributed.process_count() == 1
    with pytest.raises(AstroError, match="the others were not found"):
        distributed.initialize("localhost:1", 2, 0)


# ---- Meeting, with a store of this process


class Store:
    """The part of the coordination service's store that is used: a key that is not there is never waited for."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_delete(self, key):
        del self.values[key]

    def blocking_key_value_get(self, key, _):
        if key not in self.values:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return self.values[key]

    def key_value_dir_get(self, folder):
        return [(k, v) for k, v in self.values.items() if k.startswith(folder)]


@pytest.fixture
def second(monkeypatch):
    """This process is the second of three."""
    group = distributed._Group(index=1, count=3, timeout=1, store=Store())
    monkeypatch.setattr(distributed, "_group", group)
    return group


def put(group, n, other, point, value):
    group.store.values[f"astro/at/{n}/{other}"] = json.dumps([point, value])


def test_all_have_what_each_brings_in_order(second):
    put(second, 0, 0, "a", "first")
    put(second, 0, 2, "a", "third")
    assert distributed.all_gather("a", "second") == ["first", "second", "third"]


def test_what_was_read_by_all_is_deleted(second):
    for n in range(3):
        for other in (0, 2):
            put(second, n, other, "a", None)
        distributed.assert_equal_across_processes("a")
    assert [key for key in second.store.values if key.endswith("/1")] == ["astro/at/2/1"]


def test_another_decision_is_named(second):
    put(second, 0, 0, "a", 1)
    put(second, 0, 2, "a", 2)
    with pytest.raises(AstroError, match=r"at 'a' process 2 of 3 has 2, process 1 of 3 has 1"):
        distributed.assert_equal_across_processes("a", 1)


def test_another_way_is_named(second):
    put(second, 0, 0, "a", 1)
    put(second, 0, 2, "b", 1)
    with pytest.raises(AstroError, match=r"process 2 of 3 is at 'b' where this one is at 'a'"):
        distributed.assert_equal_across_processes("a", 1)


def test_one_that_does_not_come_is_named(second):
    put(second, 0, 0, "a", 1)
    with pytest.raises(distributed.ProcessLostError, match=r"process 2 of 3 did not come to 'a' within 1 s"):
        distributed.assert_equal_across_processes("a", 1)


def test_what_one_process_writes_alone_asks_no_other(second, tmp_path, monkeypatch):
    """As the first one does with `astro traces --out`, when the others have ended."""
    monkeypatch.setattr(second, "index", 0)
    with storage.new_folder(epath.Path(tmp_path) / "new") as part:
        (part / "a").write_text("whole")
    assert (tmp_path / "new" / "a").read_text() == "whole" and not second.store.values


def test_each_process_judges_a_part_and_all_have_every_verdict(second, monkeypatch):
    """Five answers: this process has its workers judge the second and the last. What came to the others is taken as it
    is, a timeout too: no two processes may differ in it."""
    golds = ["1", "2", "3", "4", "5"]
    responses = [Response(Problem(g, g, g, {}, "math"), f"\\boxed{{{g}}}", True) for g in golds]
    put(second, 0, 0, "verdicts", [[0.1, "Graded", ["1", True, True, "1"]], [0.1, "Graded", ["7", False, False, "7"]]])
    put(second, 0, 2, "verdicts", [[5.0, "Timeout", ""]])
    verifier = Verifier(cfg.Verify(num_workers=1))
    asked = []
    ask = verifier.pool.ask

    def counted(questions: list) -> list[Outcome]:
        asked.extend(arguments[0] for _, arguments in questions)
        return ask(questions)

    monkeypatch.setattr(verifier.pool, "ask", counted)
    try:
        verdicts = verifier.judge(responses)
    finally:
        verifier.close()
    assert asked == ["2", "5"]
    assert [v.status for v in verdicts] == ["correct", "correct", "timeout", "wrong", "correct"]
    mine = json.loads(second.store.values["astro/at/0/1"])[1]
    assert [kind for _, kind, _ in mine] == ["Graded", "Graded"]
