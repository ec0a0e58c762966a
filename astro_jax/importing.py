"""`astro import`: copy a model to a Hugging Face folder that all commands read, with another dtype if needed.

All checks that need no values run before the first byte is written (`check`). Then the values are copied in blocks of
rows (`write`).
"""

from __future__ import annotations

import dataclasses

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, hf, params, paths, tokenizer, weights
from astro_jax.llama.config import LlamaConfig
from astro_jax.progress import ProgressBar


@dataclasses.dataclass(frozen=True)
class ModelImport:
    """A model that passed all checks and can be written.

    Attributes:
      source: the Hugging Face folder or GGUF file.
      tensors: by Hugging Face's names, in the dtype to be written; their values are read on demand.
    """

    source: epath.Path
    config: LlamaConfig
    tensors: dict[str, weights.Tensor]
    tokenizer: tokenizer.Tokenizer

    @property
    def dtype(self) -> str:
        """The dtype of the embedding table, which config.json names."""
        return self.tensors["model.embed_tokens.weight"].dtype

    @property
    def nbytes(self) -> int:
        """The size of the weights to be written."""
        return weights.total_bytes(self.tensors.values())

    def __str__(self) -> str:
        return (
            f"{self.source}: {params.count(self.config):,} parameters in {len(self.tensors)} tensors, to be written as "
            f"{self.dtype}: {self.nbytes:,} bytes in {len(weights.split_into_files(self.tensors))} files"
        )


def check(source: str, destination: epath.Path, dtype: str | None = None, download: bool = True) -> ModelImport:
    """Run all checks of an import that need no values, and write nothing.

    Args:
      source: a Hugging Face folder, a GGUF file, the name of a shipped model, or a hub repository as in "org/name".
      destination: the folder to be written.
      dtype: of the weights to be written; None keeps the dtypes of the source.
      download: whether a hub repository may be downloaded.

    Raises:
      AstroError: when the source is no supported model, a tensor is missing or has another shape, or the disk is too
        small.
    """
    if not download and paths.is_hub_id(source):
        raise AstroError(f"{source}: not on this disk, and a dry run does not download; run again without --dry-run")
    path = paths.resolve(source, download=True)
    if paths.is_checkpoint(path):
        raise AstroError(f"{path}: a checkpoint of astro needs no import; astro export makes a Hugging Face folder")
    config, tensors = checkpoint.open_weights(path)
    model = ModelImport(path, config, {name: t.to(dtype) for name, t in tensors.items()}, tokenizer.load(str(path)))
    if model.nbytes > (free := storage.free_bytes(destination)):
        raise AstroError(f"{destination}: needs {model.nbytes:,} bytes, but {free:,} are free; make room first")
    return model


def write(model: ModelImport, destination: epath.Path) -> None:
    """Write the Hugging Face folder, which appears under its name when it is complete.

    Memory holds about one tensor at a time.

    Raises:
      AstroError: when the folder exists, a file is damaged, or a value is not finite in the dtype to be written.
    """
    with storage.new_folder(destination) as partial, ProgressBar("import", len(model.tensors), "tensors") as bar:
        weights.write(partial, weights.split_into_files(model.tensors), on_tensor=bar.advance)
        hf.write_config(partial, model.config, model.dtype, model.tokenizer)
