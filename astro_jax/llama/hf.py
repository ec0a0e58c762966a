"""Hugging Face folders: read into our parameters, and written from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama import model
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig, from_hf, to_hf
from astro_jax.llama.params import Params, Spec
from astro_jax.mesh import Sharding

if TYPE_CHECKING:
    from astro_jax.llama.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
# Of one file of weights.
MAX_BYTES = 5 * 10**9


def read_config(folder: epath.Path) -> LlamaConfig:
    """The LlamaConfig of a folder's config.json."""
    try:
        return from_hf(json.loads((folder / "config.json").read_text()))
    except OSError as e:
        raise AstroError(f"{folder}: no config.json there; give a Hugging Face folder or one of our checkpoints") from e
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise AstroError(f"{folder / 'config.json'}: not a Llama's config ({e})") from e


def read(folder: epath.Path, sharding: Sharding | None = None, dtype: Any = np.float32) -> tuple[LlamaConfig, Params]:
    """Read config.json and safetensors, one tensor at a time, each onto its sharding.

    Raises:
      AstroError: for a missing or damaged file, a tensor that is missing or of another shape or not finite, and one
        that this model has no place for.
    """
    config = read_config(folder)
    where = _tensor_files(folder)
    wanted = tensor_names(config)
    # Old exports also hold RoPE's frequencies, which follow from the config, and a copy of a tied embedding.
    passed_over = {n for n in where if n.endswith("rotary_emb.inv_freq") or n == "lm_head.weight"} - wanted
    check_tensors(folder, where.keys() - passed_over, wanted)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            with safetensors.safe_open(where[name], framework="numpy") as f:
                value = f.get_tensor(name)
        except (OSError, safetensors.SafetensorError) as e:
            raise AstroError(f"{where[name]}: damaged or unreadable ({e}); copy it again") from e
        if value.shape != shape:
            raise AstroError(f"{where[name]}: {name} is {value.shape}, config.json says {shape}")
        return value

    return config, assemble(config, tensor, sharding, dtype)


def assemble(
    config: LlamaConfig,
    tensor: Callable[[str, tuple[int, ...]], np.ndarray],
    sharding: Sharding | None = None,
    dtype: Any = np.float32,
) -> Params:
    """Parameters from tensors in Hugging Face's layout, each onto its sharding as it comes.

    Args:
      tensor: from a Hugging Face name and the shape that it must have to the values.

    Raises:
      AstroError: when a tensor holds values that are not finite.
    """

    def ours(spec: Spec, name: str) -> np.ndarray:
        value = tensor(name, _hf_shape(spec))
        if not np.isfinite(value).all():
            raise AstroError(f"the tensor {name} holds values that are not finite; copy the weights again")
        return _from_hf(value, spec)

    def leaf(spec: Spec) -> Any:
        parts = [ours(spec, name) for name in _names(spec)]
        value = (np.stack(parts) if spec.stacked else parts[0]).astype(dtype)
        return jax.device_put(value, sharding.named(*spec.axes)) if sharding else jax.numpy.asarray(value)

    return jax.tree.map(leaf, llama_params.declare(config))


def write(
    folder: epath.Path,
    config: LlamaConfig,
    params: Params,
    tokenizer: Tokenizer,
    max_bytes: int = MAX_BYTES,
    card: str = "",
    check: Callable[[epath.Path], Any] | None = None,
) -> None:
    """Write config.json, the weights, the tokenizer and generation_config.json. The folder must not exist; it appears
    whole, once what was written has been read back and gives the logits that these parameters give.

    Args:
      max_bytes: of one file of weights; more are written as several with an index, as transformers does.
      card: the model card, README.md.
      check: called on what was written, before the folder appears; what it raises stops that.

    Raises:
      AstroError: when the folder exists, or what was written differs.
    """
    storage.refuse_existing(folder)
    part = folder.parent / f"{folder.name}.part"
    if part.exists():
        part.rmtree()
    part.mkdir(parents=True)
    _write_weights(part, config, params, max_bytes)
    tokenizer.save(part)
    dtype = str(params.embed.dtype)
    (part / "config.json").write_text(
        json.dumps(to_hf(config) | tokenizer.ids() | {"torch_dtype": dtype}, indent=2) + "\n"
    )
    if card:
        (part / "README.md").write_text(card)
    _verify(part, config, params)
    if check is not None:
        check(part)
    part.rename(folder)


