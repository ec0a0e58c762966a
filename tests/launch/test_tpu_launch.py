"""The launchers for TPU slices, with fake cloud tools that record their calls."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from astro_jax import cli

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "launch" / "tpu.env.example").read_text()
TOOLS = ("gcloud", "kubectl", "xpk", "sky")

# A tool that records its calls. Its answers come from files in its folder, one line a call; the last line repeats.
FAKE = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "$(basename "$0") $*" >>"$here/calls"
[[ ! -e $here/refuse || "$*" != *"$(cat "$here/refuse")"* ]] || {
    [[ ! -e $here/once ]] || rm "$here/refuse"
    echo "ERROR: refused" >&2
    exit 1
}
next() {
    head -n 1 "$here/$1"
    [[ $(wc -l <"$here/$1") -eq 1 ]] || sed -i 1d "$here/$1"
}
case "$*" in
    *" describe "*) state=$(next states); [[ $state != NONE ]] || { echo "NOT_FOUND" >&2; exit 1; }; echo "$state" ;;
    *"worker.sh status"*) next workers | tr , '\\n' ;;
esac
"""


class Cloud:
    """A folder with fake tools that come first on PATH, and a settings file."""

    def __init__(self, folder):
        self.folder = folder
        for name in TOOLS:
            (folder / name).write_text(FAKE)
            (folder / name).chmod(0o755)
        (folder / "git").symlink_to("/bin/true")  # makes no archive
        self.write_settings(SETTINGS)
        self.answer(states=["ACTIVE"], workers=["a: ended 0,b: ended 0,c: ended 0,d: ended 0"])

    def write_settings(self, text):
        (self.folder / "tpu.env").write_text(text)

    def change(self, **changes):
        text = SETTINGS
        for key, value in changes.items():
            text = re.sub(rf"^{key}=.*$", lambda _, key=key, value=value: f"{key}={value}", text, flags=re.M)
        self.write_settings(text)

    def answer(self, **answers):
        """Set the answers about the slice (states) and about the run (workers), one a call."""
        for name, lines in answers.items():
            (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def run(self, script, *words):
        command = ["bash", ROOT / "launch" / script, *words, "--settings", self.folder / "tpu.env"]
        env = {"PATH": f"{self.folder}:/usr/bin:/bin", "ASTRO_POLL": "0.01", "HOME": str(self.folder)}
        return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60)

    @property
    def calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def steps(calls):
    """Return the steps of a run that the calls stand for, in order."""
    names = {" create ": "create", " delete ": "delete", " scp ": "setup", "worker.sh start": "run", "rsync": "fetch"}
    return [step for call in calls for text, step in names.items() if text in call]


# ---- Dry runs


@pytest.mark.parametrize("verb", ["create", "wait", "setup", "run", "status", "tail", "retry", "fetch", "delete"])
def test_dry_run_prints_commands_and_runs_none(cloud, verb):
    done = cloud.run("tpu.sh", verb, "--dry-run")
    assert done.returncode == 0 and not cloud.calls, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines and all(line[0] in ("gcloud", "git") for line in lines)
    for line in lines:
        if line[:3] == ["gcloud", "compute", "tpus"]:
            assert line[-2:] == ["--project=my-project", "--zone=us-west4-a"]


def test_topology_is_the_same_slice_for_every_launcher(cloud):
    """A topology of `astro plan` in the names of Google Cloud, SkyPilot and GKE."""
    expected = {
        "v5e:4x4": ("v5litepod-16", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 4, 4),
        "v6e:2x4": ("v6e-8", "v2-alpha-tpuv6e", "tpu-v6e-slice", 1, 8),
        "v5p:4x4x8": ("v5p-256", "v2-alpha-tpuv5", "tpu-v5p-slice", 32, 4),
    }
    for topology, (accelerator, image, gke, hosts, chips) in expected.items():
        cloud.change(TOPOLOGY=topology)
        create = cloud.run("tpu.sh", "create", "--dry-run").stdout
        assert f"--accelerator-type={accelerator} " in create and f"--runtime-version={image} " in create
        task = yaml.safe_load(cloud.run("sky.sh", "task").stdout)
        assert task["resources"]["accelerators"] == f"tpu-{accelerator}"
        assert task["resources"]["accelerator_args"] == {"runtime_version": image}
        job = job_of(yaml.safe_load(cloud.run("gke.sh", "manifest").stdout))
        pod = job["template"]["spec"]
        assert job["parallelism"] == job["completions"] == hosts
        assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == gke
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]


