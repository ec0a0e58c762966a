"""`astro plan` without a TPU compiler: its formulas, its reading of programs, its errors. test_tpu.py compiles."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec as P

from astro_jax import cli, llama, pipeline, plan
from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.llama.config import llama3_8b, llama3_70b
from astro_jax.mesh import make_mesh
from astro_jax.plan import choose, collectives, programs, tables, topology, work
from astro_jax.plan.programs import Plan, size
from astro_jax.sampler import Request, SamplingParams
from astro_jax.sampler import programs as sampler_programs
from astro_jax.train import grpo, sft
from astro_jax.train.state import make_accumulate

CONFIG = tiny_config(n_layers=6, d_ff=40, vocab_size=48)


# ---- Formulas, against a count of the matmuls in the programs themselves


def matmul_flops(jaxpr):
    """FLOPs of all matmuls of a jaxpr, those in a scan as often as it runs."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            k = np.prod([eqn.invars[0].aval.shape[i] for i in contract])
            total += int(2 * np.prod(eqn.outvars[0].aval.shape) * k)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += times * sum(matmul_flops(j) for j in jaxprs_in_params(eqn.params))
    return total


@pytest.mark.parametrize("remat", [False, True])
def test_flops_of_training_are_those_of_its_program(remat):
    c = cfg.Config(sft=cfg.Sft(batch_size=2, max_length=2048, remat_policy=remat))
    p = Plan(c, CONFIG, make_mesh())
    batch = programs.batch(2, 2048)
    loss = sft.make_loss(c.sft, CONFIG, p.train)
    jaxpr = jax.make_jaxpr(lambda params, batch: jax.value_and_grad(loss, has_aux=True)(params, batch))(
        p.state.params, batch
    )
    found = work.train(CONFIG, p.mesh, 2 * 2048, 2048, remat, update=True)
    assert found.executed == matmul_flops(jaxpr.jaxpr)
    assert found.useful < found.executed


def test_flops_of_a_decode_step_are_those_of_its_program():
    """The formula attends to all of the prefix and half of the ring; the program's loops are over blocks."""
    p = Plan(cfg.Config(sampler=cfg.Sampler(max_num_seqs=16, block_size=8, num_scheduler_steps=1)), CONFIG, make_mesh())
    layout = p.layout(4, 9, 8, "float32")
    found = work.decode(CONFIG, p.mesh, layout, "float32", 1)
    by_hand = 16 * (CONFIG.flops_per_token(layout.prefix_blocks * 8 + 4))
    assert found.executed == found.useful == by_hand
    weights = size(p.weights("float32"))
    per_column = 2 * 4 * CONFIG.n_layers * CONFIG.n_kv_heads * CONFIG.head_dim
    assert found.read == weights + per_column * (layout.num_groups * layout.prefix_blocks * 8 + 16 * 4)


def test_the_roofline_is_the_slower_of_computing_and_moving():
    chip = topology.Chip(hbm=1, flops=100.0, bandwidth=10.0, links=1, slices=())
    assert work.Work(useful=50, executed=200, read=10, tokens=1).seconds(chip) == 2
    assert work.Work(useful=50, executed=200, read=40, tokens=1).seconds(chip) == 4
    assert work.Work(useful=50, executed=200, read=10, tokens=1).mfu(chip) == 0.25


def test_published_shapes_have_their_published_number_of_parameters():
    assert llama.params.count(llama3_8b()) == 8_030_261_248
    assert llama.params.count(llama3_70b()) == 70_553_706_496
    assert plan.shape_of("meta-llama/Llama-3.1-8B-Instruct") == llama3_8b()
    assert plan.shape_of("Llama-3.3-70B-Instruct") == llama3_70b()
    assert plan.shape_of("countdown-base").n_layers == 4


# ---- Collectives, in programs whose collectives are known


