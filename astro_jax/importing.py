"""`astro import`: a model of someone else's as a Hugging Face folder that all commands read.

Everything but the values is checked before anything is written; then the values go through, a block of rows at a time.
"""

from __future__ import annotations

import dataclasses
import re

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, hf, params, tokenizer, weights
from astro_jax.llama.config import LlamaConfig
from astro_jax.progress import ProgressBar

# Of a repository on the hub: some also hold the weights in other formats.
FILES = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template*", "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to be imported: its tensors lie in its source, in the dtype that they will have."""

    source: epath.Path
    config: LlamaConfig
    tensors: dict[str, weights.Tensor]
    tokenizer: tokenizer.Tokenizer

    @property
    def dtype(self) -> str:
        return self.tensors["model.embed_tokens.weight"].dtype

    @property
    def nbytes(self) -> int:
        return weights.total_bytes(self.tensors.values())

    def __str__(self) -> str:
        return (
            f"{self.source}: {params.count(self.config):,} parameters in {len(self.tensors)} tensors, to be written as "
            f"{self.dtype}: {self.nbytes:,} bytes in {len(weights.files(self.tensors))} files"
        )


def check(source: str, destination: epath.Path, dtype: str | None = None, download: bool = True) -> Model:
    """Check everything but the values, which are not read.

    Args:
      source: a Hugging Face folder, a GGUF file, the name of a shipped model, or the id of a repository on the hub.
      dtype: of what will be written; None keeps that of the source.
      download: whether a repository may be fetched.

    Raises:
      AstroError: when there is no Llama, a tensor is missing or of another shape, or the disk has too little room.
    """
    path = checkpoint.resolve(_downloaded(source, download))
    if checkpoint.is_ours(path):
        raise AstroError(f"{path}: a checkpoint of ours already; astro export makes a Hugging Face folder of it")
    config, tensors = checkpoint.stored(path)
    model = Model(path, config, {name: t.to(dtype) for name, t in tensors.items()}, tokenizer.load(str(path)))
    if model.nbytes > (free := storage.free_bytes(destination)):
        raise AstroError(f"{destination}: {model.nbytes:,} bytes are to be written, {free:,} are free; make room first")
    return model


def write(model: Model, destination: epath.Path) -> None:
    """Write the folder, which appears whole. About one tensor is in memory at a time.

    Raises:
      AstroError: when the folder exists, a file is damaged, or a value is not finite in the dtype to be written.
    """
    with storage.new_folder(destination) as part, ProgressBar("import", len(model.tensors), "tensors") as bar:
        weights.write(part, weights.files(model.tensors), written=bar.advance)
        hf.write_config(part, model.config, model.dtype, model.tokenizer)


def _downloaded(source: str, download: bool) -> str:
    """A source on this disk: itself, or what the hub has under this id."""
    if epath.Path(source).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or source.endswith(".gguf"):
        return source
    if not download:
        raise AstroError(f"{source}: not on this disk, and a dry run does not download; run it without --dry-run")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise AstroError(
            f"{source}: not on this disk, and downloading needs the extra `hub`: pip install huggingface_hub"
        ) from e
    try:
        return snapshot_download(source, allow_patterns=list(FILES))
    except Exception as e:  # those of the hub, of HTTP and of files have no class in common
        reason = str(e).strip().splitlines() or [type(e).__name__]
        raise AstroError(f"{source}: not on this disk, and not to be had from the hub ({reason[0]})") from e
