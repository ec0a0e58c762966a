"""Runs of several processes, on two CPU devices each; and the module's functions with a store in memory."""

import contextlib
import itertools
import json
import signal
import time

import jax
import pytest
import yaml
from etils import epath
from forked_cli import AstroProcess, full_disk, group_flags
from micro_run import MICRO, products

from astro_jax import config as cfg
from astro_jax import distributed, pipeline, storage
from astro_jax.cli import main
from astro_jax.errors import AstroError, TransientError, is_transient
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier
from astro_jax.verify.pool import Outcome
from astro_jax.verify.user_reward import UserReward

RUN = {
    **MICRO,
    "stages": ["base", "search", "traces", "direct-sft", "direct-rl", "eval", "report"],
    "mesh": dict(fsdp=2, tp=2),
    "sampler": {**MICRO["sampler"], "max_num_seqs": 4},
    "architecture": {**MICRO["architecture"], "n_kv_heads": 2},
    "corpus": {**MICRO["corpus"], "documents": 4000},
    "pretrain": {**MICRO["pretrain"], "save_steps": 50},
    "sft": {**MICRO["sft"], "batch_size": 4, "save_steps": 1},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start the processes of one run: start(out, count, *overrides, timeout=60)."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    numbers, started = itertools.count(), []

    def start(out, count, *overrides, timeout=60, prepare=None):
        """overrides: one list of key=value a process; none: all have the same config. prepare: in the main process."""
        group = []
        # Fewer lists than `count`: the last processes do not start.
        for i, (flags, changes) in enumerate(zip(group_flags(count), overrides or [[]] * count, strict=False)):
            command = ["run", f"{folder}/run.yaml", f"out={out}", *changes, *flags]
            command += [f"--timeout={timeout}", f"--start-timeout={timeout}"]
            group.append(AstroProcess(command, folder / f"{next(numbers)}.log", prepare if i == 0 else None))
        started.extend(group)
        return group

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def one_process_run(start, tmp_path_factory):
    """The folder of a run of one process with four devices."""
    out = tmp_path_factory.mktemp("one-process") / "run"
    (process,) = start(out, 1)
    code, output = process.wait()
    assert code == 0, output
    return out


def disk_is_full(start, out):
    """The main process cannot write its checkpoint."""
    first, second = start(out, 2, prepare=full_disk)
    (code, _), (other_code, other_output) = first.wait(120), second.wait(30)
    assert (code, other_code) == (1, 1) and "base: the last checkpoint was not written (" in other_output, other_output


def machine_hangs(start, out):
    """SIGSTOP to the second process."""
    first, second = start(out, 2, timeout=4)
    first.wait_for(out / "base" / "metrics.jsonl")
    second.send_signal(signal.SIGSTOP)
    code, output = first.wait(60)
    second.kill()
    assert code == 1 and "no heartbeat from process 1 of 2" in output and "for 4 s" in output, output


def stopped_by_sigterm(start, out, path, terminated):
    """SIGTERM to a process when a path is there. Both processes end with 143 within 30 seconds."""
    processes = start(out, 2)
    processes[0].wait_for(out / path)
    processes[terminated].send_signal(signal.SIGTERM)
    since = time.monotonic()
    (code, output), (other_code, other_output) = [process.wait(60) for process in processes]
    assert time.monotonic() - since < 30
    assert (code, other_code) == (143, 143), output + other_output
    return output


def second_process_gets_sigterm(start, out):
    output = stopped_by_sigterm(start, out, "base/checkpoints/100", 1)
    assert "stopped by SIGTERM" in output, output


def main_process_gets_sigterm(start, out):
    output = stopped_by_sigterm(start, out, "search/inputs.json", 0)
    # On a slow machine a program may still compile after 25 seconds, at the start of the search.
    assert "stopped by SIGTERM" in output or "ends without a save" in output, output


def main_process_is_killed(start, out):
    first, second = start(out, 2)
    first.wait_for(out / "direct-sft" / "metrics.jsonl")
    first.send_signal(signal.SIGKILL)
    code, output = second.wait()
    assert code != 0 and "leader task" in output, output  # JAX's own message: the store is lost with the main process


def second_process_is_killed(start, out):
    first, second = start(out, 2)
    first.wait_for(out / "direct-rl" / "metrics.jsonl")
    second.send_signal(signal.SIGKILL)
    code, output = first.wait()  # does not take the timeout
    assert code == 1 and "process 1 of 2" in output and "the same command" in output, output


@pytest.mark.slow
@pytest.mark.parametrize(
    "interruptions",
    [
        (disk_is_full, second_process_is_killed),
        pytest.param(
            (machine_hangs, second_process_gets_sigterm, main_process_gets_sigterm, main_process_is_killed),
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_interrupted_run_resumes_and_equals_the_run_of_one_process(interruptions, start, one_process_run, tmp_path):
    """Trees, traces, metrics and answers of a run by two processes, after each interruption started again by the same
    command, are bitwise equal to those of an undisturbed run."""
    out = tmp_path / "run"
    for interrupt in interruptions:
        interrupt(start, out)
    (code, output), (other_code, other_output) = [process.wait() for process in start(out, 2)]
    assert (code, other_code) == (0, 0), output + other_output
    assert "report:" in output and "report:" not in other_output  # only the main process logs
    assert products(out) == products(one_process_run)


def test_processes_with_different_configs_stop_before_they_write(start, tmp_path):
    out = tmp_path / "run"
    ends = [process.wait() for process in start(out, 2, [], ["seed=1"])]
    assert [code for code, _ in ends] == [2, 2]
    assert all("the run's configuration" in output and "process 1 of 2" in output for _, output in ends), ends
    assert not out.exists()


def test_error_of_one_process_ends_the_others(start, tmp_path):
    """The config of the second process is invalid. The first process does not wait for the timeout."""
    (code, output), (other_code, _) = [p.wait() for p in start(tmp_path / "run", 2, [], ["sft.no_such=1"])]
    assert (code, other_code) == (2, 2) and "process 1 of 2" in output and "no_such" in output, output


def test_process_that_does_not_start_is_an_error_after_the_timeout(start, tmp_path):
    (process,) = start(tmp_path / "run", 2, [], timeout=3)
    code, output = process.wait(60)
    assert code == 1 and "processes: not all connected within 3 s" in output, output


# ---- One process, and bad input


def test_single_process_needs_no_store():
    assert distributed.is_main_process() and distributed.process_count() == 1
    assert distributed.all_gather("here", [1]) == [[1]]
    distributed.assert_equal_across_processes("here", object())  # which is not JSON


@pytest.mark.parametrize("flags", [["--process=0"], ["--coordinator=x:1", "--processes=2"], ["--processes=2"]])
def test_incomplete_process_flags_are_an_error(flags, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**MICRO, "out": str(tmp_path / "run")}))
    assert main(["run", str(config), *flags]) == 2
    assert "set all of --coordinator, --processes and --process" in capsys.readouterr().err


def test_profile_flag_starts_the_profiler_server_and_leaves_the_number_of_cpu_devices_open(tmp_path, monkeypatch):
    servers = []
    monkeypatch.setattr(
        jax.profiler, "start_server", lambda port, requires_backend: servers.append((port, requires_backend))
    )
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**MICRO, "out": str(tmp_path / "run")}))
    for flags in ([], ["--profile", "9012"]):
        assert main(["eval", str(config), *flags]) == 2  # nothing was trained
    assert servers == [(9012, False)]


