"""setup.sh and local.sh, with a fake Python that records its calls: the tests install nothing."""

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
    slow*" install "*) sleep 0.3 ;;
esac
"""


class Machine:
    """A copy of the files that setup.sh reads, and a PATH with a fake python3 and a few tools only."""

    def __init__(self, folder: Path):
        self.repo, self.venv, self.calls = folder / "repo", folder / "venv", folder / "calls"
        shutil.copytree(ROOT / "launch", self.repo / "launch")
        for path in [ROOT / "pyproject.toml", *ROOT.glob("requirements*.lock")]:
            shutil.copy(path, self.repo)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.add("python3")

    def add(self, name: str) -> None:
        (self.bin / name).write_text(FAKE_PYTHON)
        (self.bin / name).chmod(0o755)

    def start(self, *locks: str, fake: str = "", **variables: str) -> subprocess.Popen[str]:
        own = {"PATH": str(self.bin), "ASTRO_VENV": str(self.venv), "CALLS": str(self.calls), "FAKE": fake}
        return subprocess.Popen(
            ["bash", self.repo / "launch" / "setup.sh", *locks],
            env=own | variables,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def setup(self, *locks: str, fake: str = "", **variables: str) -> tuple[int, list[str]]:
        """Run setup.sh to its end. Returns the exit code and the printed lines."""
        process = self.start(*locks, fake=fake, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, (out + err).splitlines()

    def installs(self) -> int:
        """Return the number of lock files that pip has installed."""
        return self.calls.read_text().count(" --require-hashes ")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_is_executable(script: Path):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def test_second_setup_does_nothing(machine: Machine):
    code, lines = machine.setup()
    assert (code, len(lines), machine.installs()) == (0, 1, 1)
    calls = machine.calls.read_text()
    assert machine.setup() == (0, [])
    assert machine.calls.read_text() == calls


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_changed_file_is_installed_again(machine: Machine, name: str):
    machine.setup()
    with (machine.repo / name).open("a") as file:
        file.write("# changed\n")
    assert machine.setup()[0] == 0
    assert machine.installs() == 2


def test_second_lock_is_added_to_the_first(machine: Machine):
    machine.setup()
    assert machine.setup("requirements-plan.lock")[0] == 0
    assert machine.installs() == 2
    assert machine.setup() == (0, [])
    assert machine.setup("requirements-plan.lock") == (0, [])


@pytest.mark.parametrize(
    "answer, locks, variables, is_installed",
    [
        ("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)", (), {}, True),
        ("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)", (), {"JAX_PLATFORMS": "cpu"}, False),
        ("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)", ("requirements-plan.lock",), {}, False),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", (), {}, False),
    ],
)
def test_machine_with_an_nvidia_card_gets_jax_with_cuda(machine: Machine, answer, locks, variables, is_installed):
    (machine.bin / "nvidia-smi").write_text(f'#!/usr/bin/env bash\n[[ $* == -L ]] && echo "{answer}"\n')
    (machine.bin / "nvidia-smi").chmod(0o755)
    assert machine.setup(*locks, **variables)[0] == 0
    assert (machine.venv / "requirements-cuda.lock.stamp").exists() is is_installed
    assert machine.setup(*locks, **variables) == (0, [])


def test_failed_install_is_repeated(machine: Machine):
    assert machine.setup(fake="offline")[0] not in (0, 2)
    assert machine.setup()[0] == 0
    assert machine.installs() == 2


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_two_setups_at_once_install_once(machine: Machine):
    both = [machine.start(fake="slow"), machine.start(fake="slow")]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert machine.installs() == 1


def test_newest_working_python_is_used(machine: Machine):
    machine.add("python3.12")
    machine.add("python3.13")
    (machine.bin / "python3").unlink()
    (machine.bin / "python3.13").write_text(f"#!/usr/bin/env bash\necho 3.13 >>'{machine.calls}'\nexit 1\n")
    assert machine.setup()[0] == 0  # skips the broken python3.13
    assert machine.calls.read_text().startswith("3.13\n-c ")


def test_old_python_is_refused(machine: Machine):
    code, lines = machine.setup(fake="old")
    assert (code, len(lines)) == (2, 1)
    assert "Python 3.11" in lines[0]


def test_python_without_venv_and_pip_is_refused(machine: Machine):
    code, lines = machine.setup(fake="bare")
    assert (code, len(lines)) == (2, 1)
    assert "python3-venv" in lines[0]


# ---- local.sh: one run by several processes


def local(machine, *words, codes=(0, 0)):
    """Run local.sh with a fake `astro`: it prints its arguments, and process i ends with codes[i]."""
    machine.setup()
    for tool in ("sed", "sort"):
        (machine.bin / tool).symlink_to(shutil.which(tool))
    (machine.venv / "bin" / "python").write_text("#!/usr/bin/env bash\necho 4321\n")
    astro = machine.venv / "bin" / "astro"
    table = " ".join(map(str, codes))
    astro.write_text(
        f'#!/usr/bin/env bash\necho "$*"\necho "[Gloo] connected"\ncodes=({table})\nexit "${{codes[${{@: -1}}]}}"\n'
    )
    astro.chmod(0o755)
    return subprocess.run(
        ["bash", machine.repo / "launch" / "local.sh", *words],
        env={"PATH": str(machine.bin), "ASTRO_VENV": str(machine.venv), "CALLS": str(machine.calls), "FAKE": ""},
        cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_local_starts_all_processes_and_prefixes_their_output(machine):
    done = local(machine, "2", "run.yaml", "seed=3")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"{i}: run run.yaml seed=3 --coordinator localhost:4321 --processes 2 --process {i}" for i in range(2)
    ]


def test_local_names_failed_processes_with_their_exit_codes(machine):
    done = local(machine, "3", "run.yaml", codes=(0, 3, 137))
    assert done.returncode == 3
    assert "process 1 ended with exit code 3" in done.stderr and "process 2 ended with exit code 137" in done.stderr


@pytest.mark.parametrize("words", [[], ["2"], ["two", "run.yaml"], ["0", "run.yaml"]])
def test_local_with_wrong_arguments_prints_the_usage(words):
    done = subprocess.run(["bash", ROOT / "launch" / "local.sh", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("Usage: launch/local.sh N CONFIG")
