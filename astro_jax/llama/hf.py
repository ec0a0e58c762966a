"""Hugging Face folders: read into `Params`, and written from `Params`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama import model, weights
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig, from_hf, to_hf
from astro_jax.llama.params import Params, ParamSpec
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.llama.weights import Tensor
from astro_jax.mesh import Sharding, device_put_global

# The L tensors of a stacked parameter are stacked on the host up to this size of the stack, which compiles nothing. The
# layers of a larger parameter are stacked on the devices, one after the other, so that the host holds one layer.
MAX_HOST_STACK_BYTES = 64 << 20


def read_config(folder: epath.Path) -> LlamaConfig:
    """Read the config.json of a folder.

    Raises:
      AstroError: when config.json is missing, damaged, or describes a model that is not supported.
    """
    try:
        return from_hf(json.loads((folder / "config.json").read_text()))
    except OSError as e:
        raise AstroError(f"{folder}: no config.json in this folder; name a Hugging Face folder or a checkpoint") from e
    except AstroError as e:
        raise AstroError(f"{folder}: {e}") from e
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise AstroError(f"{folder / 'config.json'}: not a Llama config ({e})") from e


def open_weights(folder: epath.Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Open the weights of a folder: (config, {name: tensor}). All checks run, but no values are read.

    Raises:
      AstroError: when a file is missing or damaged, or a tensor is missing, has another shape, or is not part of a
        Llama model.
    """
    config = read_config(folder)
    tensors, shapes = weights.open_folder(folder), llama_params.hf_shapes(config)
    # Old exports also hold RoPE's frequencies, which follow from the config, and a copy of a tied embedding.
    redundant = {n for n in tensors if n.endswith("rotary_emb.inv_freq") or n == "lm_head.weight"} - shapes.keys()
    weights.check(folder, {n: t for n, t in tensors.items() if n not in redundant}, shapes)
    return config, {name: tensors[name] for name in shapes}


def read(
    folder: epath.Path, sharding: Sharding | None = None, dtype: DTypeLike | None = np.float32
) -> tuple[LlamaConfig, Params]:
    """Read the config and the parameters of a folder; see `open_weights` and `params_from_tensors`."""
    config, tensors = open_weights(folder)
    return config, params_from_tensors(config, tensors, sharding, dtype)


def params_from_tensors(
    config: LlamaConfig,
    tensors: Mapping[str, Tensor],
    sharding: Sharding | None = None,
    dtype: DTypeLike | None = np.float32,
) -> Params:
    """Read tensors from disk into parameters, one parameter after the other onto its sharding.

    In a run of several processes each process reads its share of the rows of a large tensor, and the processes exchange
    them over the links of the devices: N hosts together read a model once, not N times.

    Args:
      tensors: by Hugging Face's names.
      sharding: of the parameters; default one device.
      dtype: of the parameters; None keeps the dtypes on disk (float32 for a stack of several dtypes).

    Raises:
      AstroError: when a tensor holds a value that is not finite.
    """

    def put(value: np.ndarray, axes: tuple[str | None, ...]) -> jax.Array:
        return device_put_global(value, sharding.named(*axes)) if sharding else jnp.asarray(value)

    def place(tensor: Tensor, spec: ParamSpec) -> jax.Array:
        axes = spec.axes[1:] if spec.stacked else spec.axes
        shares = sharding and jax.process_count() > 1 and not tensor.shape[0] % sharding.mesh.size
        if sharding and shares and tensor.rows is not None:
            return read_rows(tensor, spec, sharding.named(*axes))
        return put(_from_hf(tensor.read(), spec), axes)

    def leaf(spec: ParamSpec) -> jax.Array:
        layers = [tensors[name] for name in spec.hf_names]
        dtypes = {t.dtype for t in layers}
        name = jnp.dtype(dtype).name if dtype is not None else dtypes.pop() if len(dtypes) == 1 else "float32"
        layers = [t.to(name) for t in layers]
        if not spec.stacked:
            return place(layers[0], spec)
        if weights.total_bytes(layers) <= MAX_HOST_STACK_BYTES:
            return put(np.stack([_from_hf(t.read(), spec) for t in layers]), spec.axes)
        stack = jnp.zeros(spec.shape, name, device=sharding.named(*spec.axes) if sharding else None)
        for i, tensor in enumerate(layers):
            # Wait for the device, so that the host holds one layer: reading may be faster than the transfer.
            stack = _with_layer(stack, place(tensor, spec), i).block_until_ready()
        return stack

    return jax.tree.map(leaf, llama_params.param_specs(config))


