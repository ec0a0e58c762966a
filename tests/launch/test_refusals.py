"""What the launchers refuse in one line, before anything is created: settings, credentials, keys and commands."""

import subprocess

import pytest
from fake_cloud import ROOT, SETTINGS, steps


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(PROJECT=""), "PROJECT= is not a project"),
        (dict(ZONE="us-west4"), "ZONE=us-west4 is not a zone"),
        (dict(NAME="My_Run"), "NAME=My_Run is not a name"),
        (dict(NAME="a" * 31), "at most 30"),
        (dict(MAX_HOURS=""), "MAX_HOURS= is not a number of hours"),
        (dict(TPU_SERVICE_ACCOUNT="me"), "TPU_SERVICE_ACCOUNT=me is not the address"),
        (dict(TOPOLOGY="v5litepod-16"), "TOPOLOGY=v5litepod-16 is not a topology"),
        (dict(TOPOLOGY="v5e:3x3"), "TOPOLOGY=v5e:3x3 does not divide into hosts"),
        (dict(BUCKET="my-bucket"), "BUCKET=my-bucket is not a folder in a bucket"),
        (dict(CONFIG="configs/none.yaml"), "CONFIG=configs/none.yaml is not a file"),
        (dict(OVERRIDES="(--seed)"), "OVERRIDES holds --seed, which is not key=value"),
        (dict(SPOT="maybe"), "SPOT=maybe is not yes or no"),
        (dict(STAGE="import"), "STAGE=import is not a command"),
        (dict(STAGE="search", SHARD="4/4"), "SHARD=4/4: the shares are 0/4 to 3/4"),
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
    cloud.break_command(refused, "fail")
    done = cloud.run(script, verb)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    assert not steps(cloud.calls) and not any(call.startswith("kubectl") for call in cloud.calls)


def test_the_account_of_the_workers_is_tried_where_the_user_may_act_for_it(cloud):
    account = "astro@my-project.iam.gserviceaccount.com"
    cloud.change(TPU_SERVICE_ACCOUNT=account)
    cloud.break_command(f"buckets describe gs://my-bucket --impersonate-service-account={account}", "fail")
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 2 and "run tpu.sh grant" in done.stderr
    cloud.break_command("print-access-token --impersonate", "fail")
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 0 and "Token Creator" in done.stderr
    assert any(f"--service-account={account}" in call for call in cloud.calls)
    assert cloud.run("tpu.sh", "grant").returncode == 0
    roles = [
        call.split("--role=")[1].split()[0] for call in cloud.calls if "add-iam-policy-binding gs://my-bucket" in call
    ]
    assert roles == ["roles/storage.objectAdmin", "roles/storage.legacyBucketReader"]


@pytest.mark.parametrize("key, message", [("ssh-keygen", "has no ssh key"), ("ssh-add", "lacks gcloud's key")])
def test_ssh_that_would_wait_for_ever_is_refused(cloud, key, message):
    cloud.break_command(key, "fail")
    done = cloud.run("tpu.sh", "create")
    assert done.returncode == 2 and message in done.stderr
    cloud.change(TOPOLOGY="v5e:2x4")  # gcloud asks for no agent where there is one worker
    cloud.break_command(key, "fail")
    assert cloud.run("tpu.sh", "create").returncode == 0


@pytest.mark.parametrize("script", ["tpu.sh", "gke.sh", "sky.sh"])
@pytest.mark.parametrize("words", [[], ["no-such"], ["create", "--no-such"]])
def test_unknown_command_prints_the_usage(cloud, script, words):
    done = cloud.run(script, *words)
    assert done.returncode == 2 and "Settings: launch/tpu.env" in done.stderr