def _write_weights(folder: epath.Path, config: LlamaConfig, params: Params, max_bytes: int) -> None:
    """One file, or several with an index; only one of them is in memory at a time."""
    leaves = zip(jax.tree.leaves(llama_params.declare(config)), jax.tree.leaves(params), strict=True)
    files: list[dict[str, tuple[Spec, jax.Array, Any]]] = [{}]
    size = total = 0
    for spec, value in leaves:
        names = _names(spec)
        for i, name in enumerate(names):
            nbytes = value.nbytes // len(names)
            if size and size + nbytes > max_bytes:
                files.append({})
                size = 0
            files[-1][name] = spec, value, i if spec.stacked else ...
            size, total = size + nbytes, total + nbytes
    where: dict[str, str] = {}
    for number, held in enumerate(files, 1):
        file = WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {name: _to_hf(np.asarray(value[i]), spec) for name, (spec, value, i) in held.items()}
        safetensors.numpy.save_file(tensors, str(folder / file), metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _verify(folder: epath.Path, config: LlamaConfig, params: Params) -> None:
    """Compare the logits of what a folder holds with those of the parameters, on fixed tokens."""
    tokens = (np.arange(16, dtype=np.int32) * 31 % config.vocab_size)[None]
    again, written = read(folder, dtype=params.embed.dtype)
    logits = jax.jit(model.forward, static_argnums=2)
    difference = np.abs(np.asarray(logits(written, tokens, config)) - np.asarray(logits(params, tokens, config))).max()
    if again != config or not difference < 1e-6:
        raise AstroError(f"{folder}: what was written reads back differently (logits by {difference}); write it again")


def check_tensors(source: epath.Path, there: Set[str], wanted: Set[str]) -> None:
    """Refuse weights that lack a tensor, or that hold another: what we do not read, we would not compute."""
    if lacking := wanted - there:
        raise AstroError(f"{source}: the tensor {min(lacking)} is missing from the weights")
    if unread := there - wanted:
        raise AstroError(f"{source}: the tensor {min(unread)} has no place in a Llama; this model is not supported")


def tensor_names(config: LlamaConfig) -> set[str]:
    """The tensors that a Hugging Face folder of this model holds."""
    return {name for spec in jax.tree.leaves(llama_params.declare(config)) for name in _names(spec)}


def _tensor_files(folder: epath.Path) -> dict[str, str]:
    """Which file holds each tensor."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.exists():
        try:
            files = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise AstroError(f"{index}: damaged or unreadable ({e}); copy it again") from e
        if lacking := sorted(str(file) for file in set(files.values()) if not file.exists()):
            raise AstroError(f"{lacking[0]}: missing, though the index names it; copy it again")
        return {name: str(file) for name, file in files.items()}
    path = folder / WEIGHTS
    if not path.exists():
        raise AstroError(f"{folder}: no {WEIGHTS} there")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as f:
            return dict.fromkeys(f.keys(), str(path))
    except (OSError, safetensors.SafetensorError) as e:
        raise AstroError(f"{path}: damaged or unreadable ({e}); copy it again") from e


def _names(spec: Spec) -> list[str]:
    """The tensors of a Hugging Face folder that make up one of ours."""
    return [spec.hf_name.format(i) for i in range(spec.shape[0])] if spec.stacked else [spec.hf_name]


def _layer_shape(spec: Spec) -> tuple[int, ...]:
    return spec.shape[1:] if spec.stacked else spec.shape


def _hf_shape(spec: Spec) -> tuple[int, ...]:
    shape = _layer_shape(spec)
    if not spec.n_in:
        return shape
    return int(np.prod(shape[spec.n_in :])), int(np.prod(shape[: spec.n_in]))


def _from_hf(value: np.ndarray, spec: Spec) -> np.ndarray:
    return value.T.reshape(_layer_shape(spec)) if spec.n_in else value


def _to_hf(value: np.ndarray, spec: Spec) -> np.ndarray:
    return np.ascontiguousarray(value.reshape(_hf_shape(spec)[::-1]).T) if spec.n_in else np.ascontiguousarray(value)