def test_lost_process_exits_with_1_and_not_2(tmp_path, monkeypatch, capsys):
    """Launchers restart a run after exit code 1, and give up after exit code 2 (bad input)."""

    def lost(*_, **__):
        raise distributed.ProcessLostError("process 1 of 2 is lost")

    monkeypatch.setattr(pipeline, "execute", lost)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**MICRO, "out": str(tmp_path / "run")}))
    assert main(["eval", str(config)]) == 1
    assert capsys.readouterr().err == "astro: process 1 of 2 is lost\n"


def test_process_index_out_of_range_is_an_error():
    with pytest.raises(AstroError, match="--process 2 is not one of 0 to 1"):
        distributed.initialize("localhost:1", 2, 2)


@pytest.mark.parametrize("allowed, expected", [("cpu", False), ("", True), ("tpu", True)])
def test_on_tpu_is_false_when_jax_may_not_use_the_chips(allowed, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", allowed)
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert distributed.on_tpu() is expected


@pytest.fixture
def tpu_calls(monkeypatch):
    """A machine with TPU chips. Records the calls that start the group of processes."""
    calls = []
    monkeypatch.setattr(distributed, "on_tpu", lambda: True)
    monkeypatch.setattr(distributed, "_join_group", lambda *_: calls.append("joined"))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *addresses, **limits: calls.append(addresses))
    return calls


