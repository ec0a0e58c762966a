"""Fakes of gcloud, kubectl, xpk, sky and ssh, for the tests of the launchers. One command may fail, hang or lie."""

import hashlib
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "launch" / "tpu.env.example").read_text()
TOOLS = ("gcloud", "kubectl", "xpk", "sky", "git", "ssh-keygen", "ssh-add", "astro")

# A slice of four workers. `slice` holds its state, `run` that of the run. `calls` records all calls with the tool's
# name. `fault` holds a part of a command line, how the command misbehaves, and how often it still does:
#   fail   the command fails                        late   the command has its effect, and fails
#   hang   the command never ends                   lie    the command says the opposite of what is so
FAKE = r"""#!/usr/bin/env bash
here=HERE
tool=${0##*/} line="$*"
echo "$tool $line" >>"$here/calls"
cd "$here"
fault=''
if [[ -e fault ]]; then
    { read -r part; read -r mode; read -r times; } <fault
    if [[ "$tool $line" == *"$part"* && $times -gt 0 ]]; then
        fault=$mode
        printf '%s\n%s\n%s\n' "$part" "$mode" "$((times - 1))" >fault
    fi
fi
[[ $fault != hang ]] || exec sleep 60
[[ $fault != fail ]] || { echo "ERROR: refused" >&2; exit 1; }
read -r slice <slice
read -r run <run
every() { printf 'w%s: '"$1"'\n' 0 1 2 3; }
next() {
    head -n 1 "$1"
    [[ $(wc -l <"$1") -eq 1 ]] || sed -i 1d "$1"
}
case "$tool $line" in
    *"queued-resources describe"*)
        if [[ -e states ]]; then slice=$(next states); fi
        if [[ $fault == lie ]]; then if [[ $slice == ACTIVE ]]; then slice=NONE; else slice=ACTIVE; fi; fi
        [[ $slice != NONE ]] || { echo "NOT_FOUND" >&2; exit 1; }
        echo "$slice"
        [[ $slice != WAITING_FOR_RESOURCES ]] || echo ACTIVE >slice
        ;;
    *"queued-resources create"*)
        [[ $slice == NONE || -e states ]] || { echo "ALREADY_EXISTS" >&2; exit 1; }
        [[ $fault == lie ]] || echo WAITING_FOR_RESOURCES >slice
        ;;
    *"queued-resources delete"*) [[ $fault == lie ]] || { echo NONE >slice; echo empty >run; } ;;
    *"worker.sh setup"*) [[ $fault == lie ]] || echo ready >run ;;
    *"worker.sh start"*)
        [[ $run != empty || -e workers ]] || exit 127
        [[ $fault == lie ]] || echo running >run
        ;;
    *"worker.sh status"*)
        if [[ -e workers ]]; then next workers | tr , '\n'; exit; fi
        if [[ $fault == lie ]]; then if [[ $run == running ]]; then every "ended 0"; else every running; fi; exit; fi
        case $run in
            empty) exit 127 ;;
            ready) every "not started" ;;
            running) every running && echo ended >run ;;
            ended) every "ended 0" ;;
        esac
        ;;
    "ssh-keygen "*) [[ $fault != lie ]] && echo "3072 SHA256:key user (RSA)" ;;
    "ssh-add "*) echo "3072 SHA256:key user (RSA)" ;;
    "git rev-parse --git-path"*) touch index && echo "$here/index" ;;
    "astro plan"*) cat plan ;;
    "kubectl "*" get jobset"*) [[ ! -e jobsets ]] || cat jobsets ;;
esac
[[ $fault != late ]] || { echo "ERROR: lost the connection" >&2; exit 1; }
"""


class Cloud:
    """A folder with fake tools that come first on PATH, a fake environment with astro, and a settings file."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "venv" / "bin").mkdir(parents=True)
        (folder / "bin").mkdir()
        for name in TOOLS:
            (folder / "bin" / name).write_text(FAKE.replace("HERE", str(folder / "bin")))
            (folder / "bin" / name).chmod(0o755)
        for name in ("astro", "python"):
            (folder / "venv" / "bin" / name).symlink_to(folder / "bin" / "astro")
        for lock in ("requirements.lock", "requirements-plan.lock"):  # setup.sh then finds a complete environment
            content = (ROOT / lock).read_bytes() + (ROOT / "pyproject.toml").read_bytes() + f"{ROOT}\n".encode()
            (folder / "venv" / f"{lock}.stamp").write_text(f"{hashlib.sha256(content).hexdigest()}  -\n")
        self.put(
            slice="NONE",
            run="empty",
            plan='{"recipe": {"total_hours": 11.5, "total_chip_hours": 184.0, "longest_total_hours": 999.5}}',
        )
        self.write_settings(SETTINGS)

    def put(self, **files):
        for name, text in files.items():
            (self.folder / "bin" / name).write_text(f"{text}\n")

    def write_settings(self, text):
        (self.folder / "tpu.env").write_text(text)

    def change(self, **changes):
        text = SETTINGS
        for key, value in changes.items():
            text = re.sub(rf"^{key}=.*$", lambda _, key=key, value=value: f"{key}={value}", text, flags=re.M)
        self.write_settings(text)

    def answer(self, **answers):
        """Set the answers about the slice (states) and about the run (workers), one a call; the last one repeats."""
        self.put(**{name: "\n".join(lines) for name, lines in answers.items()})

    def break_command(self, part, mode, times=1):
        """Let a command fail, hang or lie so many times; see FAKE."""
        self.put(fault=f"{part}\n{mode}\n{times}")

    def run(self, script, *words, limit="20"):
        command = ["bash", ROOT / "launch" / script, *words, "--settings", self.folder / "tpu.env"]
        env = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder), "ASTRO_POLL": "0.01",
            "ASTRO_LIMIT": limit, "ASTRO_VENV": str(self.folder / "venv"), "ASTRO_RUNS": str(self.folder),
            "ASTRO_MAX_UNKNOWN": "3",
        }  # fmt: skip
        return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60)

    @property
    def calls(self):
        path = self.folder / "bin" / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def slice(self):
        return (self.folder / "bin" / "slice").read_text().strip()


def steps(calls):
    """Return the steps of a run that the calls stand for, in order."""
    names = {
        "queued-resources create": "create", "queued-resources delete": "delete", " scp ": "setup",
        "worker.sh start": "run", "rsync": "fetch",
    }  # fmt: skip
    return [step for call in calls for text, step in names.items() if text in call]
