"""Hugging Face folders and our own checkpoints: round trips bit for bit, and refusals that name what is wrong."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from helpers import LLAMA3, assert_trees_equal, bucket, countdown_tokenizer, tiny_config, tiny_params

from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, hf, tokenizer, weights
from astro_jax.llama import params as llama_params
from astro_jax.mesh import decode_sharding, make_mesh, train_sharding

TOKENIZER = countdown_tokenizer(9)
VARIANTS = {
    "grouped": {},
    "every-head-its-own": {"n_kv_heads": 4},
    "one-shared-tied": {"n_kv_heads": 1, "tie_embeddings": True},
    "wide-heads-llama3": {"head_dim": 8, "rope_scaling": LLAMA3, "n_layers": 3},
}


@pytest.fixture
def folder(tmp_path):
    """A written model, to be damaged."""
    config = tiny_config()
    hf.write(epath.Path(tmp_path / "model"), config, tiny_params(config), TOKENIZER)
    return epath.Path(tmp_path / "model")


def refused(folder, *parts):
    """Reading is refused by one line that holds these parts."""
    with pytest.raises(AstroError) as e:
        hf.read(folder)
    message = str(e.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, **changes):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if v is not None}, path)


@pytest.mark.parametrize("name", VARIANTS)
def test_write_then_read_is_the_same_bit_for_bit(name, tmp_path):
    config = tiny_config(**VARIANTS[name])
    params = tiny_params(config)
    folder = epath.Path(tmp_path / "deep" / "model")
    hf.write(folder, config, params, TOKENIZER)
    config_again, again = hf.read(folder)
    assert config_again == config and jax.tree.structure(again) == jax.tree.structure(params)
    assert_trees_equal(again, params)
    assert not list(tmp_path.glob("**/*.part"))


def test_tensors_have_the_names_and_shapes_of_hugging_face(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    layer = "model.layers.1."
    expected = {  # [out, in]; D = 16, F = 24, H h = 16, K h = 8, V = 20
        "model.embed_tokens.weight": (20, 16), "model.norm.weight": (16,), "lm_head.weight": (20, 16),
        layer + "input_layernorm.weight": (16,), layer + "post_attention_layernorm.weight": (16,),
        layer + "self_attn.q_proj.weight": (16, 16), layer + "self_attn.o_proj.weight": (16, 16),
        layer + "self_attn.k_proj.weight": (8, 16), layer + "self_attn.v_proj.weight": (8, 16),
        layer + "mlp.gate_proj.weight": (24, 16), layer + "mlp.up_proj.weight": (24, 16),
        layer + "mlp.down_proj.weight": (16, 24),
    }  # fmt: skip
    assert expected.items() <= {name: value.shape for name, value in tensors.items()}.items()
    assert len(tensors) == 3 + 2 * 9
    params = tiny_params(tiny_config())
    # Row 4 n + i of q_proj is unit i of head n.
    q, o = (tensors[f"{layer}self_attn.{name}_proj.weight"] for name in "qo")
    for n, i in ((0, 0), (2, 3)):
        np.testing.assert_array_equal(q[4 * n + i], params.layers.wq[1, :, n, i])
        np.testing.assert_array_equal(o[:, 4 * n + i], params.layers.wo[1, n, i])


def test_the_config_names_the_tokenizers_end_token(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == TOKENIZER.eos_token_id
    assert tokenizer.load(str(folder)).hf.get_vocab() == TOKENIZER.hf.get_vocab()


def test_bfloat16_weights_are_read(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    safetensors.numpy.save_file(half, folder / "model.safetensors")
    _, params = hf.read(folder)
    assert params.embed.dtype == np.float32
    np.testing.assert_array_equal(params.embed, half["model.embed_tokens.weight"].astype(np.float32))
    assert hf.read(folder, dtype=ml_dtypes.bfloat16)[1].embed.dtype == ml_dtypes.bfloat16


def test_large_weights_are_written_in_several_files(tmp_path):
    config = tiny_config()
    params = tiny_params(config)
    folder = epath.Path(tmp_path / "model")
    hf.write(folder, config, params, TOKENIZER, max_bytes=4000)
    files = sorted(f.name for f in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    sizes = [sum(t.nbytes for t in safetensors.numpy.load_file(folder / f).values()) for f in files]
    assert max(sizes) <= 4000 and sum(sizes) == index["metadata"]["total_size"]
    assert_trees_equal(hf.read(folder)[1], params)


def test_bfloat16_parameters_are_written_as_they_are(tmp_path):
    config = tiny_config()
    params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), tiny_params(config))
    folder = epath.Path(tmp_path / "model")
    hf.write(folder, config, params, TOKENIZER)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_trees_equal(hf.read(folder, dtype=ml_dtypes.bfloat16)[1], params)


def test_what_reads_back_otherwise_is_not_left_as_a_model(tmp_path, monkeypatch):
    config = tiny_config()
    turned = lambda value, spec: np.ascontiguousarray(value.reshape(hf._hf_shape(spec)))  # not transposed  # noqa: E731
    monkeypatch.setattr(hf, "_to_hf", turned)
    with pytest.raises(AstroError, match="reads back differently"):
        hf.write(epath.Path(tmp_path / "model"), config, tiny_params(config), TOKENIZER)
    assert not (tmp_path / "model").exists()


def test_layers_of_a_large_stack_are_not_on_the_host_together(folder, monkeypatch):
    """It was np.stack of all of them: 37 GB for one weight of a 70B."""
    monkeypatch.setattr(hf, "STACKED_BYTES", 0)
    events, read, put = [], hf.Tensor.read, hf._with_layer
    monkeypatch.setattr(hf.Tensor, "read", lambda self: events.append("read") or read(self))
    monkeypatch.setattr(hf, "_with_layer", lambda stack, value, i: events.append("put") or put(stack, value, i))
    hf.read(folder)
    assert "".join(e[0] for e in events) == "r" + 9 * "rprp" + "rr"  # embedding, 9 stacks of 2 layers, norm, head


def test_a_partial_rotary_factor_of_one_is_ours(folder):
    change_config(folder, rope_parameters={"rope_theta": 7.0, "partial_rotary_factor": 1.0})
    assert hf.read_config(folder).rope_theta == 7.0


def test_a_mistral_without_a_window_is_read(folder):
    _, params = hf.read(folder)
    change_config(folder, model_type="mistral", sliding_window=None)
    assert_trees_equal(hf.read(folder)[1], params)
    change_config(folder, sliding_window=4096)
    refused(folder, "sliding_window=4096")
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]  # its absence means the default window, not none
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "sliding_window=4096")


def test_tensors_that_follow_from_the_config_are_passed_over(folder):
    _, params = hf.read(folder)
    change_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
    assert_trees_equal(hf.read(folder)[1], params)


def split(folder):
    """The weights in two files and an index, as large models have them."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        safetensors.numpy.save_file({n: tensors[n] for n in held}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, held in parts.items() for n in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_several_files_are_read(folder):
    _, whole = hf.read(folder)
    split(folder)
    assert_trees_equal(hf.read(folder)[1], whole)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors", "missing")