def test_collectives_are_counted_as_often_as_their_loop_runs():
    mesh = make_mesh(tp=8)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(None, "tp"), out_specs=P(None, "tp"))
    def program(x):  # [4, 2] on each device
        def outer(x, _):
            y = jax.lax.scan(lambda y, _: (jnp.sin(y) + jax.lax.psum(y, "tp"), None), x, length=3)[0]
            return y + jax.lax.all_gather(y, "tp").sum(0), None

        return jax.lax.scan(outer, x, length=5)[0]

    found = collectives.count(program.lower(jnp.ones((4, 16))).compile().as_text())
    assert found["all-reduce"] == collectives.Moved(calls=15, bytes=15 * 4 * 2 * 4)
    assert found["all-gather"] == collectives.Moved(calls=5, bytes=5 * 8 * 4 * 2 * 4)
    assert set(found) == {"all-reduce", "all-gather"}


def test_a_loop_without_a_constant_bound_counts_as_told():
    mesh = make_mesh(tp=8)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("tp"), P()), out_specs=P("tp"))
    def program(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: jnp.sin(x) + jax.lax.psum(x, "tp"), x)

    text = program.lower(jnp.ones(8), jnp.int32(3)).compile().as_text()
    assert collectives.count(text, unknown=7)["all-reduce"].calls == 7


# ---- What is planned is what runs


def recorded(function, texts, name):
    """The jitted function that `function` makes, which keeps the text of what it is called with first."""

    def make(*args):
        made = function(*args)

        def call(*args):
            texts.setdefault(name, made.lower(*args).as_text())
            return made(*args)

        call.lower = made.lower
        return call

    return make


def test_the_planned_programs_are_those_that_run(tmp_path, monkeypatch):
    raw = {
        "model": "countdown-base", "out": str(tmp_path / "run"), "mesh": {"data": 2, "tp": 2},
        "stages": ["base", "search", "traces", "direct-sft", "direct-rl"],
        "problems": {"search": 24, "rl": 8}, "sampler": {"slots": 32, "chunk": 4},
        "search": {"proposals": 4, "rollouts": 4, "iterations": 3, "max_step_tokens": 16, "max_tokens": 24},
        "sft": {"batch": 4, "length": 128, "epochs": 1},
        "grpo": {"steps": 2, "prompts": 8, "group": 4, "max_tokens": 24, "length": 128, "micro_batch": 4},
    }  # fmt: skip
    c, ran = cfg.parse(raw), {}
    monkeypatch.setattr(pipeline, "make_step", recorded(pipeline.make_step, ran, "sft"))
    monkeypatch.setattr(grpo, "make_accumulate", recorded(make_accumulate, ran, "gradient"))
    monkeypatch.setattr(grpo, "make_apply", recorded(grpo.make_apply, ran, "update"))
    monkeypatch.setattr(grpo, "make_reshard", recorded(grpo.make_reshard, ran, "reshard"))
    run = pipeline.execute(c)
    steps = [json.loads(x) for x in (run.folder / "direct-sft" / "metrics.jsonl").read_text().splitlines()][-1]["step"]
    config = plan.shape_of("countdown-base")
    mesh = make_mesh(2, 1, 2)
    assert ran["sft"] == Plan(c, config, mesh, steps=steps).sft_step().as_text()
    p = Plan(c, config, mesh, steps=2)
    assert ran["gradient"] == p.grpo_gradient().as_text()
    assert ran["update"] == p.grpo_update().as_text()
    assert ran["reshard"] == p.reshard().as_text()


def test_the_planned_decode_is_the_one_that_samples(monkeypatch):
    ran = {}
    monkeypatch.setattr(sampler_programs, "make_decode", recorded(sampler_programs.make_decode, ran, "decode"))
    c = cfg.Config(
        model="countdown-base",
        sampler=cfg.Sampler(max_num_seqs=16, num_scheduler_steps=4),
        search=cfg.Search(num_rollouts=4, max_rollout_tokens=16),
    )
    p = Plan(c, plan.shape_of(c.model), make_mesh(), prompt=20)
    (planned,) = (program.lower().as_text() for program in p.programs("search") if program.name == "decode")
    _, params = llama.load(c.model, p.sample)
    prefix = tuple(range(1, 37))  # the prompt, and as long a rollout
    requests = [Request(prefix, 4, (i,)) for i in range(4)]
    p.engine().generate(params, requests, SamplingParams(16, stop_token_ids=()))
    assert ran["decode"] == planned