@pytest.mark.parametrize("spot", ["yes", "no"])
def test_spot_setting_requests_a_spot_slice(cloud, spot):
    cloud.change(SPOT=spot)
    assert ("--spot" in cloud.run("tpu.sh", "create", "--dry-run").stdout) == (spot == "yes")
    assert yaml.safe_load(cloud.run("sky.sh", "task").stdout)["resources"]["use_spot"] is (spot == "yes")
    pod = job_of(yaml.safe_load(cloud.run("gke.sh", "manifest").stdout))["template"]["spec"]
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == (spot == "yes")


def test_overrides_with_spaces_and_quotes_survive_every_shell(cloud):
    """Two shells to the worker; YAML and a pod's bash; SkyPilot's run."""
    odd = ["""mesh={fsdp: 4, tp: 4}""", """chat.system=Don't "guess", $HOME; think"""]
    cloud.change(OVERRIDES=f"({shlex.join(odd)})")
    (call,) = (shlex.split(line) for line in cloud.run("tpu.sh", "run", "--dry-run").stdout.splitlines())
    (remote,) = (word.removeprefix("--command=") for word in call if word.startswith("--command="))
    expected = ["astro", "run", "configs/llama3.1-8b.yaml", "out=gs://my-bucket/astro/astro-8b", *odd]
    assert shlex.split(remote)[3:] == expected
    container = job_of(yaml.safe_load(cloud.run("gke.sh", "manifest").stdout))["template"]["spec"]["containers"][0]
    assert shlex.split(container["command"][2]) == ["exec", *expected]
    task = yaml.safe_load(cloud.run("sky.sh", "task").stdout)
    assert shlex.split(task["run"]) == [".venv/bin/astro", *expected[1:]]


def test_search_makes_one_jobset_for_each_shard(cloud):
    """A lost pod then restarts only its own shard. All JobSets have one label in common."""
    cloud.change(STAGE="search", SHARDS="3")
    jobsets = list(yaml.safe_load_all(cloud.run("gke.sh", "manifest").stdout))
    assert [j["metadata"]["name"] for j in jobsets] == ["astro-8b-0", "astro-8b-1", "astro-8b-2"]
    assert {j["metadata"]["labels"]["astro"] for j in jobsets} == {"astro-8b"}
    lines = [job_of(j)["template"]["spec"]["containers"][0]["command"][2].split() for j in jobsets]
    assert all(line[1:3] == ["astro", "search"] for line in lines)
    assert [line[-2:] for line in lines] == [["--shard", f"{i}/3"] for i in range(3)]


