"""Hugging Face folders: read into our parameters, and written from them."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from astro_jax.errors import AstroError
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig, from_hf, to_hf
from astro_jax.llama.params import Params, Spec
from astro_jax.mesh import Sharding

WEIGHTS = "model.safetensors"


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
      AstroError: for a missing or damaged file, or a tensor that is missing or of another shape.
    """
    config = read_config(folder)
    where = _tensor_files(folder)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in where:
            raise AstroError(f"{folder}: the tensor {name} is missing from the weights")
        try:
            with safetensors.safe_open(where[name], framework="numpy") as f:
                value = f.get_tensor(name)
        except (OSError, safetensors.SafetensorError) as e:
            raise AstroError(f"{where[name]}: damaged or unreadable ({e}); copy it again") from e
        if value.shape != shape:
            raise AstroError(f"{where[name]}: {name} is {value.shape}, config.json says {shape}")
        return value

    def leaf(spec: Spec) -> Any:
        shape = _hf_shape(spec)
        if spec.stacked:
            parts = [_from_hf(tensor(spec.hf_name.format(i), shape), spec) for i in range(spec.shape[0])]
            value = np.stack(parts)
        else:
            value = _from_hf(tensor(spec.hf_name, shape), spec)
        value = value.astype(dtype)
        return jax.device_put(value, sharding.named(*spec.axes)) if sharding else jax.numpy.asarray(value)

    return config, jax.tree.map(leaf, llama_params.declare(config))


def write(folder: epath.Path, config: LlamaConfig, params: Params, tokenizer: Any) -> None:
    """Write config.json, model.safetensors and the tokenizer. The folder must not exist; it appears whole.

    Raises:
      AstroError: when the folder exists.
    """
    if folder.exists():
        raise AstroError(f"{folder}: exists; nothing was written, choose another folder or remove it")
    part = folder.parent / f"{folder.name}.part"
    if part.exists():
        part.rmtree()
    part.mkdir(parents=True)
    tensors: dict[str, np.ndarray] = {}

    def leaf(spec: Spec, value: jax.Array) -> None:
        array = np.asarray(value)
        if spec.stacked:
            tensors.update({spec.hf_name.format(i): _to_hf(array[i], spec) for i in range(len(array))})
        else:
            tensors[spec.hf_name] = _to_hf(array, spec)

    jax.tree.map(leaf, llama_params.declare(config), params)
    safetensors.numpy.save_file(tensors, str(part / WEIGHTS), metadata={"format": "pt"})
    tokenizer.save_pretrained(str(part))
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (part / "config.json").write_text(json.dumps(to_hf(config) | ids, indent=2) + "\n")
    part.rename(folder)


def _tensor_files(folder: epath.Path) -> dict[str, str]:
    """Which file holds each tensor."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.exists():
        try:
            return {name: str(folder / file) for name, file in json.loads(index.read_text())["weight_map"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise AstroError(f"{index}: damaged or unreadable ({e}); copy it again") from e
    path = folder / WEIGHTS
    if not path.exists():
        raise AstroError(f"{folder}: no {WEIGHTS} there")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as f:
            return dict.fromkeys(f.keys(), str(path))
    except (OSError, safetensors.SafetensorError) as e:
        raise AstroError(f"{path}: damaged or unreadable ({e}); copy it again") from e


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
