"""Where a model is on disk: a folder, a GGUF file, or a model that ships with the package."""

from __future__ import annotations

from etils import epath

from astro_jax import stage_folder, storage
from astro_jax.errors import AstroError

GGUF_SUFFIX = ".gguf"
# The subfolder of a checkpoint that holds the Orbax parameters.
PARAMS_FOLDER = "params"
# The models that ship with the package, one a subfolder. The name of a model is the name of its folder.
SHIPPED_MODELS = epath.Path(__file__).parent.parent / "models"


def resolve(path: str) -> epath.Path:
    """Resolve a model's path to an absolute path.

    Args:
      path: a folder, a GGUF file, or the name of a shipped model, for example "countdown-base".

    Raises:
      AstroError: when no such model exists.
    """
    for candidate in (epath.Path(path), stage_folder.follow(storage.absolute(path)), SHIPPED_MODELS / path):
        if candidate.is_dir() or (is_gguf(candidate) and candidate.exists()):
            return storage.absolute(candidate)
    shipped = ", ".join(sorted(p.name for p in SHIPPED_MODELS.iterdir())) if SHIPPED_MODELS.exists() else "none"
    raise AstroError(
        f"{path}: no such folder or .gguf file, and no shipped model has this name (shipped models: {shipped})"
    )


def is_gguf(path: epath.Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix == GGUF_SUFFIX


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder is a checkpoint that `astro_jax.llama.checkpoint.save` wrote."""
    return (folder / PARAMS_FOLDER).exists()