def job_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_manifest_is_valid_for_kubernetes(cloud):
    """The inner Job by Kubernetes' schema; the outer JobSet by the fields of its definition."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for stage in ("run", "search"):
        cloud.change(STAGE=stage)
        jobset = next(yaml.safe_load_all(cloud.run("gke.sh", "manifest").stdout))
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, "spec": job_of(jobset)}
        validate.validate(job, "1.31", strict=True)
        jobset["spec"]["replicatedJobs"][0]["template"]["spec"] = {}
        assert jobset == {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": "astro-8b-0" if stage == "search" else "astro-8b",
                "labels": {"astro": "astro-8b"},
                "annotations": {
                    "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
                },
            },
            "spec": {
                "failurePolicy": {
                    "maxRestarts": 100,
                    "rules": [
                        {"name": "input", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                    ],
                },
                "replicatedJobs": [
                    {"name": "slice", "replicas": 1, "template": {"spec": {}}},
                ],
            },
        }


# ---- retry


def test_retry_requests_a_new_slice_after_a_preemption(cloud):
    cloud.answer(
        states=["NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"],
        workers=["a: running,b: running,c: running,d: running", "a: ended 0,b: ended 0,c: ended 0,d: ended 0"],
    )
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 0, done.stderr
    expected = ["create", "setup", "run", "delete", "create", "setup", "run", "delete", "fetch"]
    assert steps(cloud.calls) == expected


def test_retry_watches_a_run_that_is_already_running(cloud):
    cloud.answer(
        workers=["a: running,b: running", "a: running,b: running", "a: ended 0,b: ended 0,c: ended 0,d: ended 0"]
    )
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 0 and steps(cloud.calls) == ["delete", "fetch"], done.stderr


def test_retry_repeats_a_refused_request(cloud):
    cloud.answer(states=["NONE", "NONE", "ACTIVE"])
    (cloud.folder / "refuse").write_text(" create ")
    (cloud.folder / "once").touch()
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 0, done.stderr
    assert steps(cloud.calls)[:2] == ["create", "create"]


def test_retry_gives_up_after_five_failures(cloud):
    cloud.answer(workers=["a: ended 1,b: ended 1,c: ended 1,d: ended 134"])
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 2 and "has failed 5 times" in done.stderr
    assert steps(cloud.calls) == ["setup", "run"] * 5


def test_retry_does_not_restart_a_run_that_refused_its_input(cloud):
    cloud.answer(workers=["a: ended 2,b: ended 2,c: running,d: ended 2"])
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 2 and "refused its input" in done.stderr and "tpu.sh delete" in done.stderr
    assert steps(cloud.calls) == ["setup", "run"]


# ---- Bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(PROJECT=""), "PROJECT= is not a project"),
        (dict(ZONE="us-west4"), "ZONE=us-west4 is not a zone"),
        (dict(NAME="My_Run"), "NAME=My_Run is not a name"),
        (dict(TOPOLOGY="v5litepod-16"), "TOPOLOGY=v5litepod-16 is not a topology"),
        (dict(TOPOLOGY="v5e:3x3"), "TOPOLOGY=v5e:3x3 does not divide into hosts"),
        (dict(BUCKET="my-bucket"), "BUCKET=my-bucket is not a folder in a bucket"),
        (dict(CONFIG="configs/none.yaml"), "CONFIG=configs/none.yaml is not a file"),
        (dict(OVERRIDES="(--seed)"), "OVERRIDES holds --seed, which is not key=value"),
        (dict(SPOT="maybe"), "SPOT=maybe is not yes or no"),
        (dict(STAGE="import"), "STAGE=import is not a command"),
    ],
)
def test_invalid_setting_is_one_line_before_anything_is_created(cloud, changes, message):
    cloud.change(**changes)
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not cloud.calls


@pytest.mark.parametrize(
    "line, instead, message",
    [
        ("CONFIG=configs/llama3.1-8b.yaml", "", "CONFIG= is not a file"),
        ("PROJECT=my-project", 'PROJECT="my-project', "unexpected EOF"),
        ("BUCKET=gs://my-bucket", "BUCKET=gs://$NOWHERE", "NOWHERE: unbound variable"),
        ("SPOT=yes", "SPOT = yes", "command not found"),
    ],
)
def test_settings_that_bash_cannot_read_are_one_line(cloud, line, instead, message):
    assert line in SETTINGS
    cloud.write_settings(SETTINGS.replace(line, instead))
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not cloud.calls


def test_settings_flag_without_a_file_prints_the_usage():
    done = subprocess.run(["bash", ROOT / "launch" / "tpu.sh", "create", "--settings"], capture_output=True, text=True)
    assert done.returncode == 2 and "Usage: launch/tpu.sh" in done.stderr


def test_missing_settings_file_names_the_example(cloud):
    (cloud.folder / "tpu.env").unlink()
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 2 and "copy launch/tpu.env.example to this path" in done.stderr


@pytest.mark.parametrize("script, verb", [("tpu.sh", "create"), ("tpu.sh", "retry"), ("gke.sh", "apply")])
@pytest.mark.parametrize("refused, message", [("print-access-token", "no credentials"), (" cp ", "cannot write to")])
def test_creates_nothing_without_credentials_or_a_writable_bucket(cloud, script, verb, refused, message):
    (cloud.folder / "refuse").write_text(refused)
    done = cloud.run(script, verb)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not steps(cloud.calls) and not any(call.startswith("kubectl") for call in cloud.calls)


@pytest.mark.parametrize("script", ["tpu.sh", "gke.sh", "sky.sh"])
@pytest.mark.parametrize("words", [[], ["no-such"], ["create", "--no-such"]])
def test_unknown_command_prints_the_usage(cloud, script, words):
    done = cloud.run(script, *words)
    assert done.returncode == 2 and "Settings: launch/tpu.env" in done.stderr


# ---- worker.sh


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


# ---- docs/tpu.md


def commands():
    """Return all commands of the guide's code blocks."""
    text = (ROOT / "docs" / "tpu.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


def test_every_command_of_the_guide_works_in_a_dry_run(cloud):
    seen = set()
    for command in commands():
        words = shlex.split(command)
        if words[0] == "bash":
            words = words[1:]
        name = Path(words[0]).name
        seen.add(name)
        if name in ("tpu.sh", "gke.sh", "sky.sh"):
            done = cloud.run(name, *words[1:], "--dry-run")
            assert done.returncode == 0 and done.stdout, (command, done.stderr)
        elif name == "astro":
            assert cli.parse(words[1:]).call, command
            for word in words:
                assert not word.startswith("configs/") or (ROOT / word).exists(), command
        elif name == "setup.sh":
            assert all((ROOT / lock).exists() for lock in words[1:]), command
        else:
            assert name in ("gcloud", "gsutil", "docker", "cp", "git", "kubectl", "local.sh", "pip"), command
    assert {"tpu.sh", "gke.sh", "sky.sh", "astro", "setup.sh"} <= seen
    assert not cloud.calls
