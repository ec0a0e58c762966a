"""Tiny models and helpers of several test modules."""

import contextlib
import functools
import json
import re
import sys
import types
from typing import ClassVar

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from astro_jax.countdown.tokenizer import countdown_tokenizer as _countdown_tokenizer
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig, RopeScaling
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import decode_sharding, make_mesh, train_sharding

LLAMA3 = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
CHAT_TEMPLATE = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}<assistant>"
countdown_tokenizer = functools.cache(_countdown_tokenizer)


@functools.cache
def chat_tokenizer():
    """A tokenizer of single characters with a chat template."""
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<unk>", "<system>", "<user>", "<assistant>"]
    letters = sorted({chr(i) for i in range(32, 127)} | {"\n"})
    vocab = {c: i for i, c in enumerate([*special, *letters])}
    chars = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    chars.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("[\\s\\S]"), behavior="isolated")
    chars.decoder = tokenizers.decoders.Fuse()
    chars.add_special_tokens(special)
    return Tokenizer(PreTrainedTokenizerFast(
        tokenizer_object=chars, eos_token="<end>", unk_token="<unk>", pad_token="<pad>", chat_template=CHAT_TEMPLATE,
    ))  # fmt: skip


def tiny_config(**changes):
    """The config of a Llama with 4,560 parameters, with changes."""
    shape = dict(vocab_size=20, d_model=16, d_ff=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, max_positions=128)
    return LlamaConfig(**{**shape, **changes})


def tiny_params(config, seed=0, scale=0.3):
    """Random parameters, norms too. Their scale is large, so that predictions are far from uniform."""
    rng = np.random.default_rng(seed)

    def leaf(spec):
        noise = scale * rng.standard_normal(spec.shape)
        return jnp.asarray(noise + (spec.std == 0), jnp.float32)

    return jax.tree.map(leaf, llama_params.param_specs(config))


def change_json(path, **changes):
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_device():
    return decode_sharding(make_mesh())


def one_device_train():
    return train_sharding(make_mesh())


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


def assert_trees_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@contextlib.contextmanager
def count_compilations():
    """A list with one duration for each program that XLA compiles inside the block."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def unexpected_collectives(text, mesh, rows, length):
    """Lines of a compiled program with a collective that the training shardings do not need.

    These collectives are: an all-to-all; a collective-permute that is not a ring along one mesh axis; any collective on
    activations of more than `rows` sequences of `length` tokens.
    """
    coordinates = list(np.ndindex(mesh.devices.shape))
    lengths = {str(length // n) for n in (1, mesh.shape["tp"])}
    lines = []
    for line in text.splitlines():
        match = re.search(
            r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line
        )
        if match is None:
            continue
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
        links = [map(int, pair.split(",")) for pair in re.findall(r"\d+,\d+", pairs[1])] if pairs else []
        diagonal = any(sum(a != b for a, b in zip(coordinates[i], coordinates[j], strict=True)) > 1 for i, j in links)
        shapes = [dims.split(",") for dims in re.findall(r"\[([\d,]+)\]", match[1])]
        wide = any(lengths & set(dims[1:]) and int(dims[0]) > rows for dims in shapes if len(dims) > 1)
        if match[2] == "all-to-all" or diagonal or wide:
            lines.append(line.strip())
    return lines


class HttpError(Exception):
    """As of gcsfs and google.api_core, whose errors are no OSErrors: `code` is the status."""

    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


class Bucket(MemoryFileSystem):
    """An in-memory bucket in place of gs://.

    As in a bucket, nothing is appended to an object, and folders do not exist: a name with objects below it looks like
    one. `refuse` lets operations fail.
    """

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    faults: ClassVar[list] = []

    @classmethod
    def refuse(cls, operation, error, times=1):
        """Let the next calls of an operation fail: "read", "write", "delete", "list", "get" (of the bucket itself)."""
        cls.faults += [(operation, error)] * times

    @classmethod
    def _maybe_fail(cls, operation):
        for fault in cls.faults:
            if fault[0] == operation:
                cls.faults.remove(fault)
                raise fault[1]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol("/" + path.partition("://")[2] if "://" in path else path)

    def open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError("objects of a bucket are written whole")
        self._maybe_fail("read" if "r" in mode else "write")
        return super().open(path, mode, **options)

    def ls(self, path, detail=True, **options):
        self._maybe_fail("list")
        return super().ls(path, detail, **options)

    def rm(self, path, recursive=False, maxdepth=None):
        self._maybe_fail("delete")
        super().rm(path, recursive, maxdepth)

    def exists(self, path, **options):
        path = self._strip_protocol(path)
        return path in self.store or any(key.startswith(f"{path}/") for key in self.store)

    def mkdir(self, path, create_parents=True, **options):
        """Do nothing, as gcsfs does below a bucket."""

    def makedirs(self, path, exist_ok=False):
        """Do nothing, as gcsfs does below a bucket."""

    def cp_file(self, path1, path2, **options):
        if self.isfile(path1):
            super().cp_file(path1, path2, **options)


def bucket(monkeypatch):
    """A new, empty folder of an in-memory bucket in place of gs://."""
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    monkeypatch.setattr(Bucket, "faults", [])
    client = types.SimpleNamespace(get_bucket=lambda name: Bucket._maybe_fail("get"))
    google = types.ModuleType("google.cloud")
    google.storage = types.SimpleNamespace(Client=lambda: client)
    monkeypatch.setitem(sys.modules, "google.cloud", google)
    return epath.Path("gs://bucket/run")
