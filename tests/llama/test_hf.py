"""Hugging Face folders: round trips bit for bit, and errors that name the damaged file, tensor or option."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from helpers import LLAMA3, assert_trees_equal, bucket, change_json, countdown_tokenizer, tiny_config, tiny_params

from astro_jax.errors import AstroError
from astro_jax.llama import hf
from astro_jax.llama import params as llama_params
from astro_jax.llama.tokenizer import load as load_tokenizer
from astro_jax.mesh import make_mesh, train_sharding

TOKENIZER = countdown_tokenizer(9)
VARIANTS = {
    "wide-heads-llama3-three-layers": {"n_kv_heads": 4, "head_dim": 8, "rope_scaling": LLAMA3, "n_layers": 3},
    "one-key-head-tied": {"n_kv_heads": 1, "tie_embeddings": True, "n_layers": 1},
}


def assert_refused(folder, *fragments):
    """Reading the folder is an error of one line, which contains these fragments."""
    with pytest.raises(AstroError) as e:
        hf.read(folder)
    message = str(e.value)
    assert "\n" not in message and all(str(fragment) in message for fragment in fragments), message


def change_tensors(folder, **changes):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if v is not None}, path)


# ---- Round trips


def test_written_folder_is_read_back_bit_for_bit(written_folder):
    config, params = hf.read(written_folder)
    assert config == tiny_config()
    assert_trees_equal(params, tiny_params(config))


@pytest.mark.parametrize("name", VARIANTS)
def test_written_variant_is_read_back_bit_for_bit(name, tmp_path):
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


def test_config_json_names_the_end_token_of_the_tokenizer(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == TOKENIZER.eos_token_id
    assert load_tokenizer(str(folder)).hf.get_vocab() == TOKENIZER.hf.get_vocab()


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
    hf.write(folder, config, params, TOKENIZER, max_file_bytes=4000)
    files = sorted(f.name for f in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    sizes = [sum(t.nbytes for t in safetensors.numpy.load_file(folder / f).values()) for f in files]
    assert max(sizes) <= 4000 and sum(sizes) == index["metadata"]["total_size"]
    assert_trees_equal(hf.read(folder)[1], params)


def test_bfloat16_parameters_are_written_as_bfloat16(tmp_path):
    config = tiny_config()
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(ml_dtypes.bfloat16)), tiny_params(config))
    folder = epath.Path(tmp_path / "model")
    hf.write(folder, config, params, TOKENIZER)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_trees_equal(hf.read(folder, dtype=ml_dtypes.bfloat16)[1], params)


def test_export_that_reads_back_differently_is_an_error_and_leaves_no_folder(tmp_path, monkeypatch):
    config = tiny_config()
    untransposed = lambda value, spec: np.ascontiguousarray(value.reshape(spec.hf_shape))  # noqa: E731
    monkeypatch.setattr(hf, "_to_hf", untransposed)
    with pytest.raises(AstroError, match="reads back differently"):
        hf.write(epath.Path(tmp_path / "model"), config, tiny_params(config), TOKENIZER)
    assert not (tmp_path / "model").exists()


def test_layers_of_a_large_stack_are_read_one_at_a_time(folder, monkeypatch):
    """The host once held all layers: 37 GB for one weight of a 70B model."""
    monkeypatch.setattr(hf, "MAX_HOST_STACK_BYTES", 0)
    events, read, put = [], hf.Tensor.read, hf._with_layer
    monkeypatch.setattr(hf.Tensor, "read", lambda self: events.append("read") or read(self))
    monkeypatch.setattr(hf, "_with_layer", lambda stack, value, i: events.append("put") or put(stack, value, i))
    hf.read(folder)
    assert "".join(e[0] for e in events) == "r" + 9 * "rprp" + "rr"  # embedding, 9 stacks of 2 layers, norm, head


def test_partial_rotary_factor_of_one_is_supported(folder):
    change_json(folder / "config.json", rope_parameters={"rope_theta": 7.0, "partial_rotary_factor": 1.0})
    assert hf.read_config(folder).rope_theta == 7.0


def test_mistral_without_a_sliding_window_is_read(folder):
    _, params = hf.read(folder)
    change_json(folder / "config.json", model_type="mistral", sliding_window=None)
    assert_trees_equal(hf.read(folder)[1], params)
    change_json(folder / "config.json", sliding_window=4096)
    assert_refused(folder, "sliding_window=4096")
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]  # a missing key means the default window
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, "sliding_window=4096")


def test_stored_rope_frequencies_are_ignored(folder):
    _, params = hf.read(folder)
    change_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
    assert_trees_equal(hf.read(folder)[1], params)


def split(folder):
    """Split the weights into two files and an index, as in large models."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, file_names in files.items():
        safetensors.numpy.save_file({n: tensors[n] for n in file_names}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, file_names in files.items() for n in file_names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_several_files_are_read(folder):
    _, whole = hf.read(folder)
    split(folder)
    assert_trees_equal(hf.read(folder)[1], whole)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert_refused(folder, "model-00002-of-00002.safetensors", "missing")


@pytest.mark.parametrize("max_host_stack_bytes", [0, hf.MAX_HOST_STACK_BYTES], ids=["on-devices", "on-host"])
def test_params_read_onto_a_mesh_have_the_same_values_and_their_shardings(max_host_stack_bytes, folder, monkeypatch):
    config, plain = hf.read(folder)
    assert_trees_equal(plain, tiny_params(config))
    monkeypatch.setattr(hf, "MAX_HOST_STACK_BYTES", max_host_stack_bytes)
    sharding = train_sharding(make_mesh(2, 2, 2))
    _, sharded = hf.read(folder, sharding)
    assert_trees_equal(sharded, plain)
    assert_trees_equal(hf.read(folder)[1], plain)  # without a mesh
    jax.tree.map(lambda x, s: None if x.sharding == s else pytest.fail(str(s)), sharded,
                 llama_params.shardings(config, sharding))  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_processes_share_the_rows_of_a_tensor(dtype, folder, tmp_path, monkeypatch):
    """Eight devices: each tensor is read once in all, a share for each device, on a disk and from a bucket."""
    config, plain = hf.read(folder, dtype=dtype)
    remote = bucket(monkeypatch) / "model"
    for path in folder.iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    sharding = train_sharding(make_mesh(2, 2, 2))
    for source in (folder, remote):
        tensors, counts = {}, {}
        for name, tensor in hf.open_weights(source)[1].items():

            def rows(first, last, tensor=tensor, counts=counts):
                counts.setdefault(tensor.name, []).append((first, last))
                return tensor.rows(first, last)

            tensors[name] = dataclasses.replace(tensor, rows=rows)
        with monkeypatch.context() as patch:
            patch.setattr(hf, "MAX_HOST_STACK_BYTES", 0)
            patch.setattr(jax, "process_count", lambda: 2)
            sharded = hf.params_from_tensors(config, tensors, sharding, dtype)
        assert_trees_equal(sharded, plain)
        jax.tree.map(lambda x, s: None if x.sharding == s else pytest.fail(str(s)), sharded,
                     llama_params.shardings(config, sharding))  # fmt: skip
        shared = {name: t.shape[0] // 8 for name, t in tensors.items() if t.shape[0] % 8 == 0}
        assert shared and {name: sorted(ranges) for name, ranges in counts.items()} == {
            name: [(i * n, (i + 1) * n) for i in range(8)] for name, n in shared.items()
        }


# ---- Errors


@pytest.mark.parametrize(
    "changes, fragments",
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
def test_unsupported_or_inconsistent_config_is_refused(folder, changes, fragments):
    change_json(folder / "config.json", **changes)
    assert_refused(folder, *fragments)


@pytest.mark.parametrize("text", ["{", '{"model_type": "llama"}', "[1]"])
def test_config_json_of_another_kind_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert_refused(folder, folder / "config.json", "not a Llama config")


def test_missing_config_is_refused(folder):
    (folder / "config.json").unlink()
    assert_refused(folder, folder, "no config.json")


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    assert_refused(folder, folder, "no model.safetensors")


def test_missing_tensor_is_refused(folder):
    change_tensors(folder, **{"model.layers.1.mlp.up_proj.weight": None})
    assert_refused(folder, "model.layers.1.mlp.up_proj.weight", "missing")


def test_tensor_of_another_shape_is_refused(folder):
    change_tensors(folder, **{"lm_head.weight": np.zeros((16, 20), np.float32)})
    assert_refused(folder, "lm_head.weight", "(16, 20)", "(20, 16)")


def test_unknown_tensor_is_refused(folder):
    change_tensors(folder, **{"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)})
    assert_refused(folder, "model.layers.0.self_attn.q_proj.bias", "not part of a Llama model")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(folder, bad):
    change_tensors(folder, **{"model.norm.weight": np.full(16, bad, np.float32)})
    assert_refused(folder, "model.norm.weight", "not finite")


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_truncated_file_is_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(folder, path, "damaged or unreadable")


def test_broken_index_is_refused(folder):
    split(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map"')
    assert_refused(folder, "model.safetensors.index.json")


def test_existing_destination_is_refused_and_not_changed(folder):
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(AstroError, match="exists; nothing was written"):
        hf.write(folder, tiny_config(), tiny_params(tiny_config(), seed=1), TOKENIZER)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