def read_rows(tensor: Tensor, spec: ParamSpec, sharding: NamedSharding) -> jax.Array:
    """Read a tensor onto a sharding. Each device gets an equal share of the rows, and the devices exchange them.

    Args:
      tensor: its number of rows is a multiple of the number of devices.
      spec: of the parameter that the tensor is, or is a layer of.
      sharding: of the result, which has the shape of `spec.layer_shape`.
    """
    devices, read = Mesh(sharding.mesh.devices.reshape(-1), ("rows",)), tensor.rows
    assert read is not None
    n = tensor.shape[0] // devices.size

    def share(index: Any) -> np.ndarray:
        first = index[0].start or 0
        return read(first, first + n)

    rows = jax.make_array_from_callback(tensor.shape, NamedSharding(devices, P("rows")), share)
    return _exchange(spec.n_in, spec.layer_shape, sharding)(rows)


@functools.cache
def _exchange(n_in: int, shape: tuple[int, ...], sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """Make the program that puts rows of Hugging Face's tensor into the layout and sharding of a parameter."""
    return jax.jit(lambda value: value.T.reshape(shape) if n_in else value, out_shardings=sharding)


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: jax.Array, value: jax.Array, i: int) -> jax.Array:
    """Replace layer i of a stack [L, ...], in place."""
    return stack.at[i].set(value)


def write(
    folder: epath.Path,
    config: LlamaConfig,
    params: Params,
    tokenizer: Tokenizer,
    max_file_bytes: int = weights.MAX_FILE_BYTES,
    card: str = "",
    check: Callable[[epath.Path], object] | None = None,
) -> None:
    """Write a Hugging Face folder: config.json, the weights, the tokenizer and generation_config.json.

    The weights are read back and their logits compared with those of `params`. Then the folder appears, complete.

    Args:
      folder: must not exist.
      max_file_bytes: of one safetensors file. Larger weights become several files and an index, as in transformers.
      card: the model card, README.md.
      check: called with the complete folder before the folder appears under its name. An exception of `check` stops the
        export.

    Raises:
      AstroError: when the folder exists, or the weights read back differ.
    """
    with storage.new_folder(folder) as partial:
        weights.write(partial, weights.split_into_files(_tensors_of(config, params), max_file_bytes))
        write_config(partial, config, params.embed.dtype.name, tokenizer)
        if card:
            (partial / "README.md").write_text(card)
        _verify(partial, config, params)
        if check is not None:
            check(partial)


def write_config(folder: epath.Path, config: LlamaConfig, dtype: str, tokenizer: Tokenizer) -> None:
    """Write config.json, the tokenizer and generation_config.json, but not the weights."""
    tokenizer.save(folder)
    (folder / "config.json").write_text(
        json.dumps(to_hf(config, dtype) | tokenizer.special_token_ids(), indent=2) + "\n"
    )


def _tensors_of(config: LlamaConfig, params: Params) -> dict[str, Tensor]:
    """Hugging Face's tensors of parameters, by name. A tensor is fetched from its devices when its blocks are read."""

    def fetch(spec: ParamSpec, value: jax.Array) -> Iterator[np.ndarray]:
        yield _to_hf(np.asarray(value), spec)

    tensors = {}
    for spec, leaf in zip(jax.tree.leaves(llama_params.param_specs(config)), jax.tree.leaves(params), strict=True):
        for i, name in enumerate(spec.hf_names):
            blocks = lambda spec=spec, leaf=leaf, i=i: fetch(spec, leaf[i] if spec.stacked else leaf)  # noqa: E731
            tensors[name] = Tensor(name, spec.hf_shape, leaf.dtype.name, blocks)
    return {name: tensors[name] for name in llama_params.hf_shapes(config)}


def _verify(folder: epath.Path, config: LlamaConfig, params: Params) -> None:
    """Compare the logits of a folder's weights with those of `params`, on 16 fixed tokens."""
    tokens = (np.arange(16, dtype=np.int32) * 31 % config.vocab_size)[None]
    config_on_disk, params_on_disk = read(folder, dtype=None)
    dtype = jnp.result_type(*jax.tree.leaves(params))  # the scan over layers needs one dtype; of mixed ones the widest
    forward = jax.jit(model.forward, static_argnums=2)
    expected, logits = (
        np.asarray(forward(jax.tree.map(lambda x: x.astype(dtype), p), tokens, config))
        for p in (params, params_on_disk)
    )
    difference = np.abs(logits - expected).max()
    if config_on_disk != config or not difference < 1e-6:
        raise AstroError(f"{folder}: the export reads back differently (logits by {difference}); export again")


def _from_hf(value: np.ndarray, spec: ParamSpec) -> np.ndarray:
    """One layer's array in the layout of `Params`, from Hugging Face's tensor."""
    return value.T.reshape(spec.layer_shape) if spec.n_in else value


def _to_hf(value: np.ndarray, spec: ParamSpec) -> np.ndarray:
    """Hugging Face's tensor, from one layer's array in the layout of `Params`."""
    return np.ascontiguousarray(value.reshape(spec.hf_shape[::-1]).T if spec.n_in else value)
