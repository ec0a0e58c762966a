"""Load a model from any supported format, and save a model as a checkpoint.

A checkpoint is the format between the stages of a run: one folder with config.json, the tokenizer and Orbax parameters.
The other formats are Hugging Face folders (`astro_jax.llama.hf`) and GGUF files (`astro_jax.llama.gguf_file`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from astro_jax import distributed, storage
from astro_jax.errors import AstroError
from astro_jax.llama import hf, paths
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.gguf_file import GgufFile
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.llama.weights import Tensor
from astro_jax.mesh import Sharding, decode_sharding, make_mesh


def save(folder: epath.Path, config: LlamaConfig, params: Params, tokenizer: Tokenizer) -> None:
    """Write a checkpoint, and replace an existing checkpoint in `folder`."""
    folder = storage.absolute(folder)
    with storage.replace_folder(folder) as partial:
        if distributed.is_main_process():
            hf.write_config(partial, config, params.embed.dtype.name, tokenizer)
        ocp.save(partial / paths.PARAMS_FOLDER, params)


def load(
    path: str | epath.Path, sharding: Sharding | None = None, dtype: DTypeLike | None = jnp.float32
) -> tuple[LlamaConfig, Params]:
    """Load a model from a Hugging Face folder, a GGUF file or a checkpoint, onto any mesh.

    Args:
      path: a folder, a GGUF file, or the name of a shipped model.
      sharding: of the parameters; default one device.
      dtype: of the parameters; None keeps the dtypes on disk.

    Raises:
      AstroError: when no such model exists, or the model is damaged or not supported.
    """
    source = paths.resolve(str(path))
    if paths.is_checkpoint(source):
        return _load_checkpoint(source, sharding, dtype)
    config, tensors = open_weights(source)
    return config, hf.params_from_tensors(config, tensors, sharding, dtype)


def open_weights(source: epath.Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Open the weights of a Hugging Face folder or a GGUF file. All checks run, but no values are read.

    Returns:
      (config, {Hugging Face's name: tensor}).

    Raises:
      AstroError: when the model is damaged or not supported.
    """
    return GgufFile(source).open_weights() if paths.is_gguf(source) else hf.open_weights(source)


def read_config(source: epath.Path) -> LlamaConfig:
    """Read the config of a model in any format, without its weights."""
    return GgufFile(source).config() if paths.is_gguf(source) else hf.read_config(source)


def _load_checkpoint(
    folder: epath.Path, sharding: Sharding | None, dtype: DTypeLike | None
) -> tuple[LlamaConfig, Params]:
    config = hf.read_config(folder)
    sharding = sharding or decode_sharding(make_mesh())
    abstract = llama_params.abstract(config, sharding, dtype or jnp.float32)
    try:
        # Shapes are compared before the restore: a restore that fails half-way logs errors from its threads.
        stored, expected = _leaves(ocp.metadata(folder / paths.PARAMS_FOLDER).metadata), _leaves(abstract)
        for name in sorted(stored.keys() | expected.keys()):
            shape, expected_shape = (tuple(x[name].shape) if name in x else None for x in (stored, expected))
            if shape != expected_shape:
                raise ValueError(f"{name} is {shape}, config.json says {expected_shape}")
        if dtype is None:
            leaves = [x.update(dtype=stored[name].dtype) for name, x in expected.items()]
            abstract = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        return config, ocp.load(folder / paths.PARAMS_FOLDER, abstract)
    except (ValueError, OSError) as e:
        raise AstroError(f"{folder}: not a checkpoint of this model ({str(e).splitlines()[0]})") from e


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, as in {"layers.wq": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
