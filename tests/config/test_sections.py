"""The sections: each key is described, its default has a source, and the paper's values are the paper's."""

import pydantic
import pytest

from astro_jax import config as cfg

KEYS = [(name, key, info) for name, section in cfg.sections().items() for key, info in section.model_fields.items()]


def test_sections_are_found_with_those_inside_sections():
    nested = {"": cfg.Config, "base_sft": cfg.Sft, "search.early_stop": cfg.EarlyStop, "problems.gym": cfg.Gym}
    assert nested.items() <= cfg.sections().items()
    assert len(cfg.sections()) == 27


def test_every_section_and_key_has_a_description_and_every_default_a_source():
    assert len(KEYS) > 130
    for name, key, info in KEYS:
        source = info.json_schema_extra["source"]
        assert info.description.endswith((".", ".`")) and len(info.description) > 5, (name, key)
        assert source.startswith(("paper, ", "ours", "GRPO, arXiv ", "required", "reasoning-gym")), (name, key, source)
    assert all(section.__doc__ and section.__doc__[0].isupper() for section in cfg.sections().values())


def test_defaults_are_those_of_the_paper():
    c = cfg.Config()
    s, t = c.search, c.traces
    assert (s.num_proposals, s.num_rollouts, s.num_simulations, s.max_depth) == (8, 16, 32, 50)
    assert (c.sft.num_train_epochs, c.sft.learning_rate, c.sft.max_length) == (1.0, 3e-6, 8192)
    assert (c.grpo.num_generations, c.grpo.learning_rate) == (4, 2e-7)
    assert (t.direct_examples, t.search_examples, t.max_backtracks) == (1, 3, 2)


def test_a_config_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        cfg.Config().seed = 3


def test_rl_with_int8_needs_something_to_round():
    rollouts = cfg.Grpo(quantized_rollouts=True, importance_sampling_cap=2.0)
    with pytest.raises(pydantic.ValidationError, match="quantized_rollouts: nothing is rounded"):
        cfg.Config(grpo=rollouts)
    sampler = cfg.Sampler(kv_cache_dtype="int8")
    assert cfg.Config(grpo=rollouts, sampler=sampler).rollout_sampler == sampler
    assert cfg.Config(sampler=sampler).rollout_sampler == cfg.Sampler()


def test_every_key_says_what_a_change_does():
    effects = {info.json_schema_extra["effect"] for _, _, info in KEYS}
    assert effects == {"results", "rounding", "none"}


def test_from_takes_a_run_or_a_list_of_runs():
    assert cfg.parse({"from": "runs/a"}).from_runs == ("runs/a",)
    assert cfg.parse({"from": ["runs/a", "runs/b"]}).from_runs == ("runs/a", "runs/b")