# ---- Bad input


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--topology", "v9:4x4"], "no such TPU; there are v5e, v6e, v5p"),
        (["--topology", "v5e:3x3"], "no such slice of v5e; there are 1x1, 2x2"),
        (["--topology", "v5e:4x4"], "has 2 devices and v5e:4x4 has 16 chips"),
        (["--topology", "v5e:1x1", "--prompt", "0"], "--prompt is at least 1"),
        (["--topology", "v5e:1x1", "--reached", "0"], "--reached above 0"),
        (["--topology", "v5e:1x1", "mesh.data=1", "model=nowhere"], "published shapes are llama-3.1-8b"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(topology, "get", lambda _: pytest.fail("libtpu was asked"))
    assert cli.main(["plan", "configs/quickstart.yaml", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_without_libtpu_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["plan", "configs/quickstart.yaml", "--topology", "v5e:1x1", "mesh.data=1"]) == 2
    assert "needs the extra `plan`: pip install libtpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sizes, says",
    [
        ({"tp": 4}, "layers.wk has 2 kv_heads, which tp=4 does not divide"),
        ({"fsdp": 3}, "embed has 16 embed, which fsdp=3 does not divide"),
        ({"data": 8}, "sft.batch_size=4 cannot be split over data x fsdp = 8 devices"),
    ],
)
def test_a_mesh_that_does_not_divide_is_named(sizes, says):
    with pytest.raises(AstroError, match=says):
        Plan(cfg.Config(sft=cfg.Sft(batch_size=4)), CONFIG, make_mesh(**sizes))


def test_a_program_that_libtpu_does_not_print_is_said_to_be_unread(capsys):
    row = {"stage": "sft", "program": "step", "fits": True, "collectives": None}
    tables.show({"topology": "v6e:2x4", "chips": 8, "hbm_gib": 31.25, "programs": [row], "recipe": {"reached": 0.4}})
    assert "does not print the program: sft step" in " ".join(capsys.readouterr().out.split())


def test_what_does_not_fit_ends_with_code_3_and_what_to_change(capsys, monkeypatch):
    row = {"stage": "sft", "program": "step", "peak_gib": 20.0, "held_gib": 0.0, "at_once_gib": 20.0, "fits": False}
    found = {
        "topology": "v5e:4x4",
        "chips": 16,
        "hbm_gib": 15.75,
        "fits": False,
        "programs": [row],
        "recipe": {"reached": 0.4},
    }
    monkeypatch.setattr(plan, "run", lambda *_: found)
    assert cli.main(["plan", "configs/quickstart.yaml", "--topology", "v5e:4x4"]) == 3
    out = capsys.readouterr()
    assert "sft step needs 20.0 of 15.75 GiB a chip: lower sft.batch_size" in out.err
    assert "NO" in out.out


def test_a_plan_for_a_page_says_the_share_of_the_memory():
    row = {"stage": "sft", "program": "step", "peak_gib": 4.0, "at_once_gib": 5.0, "fits": True, "compile_s": 7.5}
    row |= {"tokens_per_s": 41700, "max_mfu": 0.68}
    recipe = {"reached": 0.4, "sft step": {"tokens": 2500000, "hours": 1.5, "chip_hours": 24.0}}
    found = {"topology": "v5e:4x4", "chips": 16, "hbm_gib": 15.75, "mesh": {"data": 1, "fsdp": 4, "tp": 4}}
    lines = tables.markdown(found | {"programs": [row], "recipe": recipe}).splitlines()
    assert lines[0] == "v5e:4x4, 16 chips of 15.75 GiB for programs; fsdp 4, tp 4."
    assert lines[4] == "| sft | step | 4.0 | 5.0 | 32% | 41,700 | 0.68 | 7.5 |"
    assert lines[6].endswith("at 0.4 of the roofline:") and lines[-1] == "| sft step | 2.5e+06 | 1.5 | 24.0 |"


def test_compiling_only_tells_memory_and_leaves_out_what_is_read_off_the_program():
    p = Plan(cfg.Config(sft=cfg.Sft(batch_size=2, max_length=16)), CONFIG, make_mesh())
    (program,) = p.programs("sft")
    whole, only = (plan._compiled(program, topology.CHIPS["v5e"], x) for x in (False, True))
    assert {"collectives", "tokens_per_s", "links_s"} < whole.keys() - only.keys()
    assert only["fits"] and {k: whole[k] for k in only.keys() - {"compile_s"}} == {
        k: v for k, v in only.items() if k != "compile_s"
    }


@pytest.mark.parametrize(
    "flags", [["--search", "--compile-only"], ["--search", "--markdown"], ["--compile-only", "--markdown"]]
)
def test_flags_of_a_plan_that_contradict_each_other_are_an_error(flags, capsys):
    assert cli.main(["plan", "configs/quickstart.yaml", "--topology", "v5e:4x4", *flags]) == 2
    assert capsys.readouterr().err.startswith("astro: plan: ")


# ---- The whole recipe


def test_the_recipe_counts_tokens_by_hand():
    c = cfg.parse(
        {
            "problems": {"search": 10},
            "search": {
                "iterations": 3,
                "leaves": 2,
                "proposals": 4,
                "rollouts": 5,
                "max_step_tokens": 7,
                "max_tokens": 11,
            },
            "traces": {"direct_examples": 1, "search_examples": 3, "max_backtracks": 2},
            "sft": {"epochs": 2},
            "grpo": {"steps": 6, "prompts": 8, "group": 4, "max_tokens": 13},
        }
    )
    rows = [
        {"stage": s, "program": p, "tokens_per_s": 100}
        for s, p in (("search", "decode"), ("sft", "step"), ("grpo", "decode"), ("grpo", "gradient"))
    ]
    rows[0]["unshared_tokens_per_s"] = 20
    found = plan.recipe(c, prompt=17, chips=4, rows=rows, reached=0.5)
    tokens = {k: v["tokens"] for k, v in found.items() if k != "reached"}
    whole, alone, early = (found.pop(f"search decode{x}") for x in ("", ", no prefix shared", ", one iteration a tree"))
    assert alone["hours"] == pytest.approx(5 * whole["hours"], abs=0.02) and alone["tokens"] == whole["tokens"]
    assert early["tokens"] == pytest.approx(whole["tokens"] / 3, abs=1)
    tokens = {k: v for k, v in tokens.items() if "," not in k}
    found["search decode"] = whole
    assert tokens == {
        "search decode": 10 * 3 * 2 * 4 * (7 + 5 * 11),
        "sft step": 2 * 10 * (4 * 17 + (1 + 3 * 2.5) * 11),
        "grpo decode": 6 * 8 * 4 * 13,
        "grpo gradient": 6 * 8 * 4 * (17 + 13),
    }
    hours = tokens["search decode"] / 50 / 3600
    assert found["search decode"]["hours"] == round(hours, 2)
    assert found["search decode"]["chip_hours"] == round(4 * hours, 1)


# ---- A mesh for a slice


@pytest.fixture
def slice_of_16(monkeypatch):
    """A v5e:4x4 of devices of this machine, and compilations that need 6 GiB a chip for a row of SFT's batch, 30 for
    everything without tp."""
    tried = []

    def run(c, name, stages, *_):
        tried.append((stages[0], c.mesh.tp, c.sft.batch))
        peak = 6.0 * c.sft.batch / c.mesh.fsdp if c.mesh.tp > 1 else 30.0
        row = {"stage": stages[0], "program": "step", "at_once_gib": peak, "fits": peak < 16, "seconds": 2.0}
        links = 2.0 * c.mesh.tp
        hours = {"hours": 10.0, "chip_hours": 160.0, "tokens": 1}
        return {"fits": peak < 16, "programs": [row | {"links_s": links}], "recipe": {f"{stages[0]} step": hours}}

    monkeypatch.setattr(topology, "get", lambda name: topology.Topology(name, None, (object(),) * 16))
    monkeypatch.setattr(choose, "make_mesh", lambda *shape, devices: make_mesh(1, 1, 1))
    monkeypatch.setattr(choose.programs, "check", check_like_a_mesh(choose.programs.check))
    monkeypatch.setattr(plan, "run", run)
    return tried


def check_like_a_mesh(check):
    """Two key-value heads divide over tp 1 and 2 only."""

    def checked(c, config, sharding):
        if c.mesh.tp > 2:
            raise AstroError("mesh: 2 kv_heads")
        check(c, config, sharding)

    return checked


def test_the_search_finds_the_mesh_and_the_batch_that_fit(slice_of_16, capsys):
    """tp 1 never fits; with tp 2, 32 rows over fsdp 8 take 24 GiB and 16 rows 12. The others do not divide."""
    command = [
        "plan",
        "configs/quickstart.yaml",
        "sft.batch_size=32",
        "--topology",
        "v5e:4x4",
        "--stage",
        "sft",
        "--search",
    ]
    assert cli.main([*command, "--json"]) == 0
    best, other = json.loads(capsys.readouterr().out)
    assert best == {
        "mesh": "{fsdp: 8, tp: 2}", "changes": {"sft.batch_size": 16}, "fits": True, "at_once_gib": 12.0, "hours": 20.0
    }  # fmt: skip
    assert other["mesh"] == "{fsdp: 16, tp: 1}" and not other["fits"] and other["changes"] == {"sft.batch_size": 16}
    assert slice_of_16 == [("sft", 1, 32), ("sft", 1, 16), ("sft", 2, 32), ("sft", 2, 16)]
    assert cli.main(command) == 0
    assert '"mesh={fsdp: 8, tp: 2}" sft.batch_size=16' in capsys.readouterr().out


def test_a_search_that_finds_nothing_ends_with_code_3(slice_of_16, capsys):
    command = [
        "plan",
        "configs/quickstart.yaml",
        "sft.batch_size=256",
        "--topology",
        "v5e:4x4",
        "--stage",
        "sft",
        "--search",
    ]
    assert cli.main([*command, "mesh.tp=1"]) == 0  # halved until it fits
    capsys.readouterr()
    assert cli.main([*command, "sft.batch_size=48"]) == 3
    assert "no mesh fits" in capsys.readouterr().err


@pytest.mark.parametrize("slots", [4, 24, 32, 128])
def test_the_planned_batches_are_those_that_a_sampler_shrinks_to(slots):
    p = Plan(cfg.Config(sampler=cfg.Sampler(max_num_seqs=slots, block_size=8)), CONFIG, make_mesh())
    layout = p.layout(8, 30, 16, "float32")
    _, sizes = p.engine().choose_layout(slots, slots // 8 or 1, 30, 16, "float32")
    smaller = [n for n in sizes if n < layout.num_seqs and n <= layout.num_prefixes]
    assert p.packed(layout) == max(smaller, default=0)


def test_rows_without_shared_prefixes_take_no_more_memory():
    p = Plan(cfg.Config(sampler=cfg.Sampler(max_num_seqs=64, block_size=8)), CONFIG, make_mesh())
    layout = p.layout(16, 60, 8, "float32")
    alone = p.unshared(layout)
    assert alone.group_size == 1 < layout.group_size
    layouts = (layout, alone, alone.ungrouped(alone.num_seqs + 1))
    taken = [size(p.kv_cache(x, "float32")) for x in layouts]
    assert taken[1] <= taken[0] < taken[2]
