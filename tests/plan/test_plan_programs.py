"""The planned programs are those that a run compiles; meshes that do not divide are refused."""

import json

import pytest
from helpers import tiny_config

from astro_jax import config as cfg
from astro_jax import llama, pipeline
from astro_jax.errors import AstroError
from astro_jax.mesh import make_mesh
from astro_jax.plan.planner import model_config
from astro_jax.plan.programs import Plan, size
from astro_jax.sampler import Request, SamplingParams, kv_cache
from astro_jax.sampler import programs as sampler_programs
from astro_jax.train import grpo, sft
from astro_jax.train.state import make_accumulate

CONFIG = tiny_config(n_layers=6, d_ff=40, vocab_size=48)


def record_text(function, texts, name):
    """Wrap a function that makes a jitted function: texts[name] is the lowered text of its first call."""

    def make(*args):
        jitted = function(*args)

        def call(*args):
            texts.setdefault(name, jitted.lower(*args).as_text())
            return jitted(*args)

        call.lower = jitted.lower
        return call

    return make


@pytest.mark.slow
def test_planned_training_programs_equal_those_of_a_run(tmp_path, monkeypatch):
    raw = {
        "model": "countdown-base", "out": str(tmp_path / "run"), "mesh": {"data": 2, "tp": 2},
        "stages": ["base", "search", "traces", "direct-sft", "direct-rl"],
        "problems": {"search": 12, "rl": 4}, "sampler": {"max_num_seqs": 32, "num_scheduler_steps": 4},
        "search": {"num_proposals": 4, "num_rollouts": 4, "num_simulations": 2, "max_step_tokens": 16,
                   "max_rollout_tokens": 24},
        "sft": {"batch_size": 4, "max_length": 128, "num_train_epochs": 1},
        "grpo": {"max_steps": 2, "prompts_per_step": 4, "num_generations": 4, "max_completion_length": 24,
                 "max_length": 128, "micro_batch_size": 4},
    }  # fmt: skip
    c, texts = cfg.parse(raw), {}
    monkeypatch.setattr(sft, "make_step", record_text(sft.make_step, texts, "sft"))
    monkeypatch.setattr(grpo, "make_accumulate", record_text(make_accumulate, texts, "gradient"))
    monkeypatch.setattr(grpo, "make_apply", record_text(grpo.make_apply, texts, "update"))
    monkeypatch.setattr(grpo, "make_reshard", record_text(grpo.make_reshard, texts, "reshard"))
    run = pipeline.execute(c)
    steps = [json.loads(x) for x in (run.folder / "direct-sft" / "metrics.jsonl").read_text().splitlines()][-1]["step"]
    config, mesh = model_config("countdown-base"), make_mesh(2, 1, 2)
    assert texts["sft"] == Plan(c, config, mesh, steps=steps).sft_step().as_text()
    plan = Plan(c, config, mesh, steps=2)
    assert texts["gradient"] == plan.grpo_gradient().as_text()
    assert texts["update"] == plan.grpo_update().as_text()
    assert texts["reshard"] == plan.reshard().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("rounding", [None, "int8"])
def test_planned_decode_equals_that_of_the_sampler(monkeypatch, rounding):
    texts = {}
    monkeypatch.setattr(sampler_programs, "make_decode", record_text(sampler_programs.make_decode, texts, "decode"))
    c = cfg.Config(
        model="countdown-base",
        sampler=cfg.Sampler(max_num_seqs=16, num_scheduler_steps=4, quantization=rounding, kv_cache_dtype=rounding),
        search=cfg.Search(num_rollouts=4, max_rollout_tokens=16),
    )
    plan = Plan(c, model_config(c.model), make_mesh(), prompt=20)
    (planned,) = (program.lower().as_text() for program in plan.programs("search") if program.name == "decode")
    _, params = llama.load(c.model, plan.sample)
    prefix = tuple(range(1, 37))  # 20 tokens of a prompt and a rollout of 16
    requests = [Request(prefix, 4, (i,)) for i in range(4)]
    engine = plan.engine()
    engine.generate(engine.quantize(params), requests, SamplingParams(max_tokens=16, stop_token_ids=()))
    assert texts["decode"] == planned


@pytest.mark.parametrize("max_num_seqs", [4, 24, 32, 128])
def test_planned_batch_sizes_equal_those_of_the_sampler(max_num_seqs):
    plan = Plan(cfg.Config(sampler=cfg.Sampler(max_num_seqs=max_num_seqs, block_size=8)), CONFIG, make_mesh())
    layout = plan.layout(8, 30, 16, "float32")
    _, sizes = plan.engine().choose_layout(max_num_seqs, max_num_seqs // 8 or 1, 30, 16, "float32")
    smaller = [n for n in sizes if n < layout.num_seqs and n <= layout.num_prefixes]
    assert plan.packed(layout) == max(smaller, default=0)


def test_unshared_rows_take_the_same_memory():
    plan = Plan(cfg.Config(sampler=cfg.Sampler(max_num_seqs=64, block_size=8)), CONFIG, make_mesh())
    layout = plan.layout(16, 60, 8, "float32")
    unshared = plan.unshared(layout)
    assert unshared.group_size == 1 < layout.group_size
    one_row_more = unshared.ungrouped(unshared.num_seqs + 1)
    sizes = [size(plan.kv_cache(x, "float32")) for x in (layout, unshared, one_row_more)]
    assert sizes[1] <= sizes[0] < sizes[2]


def test_a_judge_lies_beside_the_programs_of_the_stages_that_ask_it():
    judge = tiny_config(n_layers=1, n_kv_heads=1)
    settings = cfg.Verify(judge=cfg.Judge(model="judge", num_samples=4, max_tokens=16))
    c = cfg.Config(sampler=cfg.Sampler(max_num_seqs=16, block_size=8, dtype="float32"), verify=settings)
    alone, plan = (Plan(c, CONFIG, make_mesh(), 20, judge=model) for model in (None, judge))
    weights = 4 * llama.params.count(judge)
    # The rubric fills the context of 128: 112 columns of prompts, of which 4 samples share one, take 16 blocks of 8.
    cache = 16 * kv_cache.bytes_per_sequence(kv_cache.bytes_per_column(judge, 4), 16 * 8, 2 * 8, 4)
    for stage in ("search", "grpo"):
        *programs, judging = plan.programs(stage)
        before = {p.name: size(p.resident) for p in alone.programs(stage)}
        assert {p.name: size(p.resident) - weights for p in programs} == before
        assert judging.cost.tokens == 16 * c.sampler.num_scheduler_steps
        assert size(judging.resident) == before["decode"] + weights + size(plan.weights(c.grpo.dtype)) + cache
    assert [p.name for p in plan.programs("eval")] == [p.name for p in alone.programs("eval")]
    with pytest.raises(AstroError, match="mesh: the judge's layers\\.wk has 1 kv_heads, which tp=2 does not divide"):
        Plan(c, CONFIG, make_mesh(tp=2), judge=judge)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"tp": 4}, "layers.wk has 2 kv_heads, which tp=4 does not divide"),
        ({"fsdp": 3}, "embed has 16 embed, which fsdp=3 does not divide"),
        ({"data": 8}, "sft.batch_size=4 cannot be split over data x fsdp = 8 devices"),
    ],
)
def test_mesh_that_does_not_divide_names_the_dimension(sizes, message):
    with pytest.raises(AstroError, match=message):
        Plan(cfg.Config(sft=cfg.Sft(batch_size=4)), CONFIG, make_mesh(**sizes))