def test_initialize_on_a_slice_lets_jax_detect_the_processes(tpu_calls):
    distributed.initialize()
    assert tpu_calls == [(None, None, None), "joined"]


def test_initialize_with_count_1_ignores_the_slice(tpu_calls):
    distributed.initialize(count=1)
    assert tpu_calls == []


def test_initialize_runs_one_process_on_chips_outside_of_a_slice(tpu_calls, monkeypatch):
    def no_slice(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", no_slice)
    distributed.initialize()
    assert tpu_calls == [] and distributed.process_count() == 1
    with pytest.raises(AstroError, match="cannot connect to the other processes") as explicit:
        distributed.initialize("localhost:1", 2, 0)
    assert not is_transient(explicit.value)
    with pytest.raises(TransientError, match="cannot connect to the other processes"):
        distributed.initialize(count=4)  # a host of a slice that does not find the others does not run alone


def test_slice_with_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "on_tpu", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax._src.distributed.global_state, "num_processes", 1)
    with pytest.raises(TransientError, match="processes: 1 of 4 found"):
        distributed.initialize(count=4)


# ---- Synchronization points, with a store in memory


class Store:
    """The used methods of the coordination service's store. A missing key is an error at once."""

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
def group(monkeypatch):
    """The state of the second of three processes."""
    group = distributed._ProcessGroup(index=1, count=3, start_timeout=1, store=Store())
    monkeypatch.setattr(distributed, "_group", group)
    return group


def put(group, point, index, name, value):
    group.store.values[f"astro/sync/{point}/{index}"] = json.dumps([name, value])


def test_all_gather_returns_the_values_in_process_order(group):
    put(group, 0, 0, "a", "first")
    put(group, 0, 2, "a", "third")
    assert distributed.all_gather("a", "second") == ["first", "second", "third"]


def test_waits_for_other_processes_are_counted(group, monkeypatch):
    get = group.store.blocking_key_value_get
    monkeypatch.setattr(group.store, "blocking_key_value_get", lambda *a: time.sleep(0.01) or get(*a))
    put(group, 0, 0, "a", 1)
    put(group, 0, 2, "a", 1)
    distributed.all_gather("a", 1)
    assert 0.03 <= distributed.waited_seconds() < 1


def test_entries_of_passed_points_are_deleted(group):
    for n in range(3):
        for other in (0, 2):
            put(group, n, other, "a", None)
        distributed.assert_equal_across_processes("a")
    assert [key for key in group.store.values if key.endswith("/1")] == ["astro/sync/2/1"]


def test_different_values_name_both_processes(group):
    put(group, 0, 0, "a", 1)
    put(group, 0, 2, "a", 2)
    with pytest.raises(AstroError, match=r"at 'a' process 2 of 3 has 2, process 1 of 3 has 1"):
        distributed.assert_equal_across_processes("a", 1)


def test_different_points_name_both_processes(group):
    put(group, 0, 0, "a", 1)
    put(group, 0, 2, "b", 1)
    with pytest.raises(AstroError, match=r"process 2 of 3 is at 'b', process 1 of 3 is at 'a'"):
        distributed.assert_equal_across_processes("a", 1)


def test_missing_process_is_named_after_the_timeout(group):
    put(group, 0, 0, "a", 1)
    with pytest.raises(distributed.ProcessLostError, match=r"process 2 of 3 did not reach 'a' within 1 s"):
        distributed.assert_equal_across_processes("a", 1)


