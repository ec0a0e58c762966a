"""`tpu.sh retry` in a cloud whose commands fail, hang or lie: no slice may be left billed without a word."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_cloud import Cloud, steps

BEFORE = ("auth print-access-token", "storage cp", "storage rm", "ssh-keygen", "ssh-add", "astro check", "astro plan")
EFFECTS = ("queued-resources create", "queued-resources delete", " scp ", "worker.sh setup", "worker.sh start")
COMMANDS = {
    "fail": (*BEFORE, *EFFECTS, "describe", "worker.sh status", "rsync"),
    "late": EFFECTS,
    "lie": (*EFFECTS, "describe", "worker.sh status"),
    "hang": ("astro plan", "describe", *EFFECTS, "worker.sh status"),
}


def retry(folder, part, mode, times):
    folder.mkdir()
    cloud = Cloud(folder)
    cloud.break_command(part, mode, times)
    return cloud, cloud.run("tpu.sh", "retry", limit="1" if mode == "hang" else "20")


def together(tmp_path, cases):
    """Run `retry` for each (part, mode, times), four at a time: most of the time they wait."""
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(retry, tmp_path / str(i), *case) for i, case in enumerate(cases)]
        return [(case, *run.result()) for case, run in zip(cases, runs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", COMMANDS)
def test_one_fault_is_overcome_or_said_in_one_line(tmp_path, mode):
    for case, cloud, done in together(tmp_path, [(part, mode, 1) for part in COMMANDS[mode]]):
        billed = "cost money" in done.stderr
        assert cloud.slice == "NONE" or billed, (case, done.stderr)
        part = case[0]
        if part in BEFORE:
            assert done.returncode == 2 and "create" not in steps(cloud.calls), (case, done.stderr)
            assert done.stderr.splitlines()[-1].startswith("tpu.sh: "), (case, done.stderr)
        elif part == "rsync":
            assert done.returncode == 2 and "run launch/tpu.sh fetch" in done.stderr, (case, done.stderr)
        else:
            assert done.returncode == 0, (case, done.stderr)
            assert steps(cloud.calls)[-1] == "fetch", (case, cloud.calls)


ENDS = {
    "describe": "no answer about the slice",
    "queued-resources create": "the request for a slice was refused",
    "queued-resources delete": "the slice may still exist and cost money",
    " scp ": "the set-up has failed, and 5 failures in all",
    "worker.sh setup": "the set-up has failed, and 5 failures in all",
    "worker.sh start": "the set-up has failed, and 5 failures in all",
    "worker.sh status": "a worker does not answer, and 5 failures in all",
}


def test_permanent_faults_end_with_one_line_and_give_the_slice_back(tmp_path):
    for case, cloud, done in together(tmp_path, [(part, "fail", 999) for part in ENDS]):
        assert done.returncode in (1, 2), (case, done.stderr)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("tpu.sh: ") and ENDS[case[0]] in last, (case, done.stderr)
        assert cloud.slice == "NONE" or "cost money" in last, (case, last)
        if "failures in all" in last:
            assert steps(cloud.calls).count("create") == 3  # two failures on a slice, then another slice
