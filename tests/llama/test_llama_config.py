"""The config: published sizes, and Hugging Face's config.json of old and new versions."""

import json

import pytest
from helpers import LLAMA3, tiny_config

from astro_jax.errors import AstroError
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig, from_hf, llama3_1b, llama3_8b, smollm2_135m, to_hf


def test_llama_8b_has_the_published_parameter_count_and_flops():
    assert llama_params.count(llama3_8b()) == 8_030_261_248
    # 2 FLOPs a weight of a matmul: the embedding table and the norms have none
    assert llama3_8b().flops_per_token() == 2 * (8_030_261_248 - 128256 * 4096 - 65 * 4096)
    assert llama3_8b().groups == 4


def test_small_models_have_their_published_parameter_counts():
    assert llama_params.count(llama3_1b()) == 1_235_814_400
    assert llama_params.count(smollm2_135m()) == 134_515_008


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_heads": 1, "head_dim": 8, "tie_embeddings": True, "norm_eps": 1e-2},
        {"rope_scaling": LLAMA3, "rope_theta": 500.0},
    ],
    ids=["default-rope", "llama3-rope"],
)
def test_from_hf_inverts_to_hf(changes):
    config = tiny_config(**changes)
    assert from_hf(json.loads(json.dumps(to_hf(config, "float32")))) == config


def test_config_of_older_transformers_is_read():
    old = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "hidden_act": "silu", "attention_bias": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip
    assert from_hf(old) == llama3_8b()
    assert from_hf(old | {"rope_scaling": None, "rope_theta": 1e4}).rope_scaling is None


def test_head_counts_that_do_not_divide_are_an_error():
    with pytest.raises(AstroError, match="4 query heads do not divide into 3"):
        LlamaConfig(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=4, n_kv_heads=3, head_dim=2)
