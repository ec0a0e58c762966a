"""`astro plan --search`, with a compiler that the test replaces."""

import json

import pytest

from astro_jax import cli
from astro_jax.errors import AstroError
from astro_jax.mesh import make_mesh
from astro_jax.plan import mesh_search, planner, topology

COMMAND = ["plan", "configs/quickstart.yaml", "--topology", "v5e:4x4", "--stage", "sft", "--search"]


@pytest.fixture
def planned(monkeypatch):
    """A v5e:4x4 whose programs need 6 GiB a chip for each row of SFT's batch, or 30 GiB without tp.

    Records (stage, tp, batch size) of each plan.
    """
    calls = []

    def plan_run(c, stages, **_):
        rows = c.sft.micro_batch_size or c.sft.batch_size
        calls.append((stages[0], c.mesh.tp, rows))
        peak = 6.0 * rows / c.mesh.fsdp if c.mesh.tp > 1 else 30.0
        row = {"stage": stages[0], "program": "step", "at_once_gib": peak, "fits": peak < 16, "seconds": 2.0}
        links = 2.0 * c.mesh.tp
        hours = {"hours": 5.0, "chip_hours": 80.0, "tokens": 1, "of": [stages[0], "step"]}
        costs = {"reached": 0.4, "direct-sft step": hours, "astro-sft step": hours}
        return {"fits": peak < 16, "programs": [row | {"links_s": links}], "recipe": costs}

    check = mesh_search.programs.check

    def check_two_kv_heads(c, config, sharding, judge):
        if c.mesh.tp > (2 if judge is None else 1):
            raise AstroError("mesh: 2 kv_heads")
        check(c, config, sharding, judge)

    monkeypatch.setattr(topology, "get", lambda name: topology.Topology(name, None, (object(),) * 16))
    monkeypatch.setattr(mesh_search, "make_mesh", lambda *shape, devices: make_mesh(1, 1, 1))
    monkeypatch.setattr(mesh_search.programs, "check", check_two_kv_heads)
    monkeypatch.setattr(planner, "plan_run", plan_run)
    return calls


def test_search_finds_the_mesh_and_the_batch_size_that_fit(planned, capsys):
    """tp 1 does not fit. With tp 2 and fsdp 8, 32 rows take 24 GiB and 16 rows 12 GiB. Other meshes do not divide."""
    command = [*COMMAND, "sft.batch_size=32"]
    assert cli.main([*command, "--json"]) == 0
    best, other = json.loads(capsys.readouterr().out)
    assert best == {
        "mesh": "{fsdp: 8, tp: 2}", "changes": {"sft.micro_batch_size": 16}, "fits": True, "at_once_gib": 12.0,
        "hours": 20.0,
    }  # fmt: skip
    assert (
        other["mesh"] == "{fsdp: 16, tp: 1}" and not other["fits"] and other["changes"] == {"sft.micro_batch_size": 16}
    )
    assert planned == [("sft", 1, 32), ("sft", 1, 16), ("sft", 2, 32), ("sft", 2, 16)]
    assert cli.main(command) == 0
    assert '"mesh={fsdp: 8, tp: 2}" sft.micro_batch_size=16' in capsys.readouterr().out


def test_search_without_a_mesh_that_fits_exits_with_3(planned, capsys):
    assert cli.main([*COMMAND, "sft.batch_size=256", "mesh.tp=1"]) == 0  # the batch is halved until it fits
    capsys.readouterr()
    assert cli.main([*COMMAND, "sft.batch_size=48"]) == 3
    assert "no mesh fits" in capsys.readouterr().err


def test_search_passes_over_a_mesh_that_does_not_divide_the_judge(planned, capsys):
    assert cli.main([*COMMAND, "--json", "verify.judge.model=countdown-base", "sft.batch_size=48"]) == 3
    assert [candidate["mesh"] for candidate in json.loads(capsys.readouterr().out)] == ["{fsdp: 16, tp: 1}"]
