"""Hugging Face folders: read into our parameters, and written from them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.llama import model, weights
from astro_jax.llama import params as llama_params
from astro_jax.llama.config import LlamaConfig, from_hf, to_hf
from astro_jax.llama.params import Params, Spec
from astro_jax.llama.weights import Tensor
from astro_jax.mesh import Sharding, spread

if TYPE_CHECKING:
    from astro_jax.llama.tokenizer import Tokenizer

# Layers are stacked on the host up to this size of a stack, which needs no program; larger ones on the devices.
STACKED_BYTES = 64 << 20


def read_config(folder: epath.Path) -> LlamaConfig:
    """The LlamaConfig of a folder's config.json."""
    try:
        return from_hf(json.loads((folder / "config.json").read_text()))
    except OSError as e:
        raise AstroError(f"{folder}: no config.json there; give a Hugging Face folder or one of our checkpoints") from e
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise AstroError(f"{folder / 'config.json'}: not a Llama's config ({e})") from e


def stored(folder: epath.Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The config of a folder, and its tensors by name. All is checked but the values, which are not read.

    Raises:
      AstroError: for a missing or damaged file, a tensor that is missing or of another shape, and one that this model
        has no place for.
    """
    config = read_config(folder)
    there, wanted = weights.of_folder(folder), tensor_shapes(config)
    # Old exports also hold RoPE's frequencies, which follow from the config, and a copy of a tied embedding.
    passed_over = {n for n in there if n.endswith("rotary_emb.inv_freq") or n == "lm_head.weight"} - wanted.keys()
    weights.check(folder, {n: t for n, t in there.items() if n not in passed_over}, wanted)
    return config, {name: there[name] for name in wanted}


def read(folder: epath.Path, sharding: Sharding | None = None, dtype: Any = np.float32) -> tuple[LlamaConfig, Params]:
    """The config and the parameters of a folder; see `stored` and `assemble`."""
    config, tensors = stored(folder)
    return config, assemble(config, tensors, sharding, dtype)


def assemble(
    config: LlamaConfig,
    tensors: Mapping[str, Tensor],
    sharding: Sharding | None = None,
    dtype: Any = np.float32,
) -> Params:
    """Parameters from tensors on disk, each onto its sharding as it comes.

    Args:
      dtype: of the parameters; None keeps what is stored.

    Raises:
      AstroError: when a tensor holds values that are not finite.
    """

    def put(value: np.ndarray, axes: tuple[str | None, ...]) -> jax.Array:
        return spread(value, sharding.named(*axes)) if sharding else jnp.asarray(value)

    def leaf(spec: Spec) -> jax.Array:
        parts = [tensors[name] for name in _names(spec)]
        kinds = {t.dtype for t in parts}
        kind = np.dtype(dtype).name if dtype is not None else kinds.pop() if len(kinds) == 1 else "float32"
        values = (_from_hf(t.to(kind).read(), spec) for t in parts)
        if not spec.stacked:
            return put(next(values), spec.axes)
        if weights.total_bytes(parts) <= STACKED_BYTES:
            return put(np.stack(list(values)), spec.axes)
        stack = jnp.zeros(spec.shape, kind, device=sharding.named(*spec.axes) if sharding else None)
        for i, value in enumerate(values):
            # Waiting keeps one layer on the host, where reading may be faster than the way to the device.
            stack = _with_layer(stack, put(value, spec.axes[1:]), i).block_until_ready()
        return stack

    return jax.tree.map(leaf, llama_params.declare(config))


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: jax.Array, value: jax.Array, i: int) -> jax.Array:
    """[L, ...] with layer i replaced, in place."""
    return stack.at[i].set(value)


def write(
    folder: epath.Path,
    config: LlamaConfig,
    params: Params,
    tokenizer: Tokenizer,
    max_bytes: int = weights.MAX_BYTES,
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
    with storage.new_folder(folder) as part:
        weights.write(part, weights.files(_tensors_of(config, params), max_bytes))
        write_config(part, config, params.embed.dtype.name, tokenizer)
        if card:
            (part / "README.md").write_text(card)
        _verify(part, config, params)
        if check is not None:
            check(part)


def write_config(folder: epath.Path, config: LlamaConfig, dtype: str, tokenizer: Tokenizer) -> None:
    """Write config.json, the tokenizer and generation_config.json: all but the weights."""
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(to_hf(config, dtype) | tokenizer.ids(), indent=2) + "\n")


def _tensors_of(config: LlamaConfig, params: Params) -> dict[str, Tensor]:
    """Parameters as tensors to be written, each fetched from its devices when its turn comes."""

    def fetch(spec: Spec, value: jax.Array) -> Iterator[np.ndarray]:
        yield _to_hf(np.asarray(value), spec)

    found = {}
    for spec, leaf in zip(jax.tree.leaves(llama_params.declare(config)), jax.tree.leaves(params), strict=True):
        for i, name in enumerate(_names(spec)):
            blocks = lambda spec=spec, leaf=leaf, i=i: fetch(spec, leaf[i] if spec.stacked else leaf)  # noqa: E731
            found[name] = Tensor(name, _hf_shape(spec), leaf.dtype.name, blocks)
    return {name: found[name] for name in tensor_shapes(config)}


def _verify(folder: epath.Path, config: LlamaConfig, params: Params) -> None:
    """Compare the logits of what a folder holds with those of the parameters, on fixed tokens."""
    tokens = (np.arange(16, dtype=np.int32) * 31 % config.vocab_size)[None]
    again, written = read(folder, dtype=None)
    kind = jnp.result_type(*jax.tree.leaves(params))  # where dtypes are mixed, the widest: layers are scanned in one
    forward = jax.jit(model.forward, static_argnums=2)
    first, second = (forward(jax.tree.map(lambda x: x.astype(kind), p), tokens, config) for p in (params, written))
    difference = np.abs(np.asarray(first) - np.asarray(second)).max()
    if again != config or not difference < 1e-6:
        raise AstroError(f"{folder}: what was written reads back differently (logits by {difference}); write it again")


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a Hugging Face folder of this model holds, layer by layer."""
    specs = jax.tree.leaves(llama_params.declare(config))
    outside = {s.hf_name: _hf_shape(s) for s in specs if not s.stacked}
    layers = range(config.n_layers)
    return outside | {s.hf_name.format(i): _hf_shape(s) for i in layers for s in specs if s.stacked}


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
