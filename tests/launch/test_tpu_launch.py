"""The launchers for TPU slices, with fake cloud tools that record their calls."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from fake_cloud import ROOT, steps

from astro_jax import cli
from astro_jax.plan import topology as plan_topology

# ---- Dry runs


VERBS = [
    "check", "grant", "create", "wait", "setup", "run", "status", "tail", "retry", "stop",
    "fetch", "fetch-all", "delete",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_prints_commands_and_runs_none(cloud, verb):
    done = cloud.run("tpu.sh", verb, "--dry-run")
    assert done.returncode == 0 and not cloud.calls, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines and all(Path(line[0]).name in ("gcloud", "git", "bash", "astro") for line in lines)
    for line in lines:
        if line[:3] == ["gcloud", "compute", "tpus"]:
            assert line[-2:] == ["--project=my-project", "--zone=us-west4-a"]
        elif line[1:2] in (["check"], ["plan"]):
            assert cli.parse(line[1:]).call  # the command line knows these options


def test_the_first_hour_runs_on_one_chip_with_its_own_settings(cloud):
    cloud.write_settings((ROOT / "launch" / "first-hour.env.example").read_text())
    done = cloud.run("tpu.sh", "retry", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "--accelerator-type=v5litepod-1 " in done.stdout and "--spot" not in done.stdout
    cloud.put(plan='{"recipe": {"total_hours": 0.1, "total_chip_hours": 0.1, "longest_total_hours": 999.5}}')
    done = cloud.run("tpu.sh", "check")
    assert "estimate: 0.1 hours on 1 chips, 0.1 chip-hours, 0 at PRICE=1.2" in done.stderr
    assert "the run stops after MAX_HOURS=1 hours" in done.stderr
    run = next(line for line in cloud.run("tpu.sh", "run", "--dry-run").stdout.splitlines() if "worker.sh" in line)
    assert "configs/first-hour.yaml out=gs://my-bucket/astro/first-hour --processes 1 --max-hours 1" in run.replace(
        "\\", ""
    )


def test_topology_is_the_same_slice_for_every_launcher(cloud):
    """A topology of `astro plan` in the names of Google Cloud, SkyPilot and GKE."""
    expected = {
        "v4:2x2x4": ("v4-32", "tpu-ubuntu2204-base", "tpu-v4-podslice", 4, 4),
        "v5e:1x1": ("v5litepod-1", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 1, 1),
        "v5e:4x4": ("v5litepod-16", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 4, 4),
        "v6e:2x4": ("v6e-8", "v2-alpha-tpuv6e", "tpu-v6e-slice", 1, 8),
        "v5p:2x2x1": ("v5p-8", "v2-alpha-tpuv5", "tpu-v5p-slice", 1, 4),
        "v5p:4x4x8": ("v5p-256", "v2-alpha-tpuv5", "tpu-v5p-slice", 32, 4),
    }
    for topology, (accelerator, image, gke, hosts, chips) in expected.items():
        cloud.change(TOPOLOGY=topology)
        create = cloud.run("tpu.sh", "create", "--dry-run").stdout
        assert plan_topology.parse(topology)[1] == hosts * chips  # `astro plan` knows the slice
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


def dry_run(cloud, script, verb):
    done = cloud.run(script, verb, "--dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_several_slices_are_one_queued_resource_and_one_run(cloud):
    """One request, one command for all workers of all slices, and a process for each host."""
    cloud.change(SLICES="2", OVERRIDES="(mesh.data=2)")
    *checks, create = dry_run(cloud, "tpu.sh", "create")
    assert "--node-count=2 --node-prefix=astro-8b" in create and "--node-id" not in create
    assert "--accelerator-type=v5litepod-16 " in create and any("--topology v5e:4x4:2" in line for line in checks)
    for verb in ("setup", "run", "stop"):
        reached = [line for line in dry_run(cloud, "tpu.sh", verb) if " ssh " in line or " scp " in line]
        assert reached and all("queued-resources s" in r and "--worker=all --node=all " in r for r in reached)
    assert "--processes\\ 8" in dry_run(cloud, "tpu.sh", "run")[0]
    assert "--worker=0 --node=0 " in dry_run(cloud, "tpu.sh", "tail")[0]
    cloud.answer(workers=["a: not started", 7 * "a: ended 0," + "b: running", *2 * [8 * "a: ended 0,"]])
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 0 and "on 32 chips" in done.stderr, done.stderr


def test_several_slices_on_gke_are_replicas_of_one_jobset_with_a_node_pool_each(cloud):
    cloud.change(SLICES="2")
    jobset = yaml.safe_load(cloud.run("gke.sh", "manifest").stdout)
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2 and job_of(jobset)["parallelism"] == 4
    pools = [line.split()[4] for line in dry_run(cloud, "gke.sh", "setup") if "node-pools create" in line]
    assert pools == ["tpu-v5e-4x4-spot-0", "tpu-v5e-4x4-spot-1"]
    assert "--num-slices 2 " in dry_run(cloud, "gke.sh", "xpk")[-1]
    sky = cloud.run("sky.sh", "task")
    assert sky.returncode == 2 and "SkyPilot joins no slices" in sky.stderr
    cloud.change(SLICES="2", TOPOLOGY="v5e:2x2")
    assert "each of SLICES=2 needs several hosts" in cloud.run("gke.sh", "manifest").stderr


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
    expected = [
        "astro", "run", "configs/llama3.1-8b.yaml", "out=gs://my-bucket/astro/astro-8b", *odd,
        "--processes", "4", "--max-hours", "24",
    ]  # fmt: skip
    assert cli.parse(expected[1:]).max_hours == 24
    assert shlex.split(remote)[3:] == expected
    container = job_of(yaml.safe_load(cloud.run("gke.sh", "manifest").stdout))["template"]["spec"]["containers"][0]
    assert shlex.split(container["command"][2]) == ["exec", *expected]
    task = yaml.safe_load(cloud.run("sky.sh", "task").stdout)
    path, line = task["run"].splitlines()
    assert path == "export PATH=$PWD/.venv/bin:$PATH" and shlex.split(line) == expected
    cloud.change(LIBTPU_ARGS="'--xla_a=true --xla_b=1'")
    task = yaml.safe_load(cloud.run("sky.sh", "task").stdout)
    assert shlex.split(task["run"].splitlines()[1])[:3] == ["env", "LIBTPU_INIT_ARGS=--xla_a=true --xla_b=1", "astro"]


def test_search_makes_one_jobset_for_each_shard(cloud):
    """A lost pod then restarts only its own shard. All JobSets have one label in common."""
    cloud.change(STAGE="search", SHARDS="3")
    jobsets = list(yaml.safe_load_all(cloud.run("gke.sh", "manifest").stdout))
    assert [j["metadata"]["name"] for j in jobsets] == ["astro-8b-search-0", "astro-8b-search-1", "astro-8b-search-2"]
    assert {j["metadata"]["labels"]["astro"] for j in jobsets} == {"astro-8b-search"}
    lines = [job_of(j)["template"]["spec"]["containers"][0]["command"][2].split() for j in jobsets]
    assert all(line[1:3] == ["astro", "search"] for line in lines)
    assert [line[-2:] for line in lines] == [["--shard", f"{i}/3"] for i in range(3)]


def test_a_share_of_the_search_on_tpu_vms_has_its_own_slice_and_the_folder_of_the_run(cloud):
    cloud.change(NAME="astro-s1", STAGE="search", SHARD="1/4", RUN_NAME="astro-8b")
    (call,) = dry_run(cloud, "tpu.sh", "run")
    assert " ssh astro-s1 " in call and "out=gs://my-bucket/astro/astro-8b" in call
    assert call.replace("\\", "").partition(" --worker")[0].endswith("--max-hours 24 --shard 1/4")
    assert "estimate: 2.875 hours on 16 chips" in cloud.run("tpu.sh", "check").stderr  # a quarter of 11.5
    assert "leave SHARD empty" in cloud.run("gke.sh", "manifest").stderr
    cloud.change(SHARD="1/4")
    assert "SHARD=1/4 goes with STAGE=search" in cloud.run("tpu.sh", "check").stderr


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
                "name": "astro-8b-search-0" if stage == "search" else "astro-8b",
                "labels": {"astro": "astro-8b-search" if stage == "search" else "astro-8b"},
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


def test_retry_runs_from_a_request_to_the_results(cloud):
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 0, done.stderr
    assert steps(cloud.calls) == ["create", "setup", "run", "delete", "fetch"] and cloud.slice == "NONE"
    assert "estimate: 11.5 hours on 16 chips, 184.0 chip-hours" in done.stderr
    (fetch,) = (call for call in cloud.calls if "rsync" in call)
    assert "--exclude=(.*/)?checkpoints/.*|previous/.*|" in fetch


def test_retry_requests_a_new_slice_after_a_preemption(cloud):
    cloud.answer(
        states=["NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "NONE", "NONE", "ACTIVE"],
        workers=["a: not started", "a: running,b: running", "a: not started", *2 * [FINISHED]],
    )
    done = cloud.run("tpu.sh", "retry")
    assert steps(cloud.calls)[:6] == ["create", "setup", "run", "delete", "create", "setup"], done.stderr


def test_retry_watches_a_run_that_is_already_running(cloud):
    cloud.put(slice="ACTIVE", run="running")
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 0 and steps(cloud.calls) == ["delete", "fetch"], done.stderr


FINISHED = "a: ended 0,b: ended 0,c: ended 0,d: ended 0"


def test_retry_takes_another_slice_after_two_failures_and_gives_up_after_five(cloud):
    cloud.put(slice="ACTIVE")
    cloud.answer(workers=["a: ended 1,b: ended 1,c: ended 1,d: ended 134"])
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 1 and "the run has failed, and 5 failures in all" in done.stderr
    calls = steps(cloud.calls)
    assert calls.count("run") == 5 and calls.count("create") == 2 and cloud.slice == "NONE"


def test_retry_does_not_restart_a_run_that_refused_its_input(cloud):
    cloud.put(slice="ACTIVE")
    cloud.answer(workers=["a: not started", "a: ended 2,b: ended 2,c: running,d: ended 2"])
    done = cloud.run("tpu.sh", "retry")
    assert done.returncode == 2 and "refused its input" in done.stderr and "the slice is deleted" in done.stderr
    assert steps(cloud.calls) == ["setup", "run", "delete"]


def test_stop_deletes_the_slice_and_ends_a_retry(cloud):
    cloud.put(slice="ACTIVE", run="running")
    done = cloud.run("tpu.sh", "stop")
    assert done.returncode == 0 and cloud.slice == "NONE", done.stderr
    assert any("worker.sh stop" in call for call in cloud.calls) and (cloud.folder / "astro-8b.stop").exists()


@pytest.mark.parametrize(
    "plan, message",
    [
        (
            '{"recipe": {"total_hours": 24.1, "total_chip_hours": 385.6, "longest_total_hours": 999.5}}',
            "24.1 hours exceeds MAX_HOURS=24",
        ),
        ("{}", "cannot be estimated"),
    ],
)
def test_nothing_is_rented_for_a_run_that_takes_too_long(cloud, plan, message):
    cloud.put(plan=plan)
    for script, verb in (("tpu.sh", "create"), ("tpu.sh", "retry"), ("gke.sh", "apply"), ("sky.sh", "launch")):
        done = cloud.run(script, verb)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not steps(cloud.calls) and not any(call.startswith(("kubectl", "sky")) for call in cloud.calls)


def test_the_price_of_an_hour_prices_the_estimate(cloud):
    cloud.change(PRICE="1.2")
    assert "184.0 chip-hours, 221 at PRICE=1.2" in cloud.run("tpu.sh", "check").stderr


@pytest.fixture
def set_up(tmp_path, cloud):
    """`tpu.sh setup` in a new repository with a commit: (its folder, the command)."""
    repo = tmp_path / "repo"
    (cloud.folder / "bin" / "git").unlink()
    shutil.copytree(ROOT / "launch", repo / "launch")
    (repo / "configs").mkdir()
    (repo / "configs" / "llama3.1-8b.yaml").write_text("seed: 1\n")
    (repo / "README").write_text("old\n")
    (repo / ".gitignore").write_text("runs/\n")
    git = ["git", "-C", str(repo), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    cloud.put(slice="ACTIVE")

    def run():
        env = {"PATH": f"{cloud.folder / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        command = ["bash", repo / "launch" / "tpu.sh", "setup", "--settings", cloud.folder / "tpu.env"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    return repo, run


def test_the_working_tree_is_shipped_with_new_files_and_without_ignored_ones(tmp_path, set_up):
    """`setup` says what it ships."""
    repo, run = set_up
    (repo / "README").write_text("new\n")
    (repo / "mine.yaml").write_text("seed: 2\n")
    (repo / "runs").mkdir()
    (repo / "runs" / "large").touch()
    done = run()
    assert done.returncode == 0 and "and uncommitted changes of: README mine.yaml" in done.stderr, done.stderr
    subprocess.run(["tar", "xzf", next(tmp_path.glob("*/astro.tgz")), "-C", tmp_path / "venv"], check=True)
    assert (tmp_path / "venv" / "README").read_text() == "new\n" and (tmp_path / "venv" / "mine.yaml").exists()
    assert not (tmp_path / "venv" / "runs").exists()


def test_code_that_cannot_be_packed_is_not_copied(set_up, cloud):
    repo, run = set_up
    (repo / ".git" / "index").write_text("damaged")
    assert run().returncode != 0
    assert not any("scp" in call for call in cloud.calls)


# ---- GKE, XPK and SkyPilot


def test_gke_replaces_a_finished_jobset_and_leaves_a_running_one(cloud):
    cloud.put(jobsets="astro-8b Completed")
    done = cloud.run("gke.sh", "apply")
    assert done.returncode == 0, done.stderr
    assert [call.split()[2] for call in cloud.calls if call.startswith("kubectl")] == ["get", "delete", "apply"]
    cloud.put(jobsets="astro-8b Completed\nastro-8b-1 ", calls="")
    done = cloud.run("gke.sh", "apply")
    assert done.returncode == 2 and "astro-8b-1 runs already" in done.stderr
    assert not any(" delete " in call or " apply " in call for call in cloud.calls)


def test_gke_setup_has_all_steps_and_keeps_what_exists(cloud):
    done = cloud.run("gke.sh", "setup", "--dry-run")
    text = done.stdout
    for part in (
        "artifacts repositories create images --repository-format=docker --location=us ",
        "auth configure-docker us-docker.pkg.dev",
        "clusters create my-cluster --location=us-west4 ", "--workload-pool=my-project.svc.id.goog",
        "node-pools create tpu-v5e-4x4-spot-0 ", "--machine-type=ct5lp-hightpu-4t --tpu-topology=4x4 --spot",
        "--max-nodes=4", "get-credentials", "jobset/releases/download/",
        "/sa/default --role=roles/storage.objectAdmin", "/sa/default --role=roles/storage.legacyBucketReader",
    ):  # fmt: skip
        assert part in text, (part, text)
    cloud.change(TOPOLOGY="v5e:2x4", SPOT="no")
    text = cloud.run("gke.sh", "setup", "--dry-run").stdout
    assert (
        "ct5lp-hightpu-8t" in text and "--tpu-topology" not in text and "--spot" not in text
    )  # one host has no topology
    cloud.break_command("clusters create", "fail")
    done = cloud.run("gke.sh", "setup")
    assert done.returncode == 2 and "run launch/gke.sh setup again" in done.stderr


@pytest.mark.parametrize(
    "script, verb, part",
    [
        ("gke.sh", "apply", "kubectl --context=gke_my-project_us-west4_my-cluster apply"),
        ("gke.sh", "stop", "kubectl"), ("gke.sh", "xpk", "xpk workload create"),
        ("sky.sh", "launch", "sky jobs launch"), ("sky.sh", "stop", "sky jobs"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["fail", "hang", "late"])
def test_other_launchers_say_what_may_be_billed(cloud, script, verb, part, mode):
    cloud.break_command(part, mode)
    done = cloud.run(script, verb, limit="1" if mode == "hang" else "20")
    assert done.returncode == 2 and "cost money" in done.stderr, done.stderr


def test_xpk_restarts_after_an_accident_and_sky_sets_up_as_tpu_vms_do(cloud):
    assert "--restart-on-exit-codes 1 " in cloud.run("gke.sh", "xpk", "--dry-run").stdout
    assert yaml.safe_load(cloud.run("sky.sh", "task").stdout)["setup"] == "bash launch/worker.sh setup"


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
            assert name in (
                "gcloud",
                "gsutil",
                "docker",
                "cp",
                "git",
                "kubectl",
                "local.sh",
                "pip",
                "ssh-keygen",
                "ssh-add",
                "tar",
            ), command
    assert {"tpu.sh", "gke.sh", "sky.sh", "astro", "setup.sh"} <= seen
    assert not cloud.calls
