"""The launch scripts, with a Python that only notes how it is called: nothing is installed here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
TOOLS = ["awk", "bash", "cat", "cp", "dirname", "env", "flock", "mkdir", "rm", "sha256sum", "sleep"]

FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$FAKE $*" in
    old*" -c import sys;"* | bare*" -m venv "* | bare*" -m pip "* | offline*" install "*) exit 1 ;;
    *" -m venv "*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    *" install "*) sleep 0.3 ;;
esac
"""


class Machine:
    """A copy of what setup.sh reads, and a PATH with nothing on it but a fake python3 and a few tools."""

    def __init__(self, folder: Path):
        self.repo, self.venv, self.calls = folder / "repo", folder / "venv", folder / "calls"
        shutil.copytree(ROOT / "launch", self.repo / "launch")
        for name in ["pyproject.toml", "requirements.lock", "requirements-plan.lock"]:
            shutil.copy(ROOT / name, self.repo)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.add("python3")

    def add(self, name: str) -> None:
        (self.bin / name).write_text(FAKE_PYTHON)
        (self.bin / name).chmod(0o755)

    def start(self, *locks: str, fake: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", self.repo / "launch" / "setup.sh", *locks],
            env={"PATH": str(self.bin), "ASTRO_VENV": str(self.venv), "CALLS": str(self.calls), "FAKE": fake},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def setup(self, *locks: str, fake: str = "") -> tuple[int, list[str]]:
        """The exit code, and the lines that were printed."""
        process = self.start(*locks, fake=fake)
        out, err = process.communicate(timeout=60)
        return process.returncode, (out + err).splitlines()

    def installs(self) -> int:
        """How many times pip was asked to install a lock file."""
        return self.calls.read_text().count(" --require-hashes ")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def test_second_setup_does_nothing(machine: Machine):
    code, lines = machine.setup()
    assert (code, len(lines), machine.installs()) == (0, 1, 1)
    calls = machine.calls.read_text()
    assert machine.setup() == (0, [])
    assert machine.calls.read_text() == calls


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_changed_file_is_installed(machine: Machine, name: str):
    machine.setup()
    with (machine.repo / name).open("a") as file:
        file.write("# changed\n")
    assert machine.setup()[0] == 0
    assert machine.installs() == 2


def test_further_lock_is_added_to_the_first(machine: Machine):
    machine.setup()
    assert machine.setup("requirements-plan.lock")[0] == 0
    assert machine.installs() == 2
    assert machine.setup() == (0, [])
    assert machine.setup("requirements-plan.lock") == (0, [])


def test_failed_install_is_done_again(machine: Machine):
    assert machine.setup(fake="offline")[0] not in (0, 2)
    assert machine.setup()[0] == 0
    assert machine.installs() == 2


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_two_setups_at_once_install_once(machine: Machine):
    both = [machine.start(), machine.start()]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert machine.installs() == 1


def test_newest_python_is_taken(machine: Machine):
    machine.add("python3.12")
    machine.add("python3.13")
    (machine.bin / "python3").unlink()
    (machine.bin / "python3.13").write_text(f"#!/usr/bin/env bash\necho 3.13 >>'{machine.calls}'\nexit 1\n")
    assert machine.setup()[0] == 0  # a python3.13 that does not run is passed over
    assert machine.calls.read_text().startswith("3.13\n-c ")


def test_old_python_is_refused(machine: Machine):
    code, lines = machine.setup(fake="old")
    assert (code, len(lines)) == (2, 1)
    assert "Python 3.11" in lines[0]


def test_python_without_venv_and_pip_is_refused(machine: Machine):
    code, lines = machine.setup(fake="bare")
    assert (code, len(lines)) == (2, 1)
    assert "python3-venv" in lines[0]


# ---- One run by several processes


def local(machine, *words, codes=(0, 0)):
    """launch/local.sh with an `astro` that says what it was asked, and ends with a code of its own for each process."""
    machine.setup()
    for tool in ("sed", "sort"):
        (machine.bin / tool).symlink_to(shutil.which(tool))
    (machine.venv / "bin" / "python").write_text("#!/usr/bin/env bash\necho 4321\n")
    astro = machine.venv / "bin" / "astro"
    table = " ".join(map(str, codes))
    astro.write_text(
        f'#!/usr/bin/env bash\necho "$*"\necho "[Gloo] noise"\ncodes=({table})\nexit "${{codes[${{@: -1}}]}}"\n'
    )
    astro.chmod(0o755)
    return subprocess.run(
        ["bash", machine.repo / "launch" / "local.sh", *words],
        env={"PATH": str(machine.bin), "ASTRO_VENV": str(machine.venv), "CALLS": str(machine.calls), "FAKE": ""},
        cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_each_process_knows_the_others_and_its_lines_begin_with_its_number(machine):
    done = local(machine, "2", "run.yaml", "seed=3")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"{i}: run run.yaml seed=3 --coordinator localhost:4321 --processes 2 --process {i}" for i in range(2)
    ]


def test_a_process_that_fails_is_named_with_its_code(machine):
    done = local(machine, "3", "run.yaml", codes=(0, 3, 137))
    assert done.returncode == 3
    assert "process 1 ended with exit code 3" in done.stderr and "process 2 ended with exit code 137" in done.stderr


@pytest.mark.parametrize("words", [[], ["2"], ["two", "run.yaml"], ["0", "run.yaml"]])
def test_a_wrong_number_of_processes_prints_the_usage(machine, words):
    done = local(machine, *words)
    assert done.returncode == 2 and done.stderr.startswith("Usage: launch/local.sh N CONFIG")
