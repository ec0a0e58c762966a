"""Where a model is on disk: a folder, a GGUF file, or a model that ships with the package."""

from __future__ import annotations

import json
import re

from etils import epath

from astro_jax import stage_folder, storage
from astro_jax.errors import AstroError
from astro_jax.stages import MODELS

GGUF_SUFFIX = ".gguf"
# The subfolder of a checkpoint that holds the Orbax parameters.
PARAMS_FOLDER = "params"
# The models that ship with the package, one a subfolder. The name of a model is the name of its folder.
SHIPPED_MODELS = epath.Path(__file__).parent.parent / "models"


# The files of a hub repository to download. Some repositories also hold the weights in other formats.
HUB_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template*", "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip


def resolve(path: str, download: bool = False) -> epath.Path:
    """Resolve a model's path to an absolute path.

    Args:
      path: a folder, a GGUF file, or the name of a shipped model, for example "countdown-base".
      download: whether `path` may also name a repository of the Hugging Face hub, as in "org/name", which is downloaded
        to the hub's cache.

    Raises:
      AstroError: when no such model exists, and for the folder of a run or of its stage.
    """
    for candidate in (epath.Path(path), stage_folder.follow(storage.absolute(path)), SHIPPED_MODELS / path):
        if candidate.is_dir() or (is_gguf(candidate) and candidate.exists()):
            _require_no_run(candidate)
            return storage.absolute(candidate)
    if download and is_hub_id(path):
        return _download(path)
    shipped = ", ".join(sorted(p.name for p in SHIPPED_MODELS.iterdir())) if SHIPPED_MODELS.exists() else "none"
    raise AstroError(
        f"{path}: no such folder or .gguf file, and no shipped model has this name (shipped models: {shipped})"
    )


def _require_no_run(folder: epath.Path) -> None:
    """Refuse the folder of a run and of a stage, whose models lie in subfolders."""
    try:
        content = json.loads((folder / "config.json").read_text())
        is_run = isinstance(content, dict) and "command" in content and "config" in content
    except (OSError, ValueError):  # whoever reads a damaged config says so
        is_run = False
    if is_run:
        made = [name for name in MODELS if (folder / name / "model").exists()] or ["astro-rl"]
        raise AstroError(f"{folder}: the folder of a run; name one of its models, as in {folder / made[-1] / 'model'}")
    if folder.name in MODELS and (folder / "model").exists():
        raise AstroError(f"{folder}: the folder of a stage; name its model, {folder / 'model'}")


def is_hub_id(path: str) -> bool:
    """Whether a path has the form of a hub repository, "org/name", and is not on this disk."""
    return not (
        epath.Path(path).exists() or path.endswith(GGUF_SUFFIX) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path)
    )


def _download(repository: str) -> epath.Path:
    """Download the model of a hub repository."""
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return storage.absolute(snapshot_download(repository, allow_patterns=list(HUB_FILES)))
    except Exception as e:  # errors of the hub, of HTTP and of files have no common class
        reason = str(e).strip().splitlines() or [type(e).__name__]
        raise AstroError(f"{repository}: not on this disk, and the download from the hub failed ({reason[0]})") from e


def is_gguf(path: epath.Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix == GGUF_SUFFIX


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder is a checkpoint that `astro_jax.llama.checkpoint.save` wrote."""
    return (folder / PARAMS_FOLDER).exists()
