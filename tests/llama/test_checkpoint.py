"""Checkpoints on any mesh, and models of every format loaded from a disk or a bucket."""

import pytest
from etils import epath
from helpers import LLAMA3, assert_trees_equal, bucket, change_json, countdown_tokenizer, tiny_config, tiny_params

from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, weights
from astro_jax.llama.tokenizer import load as load_tokenizer
from astro_jax.mesh import decode_sharding, make_mesh, train_sharding

TOKENIZER = countdown_tokenizer(9)


def test_checkpoint_is_read_back_onto_any_mesh(tmp_path):
    config = tiny_config(rope_scaling=LLAMA3)
    params = tiny_params(config)
    folder = epath.Path(tmp_path / "model")
    checkpoint.save(folder, config, params, TOKENIZER)
    config_read, params_read = checkpoint.load(folder)
    assert config_read == config
    assert_trees_equal(params_read, params)
    sharding = train_sharding(make_mesh(2, 2, 2))
    _, sharded = checkpoint.load(folder, sharding)
    assert_trees_equal(sharded, params)
    assert sharded.layers.wq.sharding.spec == sharding.spec(("layers", "embed", "heads", "head"))
    # From this mesh to another mesh.
    checkpoint.save(folder, config, sharded, TOKENIZER)
    _, resharded = checkpoint.load(folder, decode_sharding(make_mesh(data=4, tp=2)))
    assert_trees_equal(resharded, params)
    assert load_tokenizer(str(folder)).hf.get_vocab() == TOKENIZER.hf.get_vocab()
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_load_reads_a_hugging_face_folder(written_folder):
    config, params = checkpoint.load(written_folder)
    assert config == tiny_config()
    assert_trees_equal(params, tiny_params(config))


def test_checkpoint_of_another_shape_is_refused(tmp_path):
    folder = epath.Path(tmp_path / "model")
    checkpoint.save(folder, tiny_config(), tiny_params(tiny_config()), TOKENIZER)
    change_json(folder / "config.json", hidden_size=32)
    with pytest.raises(AstroError, match=r"embed is \(20, 16\), config.json says \(20, 32\)"):
        checkpoint.load(folder)
    change_json(folder / "config.json", hidden_size=16, tie_word_embeddings=True)
    with pytest.raises(AstroError, match=r"lm_head is \(16, 20\), config.json says None"):
        checkpoint.load(folder)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(AstroError, match=r"no such folder or \.gguf file, and no shipped model has this name"):
        checkpoint.load(tmp_path / "nothing")


# ---- In a bucket


def copy_to_bucket(folder, monkeypatch):
    """Copy a folder into a new bucket."""
    remote = bucket(monkeypatch) / "model"
    remote.mkdir(parents=True)
    for path in folder.iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    return remote


@pytest.mark.parametrize("block_bytes", [1 << 24, 64])
def test_model_in_a_bucket_equals_the_model_on_the_disk(written_folder, block_bytes, monkeypatch):
    """Weights are read by ranges of bytes, in blocks of any size."""
    monkeypatch.setattr(weights, "BLOCK_BYTES", block_bytes)
    remote = copy_to_bucket(written_folder, monkeypatch)
    config, params = checkpoint.load(remote)
    local_config, local_params = checkpoint.load(written_folder)
    assert config == local_config
    assert_trees_equal(params, local_params)
    text, tokenizer = "Let us make 3 from 1 2.\n", load_tokenizer(str(remote))
    local_tokenizer = load_tokenizer(str(written_folder))
    assert tokenizer.stop_token_ids == local_tokenizer.stop_token_ids
    assert tokenizer.encode(text) == local_tokenizer.encode(text)


@pytest.mark.parametrize("size", [4, 100, -4])
def test_truncated_file_in_a_bucket_is_refused(written_folder, size, monkeypatch):
    remote = copy_to_bucket(written_folder, monkeypatch)
    for path in remote.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AstroError, match="damaged or unreadable"):
        checkpoint.load(remote)
