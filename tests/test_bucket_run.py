"""A run in a bucket, through the clients that a run on a TPU uses: gcsfs, TensorStore and google-cloud-storage."""

import signal
import time

import bucket_server
import pytest
import yaml
from forked_cli import AstroProcess, assert_success, start_group
from micro_run import MICRO, products

pytest.importorskip("gcsfs", reason="extra `plan` (gcsfs) is not installed")

RUN = {
    **MICRO, "stages": ["base", "search", "traces", "direct-sft", "direct-rl", "eval", "report"], "mesh": dict(data=2),
    "corpus": {**MICRO["corpus"], "documents": 3200},
}  # fmt: skip


def wait_for(server, name, process):
    deadline = time.monotonic() + 300
    while not server.holds(name):
        assert process.is_alive and time.monotonic() < deadline, process.output
        time.sleep(0.05)


@pytest.mark.slow
def test_run_in_a_bucket_that_refuses_with_a_killed_process_equals_a_run_on_a_disk(tmp_path):
    """The bucket answers 503 for three seconds, then late; then a process is killed, and the command is repeated."""
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(RUN))
    command = ["run", str(config), "--timeout=20", "--start-timeout=120"]
    assert_success(start_group(2, [*command, f"out={tmp_path}/disk"], tmp_path / "disk"))

    command.append(f"out=gs://{bucket_server.BUCKET}/run")
    with bucket_server.serve() as server:
        first, second = start_group(2, command, tmp_path / "first", server.prepare())
        wait_for(server, "run/base/checkpoints", first)
        server.fail(3, 503)
        wait_for(server, "run/base/manifest.json", first)
        server.fail(3, delay=0.5)
        wait_for(server, "run/direct-sft/checkpoints", first)
        second.send_signal(signal.SIGKILL)
        code, output = first.wait()
        assert code == 1 and "process 1 of 2" in output, output
        assert_success(start_group(2, command, tmp_path / "again", server.prepare()))
        assert server.answered[503] and server.delayed
        assert products(server.download(tmp_path) / "run") == products(tmp_path / "disk")


def test_model_at_the_top_of_a_bucket_is_written_and_read(tmp_path):
    with bucket_server.serve() as server:
        bucket = f"gs://{bucket_server.BUCKET}"
        for command in (["export", "countdown-base", f"{bucket}/hf"], ["import", f"{bucket}/hf", f"{bucket}/imported"]):
            code, output = AstroProcess(command, tmp_path / command[0], server.prepare()).wait()
            assert code == 0 and "written: gs://" in output, output
        assert server.holds("hf/config.json") and server.holds("imported")
        assert all(name.partition("/")[0] in ("hf", "imported") for name in server.objects)
