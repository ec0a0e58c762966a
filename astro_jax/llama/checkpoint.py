"""A model on disk, shared by all stages: Orbax parameters, the config and the tokenizer in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from astro_jax import distributed, storage
from astro_jax.errors import AstroError
from astro_jax.llama import gguf_file, hf
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.weights import Tensor
from astro_jax.mesh import Sharding, decode_sharding, make_mesh

if TYPE_CHECKING:
    from astro_jax.llama.tokenizer import Tokenizer

PARAMS = "params"
GGUF = ".gguf"
# Models that ship with the package, found by their name.
SHIPPED = epath.Path(__file__).parent.parent / "models"


def resolve(path: str) -> epath.Path:
    """A folder, a GGUF file, or the name of a model that ships with the package.

    Raises:
      AstroError: when it is none of these.
    """
    for candidate in (epath.Path(path), SHIPPED / path):
        if candidate.is_dir() or (candidate.suffix == GGUF and candidate.exists()):
            return storage.absolute(candidate)
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir())) if SHIPPED.exists() else "none"
    raise AstroError(
        f"{path}: no such folder or .gguf file, and no model of that name ships with the package (there: {shipped})"
    )


def save(folder: epath.Path, config: LlamaConfig, params: Params, tokenizer: Tokenizer) -> None:
    """Write a model. A folder that is there already is a finished one of an earlier try, and is replaced."""
    folder = storage.absolute(folder)
    with storage.replace_folder(folder) as part:
        if distributed.is_main_process():
            hf.write_config(part, config, params.embed.dtype.name, tokenizer)
        ocp.save(part / PARAMS, params)


def stored(source: epath.Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The config and the tensors of a Hugging Face folder or a GGUF file, checked, the values not read.

    Raises:
      AstroError: when there is no model, or it is damaged.
    """
    return gguf_file.File(source).stored() if source.suffix == GGUF else hf.stored(source)


def load(
    path: str | epath.Path, sharding: Sharding | None = None, dtype: Any = jnp.float32
) -> tuple[LlamaConfig, Params]:
    """A model from a Hugging Face folder, a GGUF file or one of our checkpoints, onto any mesh.

    Args:
      path: a folder, a file, or the name of a model that ships with the package.
      sharding: where the parameters go; default one device.
      dtype: of the parameters; None keeps what is stored.

    Raises:
      AstroError: when there is no model, or it is damaged.
    """
    folder = resolve(str(path))
    if not is_ours(folder):
        config, tensors = stored(folder)
        return config, hf.assemble(config, tensors, sharding, dtype)
    config = hf.read_config(folder)
    sharding = sharding or decode_sharding(make_mesh())
    wanted = llama_params.abstract(config, sharding, dtype or jnp.float32)
    try:
        # Shapes are compared first: a restore that fails half-way leaves noise of its threads behind.
        there, told = _leaves(ocp.metadata(folder / PARAMS).metadata), _leaves(wanted)
        for name in sorted(there.keys() | told.keys()):
            shape, wanted_shape = (tuple(x[name].shape) if name in x else None for x in (there, told))
            if shape != wanted_shape:
                raise ValueError(f"{name} is {shape}, config.json says {wanted_shape}")
        if dtype is None:
            kept = {name: x.update(dtype=there[name].dtype) for name, x in told.items()}
            wanted = jax.tree.unflatten(jax.tree.structure(wanted), kept.values())
        return config, ocp.load(folder / PARAMS, wanted)
    except (ValueError, OSError) as e:
        raise AstroError(f"{folder}: not a checkpoint of this model ({str(e).splitlines()[0]})") from e


def is_ours(folder: epath.Path) -> bool:
    """Whether this is one of our checkpoints."""
    return (folder / PARAMS).exists()


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