@pytest.mark.parametrize("stacked_bytes", [0, hf.STACKED_BYTES], ids=["on-the-devices", "on-the-host"])
def test_reading_onto_a_mesh_gives_the_same_values_on_their_shardings(stacked_bytes, folder, monkeypatch):
    config, plain = hf.read(folder)
    assert_trees_equal(plain, tiny_params(config))
    monkeypatch.setattr(hf, "STACKED_BYTES", stacked_bytes)
    sharding = train_sharding(make_mesh(2, 2, 2))
    _, sharded = hf.read(folder, sharding)
    assert_trees_equal(sharded, plain)
    assert_trees_equal(hf.read(folder)[1], plain)  # and without one
    jax.tree.map(lambda x, s: None if x.sharding == s else pytest.fail(str(s)), sharded,
                 llama_params.shardings(config, sharding))  # fmt: skip


# ---- Refusals


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"model_type": "qwen3"}, ["model_type", "'qwen3'", "'llama'"]),
        ({"attention_bias": True}, ["attention_bias=True"]),
        ({"mlp_bias": True}, ["mlp_bias=True"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor=0.5"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ["full_attention="]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, ["rope scaling 'yarn'"]),
        ({"num_key_value_heads": 3}, ["4 query heads", "3 key-value heads"]),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, ["config.json", "factor"]),
        ({"hidden_size": 17}, ["(20, 16)", "(20, 17)", "model.embed_tokens.weight"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.", "missing"]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, parts):
    change_config(folder, **changes)
    refused(folder, *parts)


@pytest.mark.parametrize("text", ["{", '{"model_type": "llama"}', "[1]"])
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, folder / "config.json", "not a Llama's config")


def test_a_missing_config_is_refused(folder):
    (folder / "config.json").unlink()
    refused(folder, folder, "no config.json")


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, folder, "no model.safetensors")


def test_a_missing_tensor_is_refused(folder):
    change_tensors(folder, **{"model.layers.1.mlp.up_proj.weight": None})
    refused(folder, "model.layers.1.mlp.up_proj.weight", "missing")


def test_a_tensor_of_another_shape_is_refused(folder):
    change_tensors(folder, **{"lm_head.weight": np.zeros((16, 20), np.float32)})
    refused(folder, "lm_head.weight", "(16, 20)", "(20, 16)")


def test_a_tensor_without_a_place_is_refused(folder):
    change_tensors(folder, **{"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)})
    refused(folder, "model.layers.0.self_attn.q_proj.bias", "no place")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(folder, bad):
    change_tensors(folder, **{"model.norm.weight": np.full(16, bad, np.float32)})
    refused(folder, "model.norm.weight", "not finite")


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_truncated_file_is_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, path, "damaged or unreadable")


def test_a_broken_index_is_refused(folder):
    split(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map"')
    refused(folder, "model.safetensors.index.json")


def test_an_existing_destination_is_refused_and_left_alone(folder):
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(AstroError, match="exists; nothing was written"):
        hf.write(folder, tiny_config(), tiny_params(tiny_config(), seed=1), TOKENIZER)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


# ---- Our own checkpoints


def test_a_checkpoint_is_read_back_onto_any_mesh(tmp_path):
    config = tiny_config(rope_scaling=LLAMA3)
    params = tiny_params(config)
    folder = epath.Path(tmp_path / "model")
    checkpoint.save(folder, config, params, TOKENIZER)
    config_again, again = checkpoint.load(folder)
    assert config_again == config
    assert_trees_equal(again, params)
    sharding = train_sharding(make_mesh(2, 2, 2))
    _, sharded = checkpoint.load(folder, sharding)
    assert_trees_equal(sharded, params)
    assert sharded.layers.wq.sharding.spec == sharding.spec(("layers", "embed", "heads", "head"))
    # From that mesh to another one.
    checkpoint.save(folder, config, sharded, TOKENIZER)
    _, third = checkpoint.load(folder, decode_sharding(make_mesh(data=4, tp=2)))
    assert_trees_equal(third, params)
    assert tokenizer.load(str(folder)).hf.get_vocab() == TOKENIZER.hf.get_vocab()
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_load_reads_a_hugging_face_folder_too(folder):
    config, params = checkpoint.load(folder)
    assert config == tiny_config()
    assert_trees_equal(params, tiny_params(config))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    folder = epath.Path(tmp_path / "model")
    checkpoint.save(folder, tiny_config(), tiny_params(tiny_config()), TOKENIZER)
    change_config(folder, hidden_size=32)
    with pytest.raises(AstroError, match=r"embed is \(20, 16\), config.json says \(20, 32\)"):
        checkpoint.load(folder)
    change_config(folder, hidden_size=16, tie_word_embeddings=True)
    with pytest.raises(AstroError, match=r"lm_head is \(16, 20\), config.json says None"):
        checkpoint.load(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(AstroError, match=r"no such folder or \.gguf file, and no model of that name"):
        checkpoint.load(tmp_path / "nothing")


# ---- In a bucket


@pytest.mark.parametrize("block_bytes", [1 << 24, 64])
def test_a_model_in_a_bucket_is_that_on_the_disk(folder, block_bytes, monkeypatch):
    """Weights by ranges of bytes, in blocks of any size; tokenizer and config."""
    monkeypatch.setattr(weights, "BLOCK_BYTES", block_bytes)
    far = bucket(monkeypatch) / "model"
    far.mkdir(parents=True)
    for path in epath.Path(folder).iterdir():
        (far / path.name).write_bytes(path.read_bytes())
    config, params = checkpoint.load(far)
    mine, ours = checkpoint.load(folder)
    assert config == mine
    assert_trees_equal(params, ours)
    here, there = tokenizer.load(str(folder)), tokenizer.load(str(far))
    assert there.ends == here.ends and there.encode("Let us make 3 from 1 2.\n") == here.encode(
        "Let us make 3 from 1 2.\n"
    )


def test_a_tokenizer_is_written_into_a_bucket(monkeypatch):
    far = bucket(monkeypatch) / "model"
    far.mkdir(parents=True)
    ours = countdown_tokenizer(9)
    ours.save(far)
    assert tokenizer.load(str(far)).encode("Let us make 3 from 1 2.\n") == ours.encode("Let us make 3 from 1 2.\n")


@pytest.mark.parametrize("kept", [4, 100, -4])
def test_a_truncated_file_in_a_bucket_is_refused(folder, kept, monkeypatch):
    far = bucket(monkeypatch) / "model"
    far.mkdir(parents=True)
    for path in epath.Path(folder).iterdir():
        content = path.read_bytes()
        (far / path.name).write_bytes(content[:kept] if path.suffix == ".safetensors" else content)
    with pytest.raises(AstroError, match="damaged or unreadable"):
        checkpoint.load(far)
