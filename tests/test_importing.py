"""`astro import`: tensors are copied bit for bit, within a bound of memory, and a failure leaves no files."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath
from helpers import countdown_tokenizer, tiny_config, tiny_params

import astro_jax
from astro_jax import cli, importing, llama, storage
from astro_jax.llama import weights

TOKENIZER = countdown_tokenizer(9)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
TINY = dict(vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
# More than eight times its largest tensor (64 MiB), so that the peak of memory shows an extra copy.
SCALED = dict(vocab_size=16384, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
              num_attention_heads=16, num_key_value_heads=4)  # fmt: skip
# The environment of subprocesses, which import the package under test.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(epath.Path(astro_jax.__file__).parent.parent)}
# The shapes of Llama-3.1-70B.
LLAMA_70B = dict(vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                 num_attention_heads=64, num_key_value_heads=8)  # fmt: skip


def shapes_of(c):
    """Hugging Face's names and shapes of a Llama with this config.json."""
    d, f = c["hidden_size"], c["intermediate_size"]
    kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
    layer = {
        "input_layernorm": (d,), "post_attention_layernorm": (d,), "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    if not c.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def write_without_weights(folder, config, weight_map):
    """Write all files of a model except the weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5, **config}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    TOKENIZER.hf.save_pretrained(folder)


def write_tiny(folder, dtype="float32", **changes):
    """Write a model with random tensors in three files."""
    config, rng = TINY | changes, np.random.default_rng(0)
    shapes = shapes_of(config)
    files = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(shapes)}
    write_without_weights(folder, config, files)
    tensors = {name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    return folder


def write_sparse(folder, config):
    """Write a bfloat16 model as sparse files: each tensor starts with random values; the rest takes no disk space."""
    groups, files, size = [{}], {}, 0
    for name, shape in shapes_of(config).items():
        if size + 2 * math.prod(shape) > 5e9:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size += 2 * math.prod(shape)
    files = {name: f"model-{i:05d}.safetensors" for i, names in enumerate(groups) for name in names}
    write_without_weights(folder, config, files)
    rng = np.random.default_rng(0)
    for i, shapes in enumerate(groups):
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with (folder / f"model-{i:05d}.safetensors").open("wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for tensor in header.values():
                f.seek(8 + len(text) + tensor["data_offsets"][0])
                f.write(rng.standard_normal(512).astype(ml_dtypes.bfloat16).tobytes())
            f.truncate(8 + len(text) + end)
    return folder


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def scaled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield write_sparse(tmp_path / "scaled", SCALED)
    shutil.rmtree(tmp_path)  # pytest would keep 600 MB


def run(*argv):
    """Run a command of `astro`, which must succeed."""
    assert cli.main([str(a) for a in argv]) == 0


def bits(folder):
    """{name: (dtype, shape, bytes)} of every tensor of a folder."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        for name, value in safetensors.numpy.load_file(file).items():
            tensors[name] = value.dtype.name, value.shape, value.tobytes()
    return tensors


def error_of(capsys, *argv):
    """The error line of an import that fails with exit code 2 and leaves no new file."""
    before = {p.name for p in epath.Path(".").iterdir()}
    capsys.readouterr()
    assert cli.main(["import", *map(str, argv)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("astro: ")]
    assert {p.name for p in epath.Path(".").iterdir()} == before
    return line


# ---- Tensors and dtypes


@pytest.mark.parametrize("dtype, tied", [("float32", True), ("bfloat16", False), ("float16", True)])
def test_import_then_export_gives_every_tensor_back_bit_for_bit(dtype, tied, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_BYTES", 100)  # many blocks a tensor
    source = write_tiny(tmp_path / "source", dtype, tie_word_embeddings=tied)
    run("import", source, tmp_path / "imported")
    run("export", tmp_path / "imported", tmp_path / "exported")
    # The same through a checkpoint.
    config, params = llama.load(tmp_path / "imported", dtype=None)
    llama.save(epath.Path(tmp_path / "checkpoint"), config, params, TOKENIZER)
    run("export", tmp_path / "checkpoint", tmp_path / "exported-checkpoint")
    expected = bits(source)
    assert {name: shape for name, (_, shape, _) in expected.items()} == shapes_of(TINY | {"tie_word_embeddings": tied})
    for name in ("imported", "exported", "exported-checkpoint"):
        assert bits(tmp_path / name) == expected
        assert json.loads((tmp_path / name / "config.json").read_text())["torch_dtype"] == dtype
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_converted_to_the_dtype_of_the_option(stored, dtype, tmp_path):
    import transformers

    source = write_tiny(tmp_path / "source", stored)
    run("import", source, tmp_path / "new", "--dtype", dtype)
    new = bits(tmp_path / "new")
    for file in source.glob("*.safetensors"):
        for name, value in safetensors.numpy.load_file(file).items():
            assert new[name][2] == value.astype(DTYPES[dtype]).tobytes()
    assert str(transformers.AutoConfig.from_pretrained(tmp_path / "new").dtype).removeprefix("torch.") == dtype


def test_tensors_of_mixed_dtypes_keep_their_dtypes(tiny, tmp_path):
    """Some models have float32 norms among bfloat16 tensors. Every tensor stays aligned."""
    for file in tiny.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        half = {n: t if "norm" in n else t.astype(ml_dtypes.bfloat16) for n, t in tensors.items()}
        safetensors.numpy.save_file(half, file)
    run("import", tiny, "mixed")
    run("export", "mixed", "exported")
    assert bits(tmp_path / "mixed") == bits(tmp_path / "exported") == bits(tiny)
    assert {dtype for dtype, _, _ in bits(tiny).values()} == {"float32", "bfloat16"}


def test_large_models_are_written_in_several_files(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(weights.split_into_files, "__defaults__", (4000,))
    run("import", tiny, "new")
    files = {f.name: f.stat().st_size for f in (tmp_path / "new").glob("*.safetensors")}
    assert len(files) > 3 and bits(tmp_path / "new") == bits(tiny)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in bits(tiny).values())


# ---- Memory


def peak(*argv):
    """Peak resident memory of `astro` in bytes. A small helper starts it: a child inherits the peak of its parent."""
    helper = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, '-m', 'astro_jax', *sys.argv[1:]],"
        " check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    call = [sys.executable, "-c", helper, *map(str, argv)]
    done = subprocess.run(call, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return 1024 * int(done.stdout.splitlines()[-1])


def assert_copied(source, written):
    """Every tensor exists, with the dtype, the shape and the first row of the source."""
    names = set()
    for file in written.glob("*.safetensors"):
        with safetensors.safe_open(file, "numpy") as copied:
            for name in copied.keys():
                index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
                with safetensors.safe_open(source / index[name], "numpy") as original:
                    a, b = copied.get_slice(name), original.get_slice(name)
                    assert (a.get_shape(), a.get_dtype()) == (b.get_shape(), b.get_dtype())
                    np.testing.assert_array_equal(a[0:1].view(np.uint16), b[0:1].view(np.uint16))
                names.add(name)
    assert names == set(index)


@pytest.mark.slow
def test_import_holds_less_than_two_tensors_in_memory(scaled, tmp_path):
    largest = 2 * 16384 * 2048
    assert sum(2 * math.prod(shape) for shape in shapes_of(SCALED).values()) > 8 * largest
    base = peak("import", write_tiny(tmp_path / "tiny"), tmp_path / "small")
    assert peak("import", scaled, tmp_path / "new") - base < 2 * largest
    assert_copied(scaled, tmp_path / "new")


@pytest.mark.slow
@pytest.mark.nightly
def test_import_of_a_70b_takes_less_than_two_tensors_and_a_gibibyte(tmp_path):
    if (free := shutil.disk_usage(tmp_path).free) < 25e9:
        pytest.skip(f"needs 25 GB of disk, {free / 1e9:.0f} are free")
    source = write_sparse(tmp_path / "source", LLAMA_70B | {"num_hidden_layers": 2})
    try:
        memory = peak("import", source, tmp_path / "new")
        print(f"peak {memory / 2**30:.2f} GiB")
        assert memory < 2 * (2 * 128256 * 8192) + 2**30
        assert_copied(source, tmp_path / "new")
    finally:
        shutil.rmtree(tmp_path)


def test_dry_run_checks_a_70b_by_its_headers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = write_sparse(tmp_path / "source", LLAMA_70B)
    monkeypatch.setattr(storage, "free_bytes", lambda path: 141107412992)
    try:
        run("import", source, "new", "--dry-run")
        output = capsys.readouterr().out
        assert "70,553,706,496 parameters in 723 tensors" in output  # the published count of Llama-3.1-70B
        assert "bfloat16: 141,107,412,992 bytes in 30 files" in output
        assert not (tmp_path / "new").exists()
        monkeypatch.setattr(storage, "free_bytes", lambda path: 141107412991)
        assert "141,107,412,991 are free; make room" in error_of(capsys, source, "new", "--dry-run")
        (source / "model-00007.safetensors").unlink()
        assert "model-00007.safetensors: the file is missing" in error_of(capsys, source, "new", "--dry-run")
    finally:
        shutil.rmtree(source)


# ---- Errors


def test_existing_destination_is_refused_before_any_check(tiny, capsys, monkeypatch):
    monkeypatch.setattr(importing, "check", lambda *_, **__: pytest.fail("check was called"))
    before = bits(tiny)
    assert "tiny: exists; nothing was written" in error_of(capsys, "nowhere", tiny)
    assert bits(tiny) == before


def damage(tiny, kind):
    """Damage a model; the fragments of the error message."""
    name = "model.layers.1.mlp.gate_proj.weight"
    file = tiny / json.loads((tiny / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = safetensors.numpy.load_file(file)
    if kind == "truncated":
        os.truncate(file, file.stat().st_size - 1)
        return [file, "damaged or unreadable"]
    if kind == "missing file":
        file.unlink()
        return [file, "missing"]
    if kind == "missing tensor":
        del tensors[name]
    elif kind == "shape":
        tensors[name] = tensors[name].T.copy()
    elif kind == "integers":
        tensors[name] = tensors[name].astype(np.int8)
    elif kind == "nan":
        tensors[name][-1, -1] = np.nan
    elif kind == "too large":
        tensors[name][-1, -1] = 1e9
    safetensors.numpy.save_file(tensors, file)
    messages = {
        "missing tensor": "missing", "shape": "(16, 24), the model's config says (24, 16)", "integers": "as I8",
        "nan": "not finite", "too large": "too large for float16",
    }  # fmt: skip
    return [name, messages[kind]]


@pytest.mark.parametrize(
    "kind", ["truncated", "missing file", "missing tensor", "shape", "integers", "nan", "too large"]
)
def test_damaged_model_is_an_error_that_leaves_no_files(kind, tiny, capsys, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_BYTES", 100)  # the error comes when many blocks are written
    fragments = damage(tiny, kind)
    line = error_of(capsys, tiny, "new", "--dtype", "float16")
    assert all(str(fragment) in line for fragment in fragments), line


def test_truncated_gguf_file_is_an_error_that_leaves_no_files(tiny, tmp_path, capsys):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    assert "model.gguf: damaged or unreadable" in error_of(capsys, "model.gguf", "new")


def test_full_disk_is_an_error_that_leaves_no_files(tiny, capsys, monkeypatch):
    write = weights._write_file
    monkeypatch.setattr(weights, "_write_file", lambda path, *rest: write(epath.Path("/dev/full"), *rest))
    assert "no space left on device" in error_of(capsys, tiny, "new")


def test_too_small_disk_is_an_error_before_any_write(tiny, tmp_path, capsys, monkeypatch):
    assert storage.free_bytes(epath.Path("not/there/yet")) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
    assert "1,000 are free; make room first" in error_of(capsys, tiny, "new")


def test_checkpoint_and_missing_source_are_errors(tiny, capsys):
    config = tiny_config()
    llama.save(epath.Path("checkpoint"), config, tiny_params(config), TOKENIZER)
    assert "a checkpoint of astro needs no import" in error_of(capsys, "checkpoint", "new")
    assert "no such folder or .gguf file" in error_of(capsys, "nowhere.gguf", "new")


@pytest.mark.slow
def test_import_after_sigkill_writes_the_whole_model(scaled, tmp_path):
    call = [sys.executable, "-m", "astro_jax", "import", scaled, "new"]
    process = subprocess.Popen(call, env=ENVIRONMENT)
    weights_file = tmp_path / "new.part" / "model.safetensors"
    while not (weights_file.exists() and weights_file.stat().st_size > 1e8):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "new.part").exists() and not (tmp_path / "new").exists()
    tiny = write_tiny(tmp_path / "tiny")
    run("import", tiny, "new")
    assert bits(tmp_path / "new") == bits(tiny) and not (tmp_path / "new.part").exists()


# ---- The hub


def test_hub_repository_is_downloaded_without_unused_files(tiny, tmp_path, capsys, monkeypatch):
    def download(repo, allow_patterns):
        assert repo == "org/some-llama.3"
        files = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
                 "model-00001-of-00002.safetensors", "model.safetensors.index.json", "special_tokens_map.json",
                 "original/params.json", "original/tokenizer.model", "original/consolidated.00.pth",
                 "consolidated.safetensors", "pytorch_model.bin", "README.md"]  # fmt: skip
        assert list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns)) == files[:8]
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    run("import", "org/some-llama.3", "new")
    assert bits(tmp_path / "new") == bits(tiny)
    assert "a dry run does not download" in error_of(capsys, "org/some-llama.3", "other", "--dry-run")


def test_download_without_a_network_is_an_error_of_one_line(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    line = error_of(capsys, "no-such/model", "new")
    assert "no-such/model: not on this disk, and the download from the hub failed" in line


def test_refused_repository_is_an_error_of_one_line(tiny, capsys, monkeypatch):
    class NotFound(huggingface_hub.errors.RepositoryNotFoundError):
        """The error without the HTTP response that its constructor needs."""

        def __init__(self, *args):
            Exception.__init__(self, *args)

    for error in (NotFound("Access is restricted.\nAsk for it."), NotFound("No such repository.\n"), RuntimeError("?")):

        def refuse(repo, allow_patterns, error=error):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        assert str(error).strip().splitlines()[0] in error_of(capsys, "org/model", "new")
