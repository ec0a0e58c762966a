"""launch/worker.sh: the commands on one host of a slice."""

import shutil
import subprocess

import pytest
from fake_cloud import ROOT


def test_worker_runs_one_command_at_a_time_and_keeps_its_exit_code(tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "worker.sh", tmp_path / "launch")

    def worker(*words):
        command = ["bash", tmp_path / "launch" / "worker.sh", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    def wait_for(end):
        for _ in range(200):
            if (status := worker("status")).endswith(end):
                return
            subprocess.run(["sleep", "0.05"], check=True)
        raise AssertionError(status)

    assert worker("status").endswith("not started")
    fifo = tmp_path / "go"
    subprocess.run(["mkfifo", fifo], check=True)
    worker("start", "bash", "-c", 'read -r <"$0"; echo "received $REPLY"; exit 3', str(fifo))
    assert worker("status").endswith("running")
    worker("start", "echo", "a second one")
    fifo.write_text("go on\n")
    wait_for("ended 3")
    assert (tmp_path / "run.log").read_text() == "received go on\n"
    worker("start", "true")
    wait_for("ended 0")
    assert worker("status", "true").endswith("ended 0")
    assert worker("status", "astro", "run").endswith("not started")  # another command has ended
    worker("stop")  # nothing runs
    worker("start", "bash", "-c", "trap '' HUP; sleep 60 & wait")
    assert worker("status").endswith("running")
    worker("stop")  # ends the children too
    assert not worker("status").endswith("running")


@pytest.mark.parametrize("old", [True, False])
def test_worker_setup_installs_a_newer_python_when_the_image_has_3_10(tmp_path, old):
    """The images of TPU VMs have Python 3.10."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "worker.sh", tmp_path / "launch")
    fakes = {
        tmp_path / "launch" / "setup.sh": 'echo "setup $*" >>"$HOME/calls"',
        tmp_path / "python3": f'[[ $1 != -c ]] || exit {int(old)}; echo "python3 $*" >>"$HOME/calls"',
        tmp_path / "uv": 'echo "uv $*" >>"$HOME/calls"',
    }
    for path, text in fakes.items():
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["bash", tmp_path / "launch" / "worker.sh", "setup"], env=env, check=True, timeout=30)
    install = ["python3 -m pip install -q --user uv", "uv python install -q 3.12"]
    assert (tmp_path / "calls").read_text().splitlines() == install * old + ["setup requirements-tpu.lock"]