def test_largest_number_of_all_processes(group):
    group.store.values |= {"astro/largest/a/0": "7", "astro/largest/a/2": "5"}
    assert distributed.largest_over_processes("a", 6, timeout=1) == 7 and group.store.values["astro/largest/a/1"] == "6"
    with pytest.raises(RuntimeError):
        distributed.largest_over_processes("b", 6, timeout=1)


def test_new_folder_does_not_synchronize(group, tmp_path, monkeypatch):
    """The main process calls new_folder for `astro traces --out`, when the other processes have ended."""
    monkeypatch.setattr(group, "index", 0)
    with storage.new_folder(epath.Path(tmp_path) / "new") as partial:
        (partial / "a").write_text("complete")
    assert (tmp_path / "new" / "a").read_text() == "complete" and not group.store.values


def test_each_process_judges_its_share_of_the_answers_and_gets_every_verdict(group, monkeypatch):
    """Five answers. This process judges the second and the last one. It takes the verdicts of the other processes as
    they are, also a timeout: the verdicts must be equal in every process."""
    golds = ["1", "2", "3", "4", "5"]
    responses = [Response(Problem(g, g, g, {}, "math"), f"\\boxed{{{g}}}", True) for g in golds]
    put(group, 0, 0, "verdicts", [[0.1, "Grade", ["1", True, True, "1"]], [0.1, "Grade", ["7", False, False, "7"]]])
    put(group, 0, 2, "verdicts", [[5.0, "Timeout", ""]])
    verifier = Verifier(cfg.Verify(num_workers=1))
    judged_here = []
    ask = verifier.pool.run

    def counted(questions: list) -> list[Outcome]:
        judged_here.extend(arguments[0] for _, arguments in questions)
        return ask(questions)

    monkeypatch.setattr(verifier.pool, "run", counted)
    try:
        verdicts = verifier.judge(responses)
    finally:
        verifier.close()
    assert judged_here == ["2", "5"]
    assert [v.status for v in verdicts] == ["correct", "correct", "timeout", "wrong", "correct"]
    sent = json.loads(group.store.values["astro/sync/0/1"])[1]
    assert [kind for _, kind, _ in sent] == ["Grade", "Grade"]


@pytest.fixture
def user_reward(tmp_path):
    """Rewards a completion with its length, and an empty completion not at all."""
    path = tmp_path / "lengths.py"
    path.write_text("def reward(completions, **columns): return [len(c) if c else None for c in completions]")
    with contextlib.closing(UserReward(f"{path}:reward", ("completions",), 20.0, num_workers=1)) as user_reward:
        yield user_reward


def test_each_process_rewards_its_share_of_the_groups_and_gets_every_reward(group, user_reward):
    """Five groups. This process rewards the second and the last one. Each process sends pairs of group and rewards."""
    put(group, 0, 0, "rewards", [[0, [0.5, None]], [3, [7.0, 7.0]]])
    put(group, 0, 2, "rewards", [[2, [9.0, 9.0]]])
    groups = [{"completions": [n * "x", (n - 1) * "x"]} for n in range(5)]
    assert user_reward.score(groups) == [[0.5, None], [1.0, None], [9.0, 9.0], [7.0, 7.0], [4.0, 3.0]]
    assert json.loads(group.store.values["astro/sync/0/1"])[1] == [[1, [1.0, None]], [4, [4.0, 3.0]]]


def test_an_error_of_a_reward_in_one_process_is_raised_in_all(group, user_reward):
    put(group, 0, 0, "rewards", [[0, [0.5, None]]])
    put(group, 0, 2, "rewards", "grpo.reward=lengths.py:reward: returned 1 rewards for 2 completions")
    with pytest.raises(AstroError, match="returned 1 rewards for 2 completions"):
        user_reward.score([{"completions": ["a", "b"]}] * 3)


def test_different_reward_files_in_two_processes_are_refused(group, user_reward):
    put(group, 0, 0, f"grpo.reward={user_reward.entry_point}", "another file")
    put(group, 0, 2, f"grpo.reward={user_reward.entry_point}", "another file")
    with pytest.raises(AstroError, match=r"at 'grpo.reward=.*lengths.py:reward' process 0 of 3 has 'another file'"):
        user_reward.check()
