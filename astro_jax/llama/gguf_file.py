"""GGUF files: a Llama as llama.cpp keeps it, often quantized. Weights are dequantized; the tokenizer is in the file."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from astro_jax.errors import AstroError
from astro_jax.llama import hf, weights
from astro_jax.llama.config import LlamaConfig, RopeScaling
from astro_jax.llama.model import rope_frequencies
from astro_jax.llama.weights import Tensor

# Hugging Face's names of tensors, and llama.cpp's.
_NAMES = (
    (r"model\.embed_tokens\.", "token_embd."),
    (r"model\.norm\.", "output_norm."),
    (r"lm_head\.", "output."),
    (r"model\.layers\.", "blk."),
    (r"input_layernorm", "attn_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"self_attn\.([qkv])_proj", r"attn_\1"),
    (r"self_attn\.o_proj", "attn_output"),
    (r"mlp\.(gate|up|down)_proj", r"ffn_\1"),
)
# RoPE's factors are stored as an array; these are the scalings of the published models that have one.
_SCALINGS = (RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192))
# How text is cut before byte pairs are merged, by the file's name for it.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_CUTS: dict[str, tuple[Any, ...]] = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "default": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "smollm": (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama-bpe": (
        pre_tokenizers.Split(tokenizers.Regex(_LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
}
_FACTORS = "rope_freqs.weight"
# The types that are not quantized; what is becomes float32.
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CONTROL = 3  # the type of a token that stands for no text


class File:
    """An open GGUF file."""

    def __init__(self, path: epath.Path):
        try:
            import gguf
        except ImportError as e:
            raise AstroError(f"{path}: reading GGUF needs the extra `gguf`: pip install gguf") from e
        self.path, self._dequantize = path, gguf.quants.dequantize
        try:
            reader = gguf.GGUFReader(str(path))
            self._fields = reader.fields
            self.tensors = {t.name: t for t in reader.tensors}
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as e:
            raise self.error(f"damaged or unreadable ({e}); copy it again") from e
        if reader.byte_order == "S":
            raise self.error("its bytes are in another order than this machine's; convert it with llama.cpp")

    def error(self, what: str) -> AstroError:
        return AstroError(f"{self.path}: {what}")

    def field(self, name: str, default: Any = ...) -> Any:
        """A value of the file's header; without a default it must be there. Read when asked for: the tokenizer's lists
        are long, and the weights do not need them."""
        if name not in self._fields:
            if default is ...:
                raise self.error(f"its header has no {name}")
            return default
        try:
            return self._fields[name].contents()
        except (ValueError, IndexError) as e:
            raise self.error(f"damaged or unreadable ({e}); copy it again") from e

    def config(self) -> LlamaConfig:
        """The model's shape."""
        if (kind := self.field("general.architecture")) != "llama":
            raise self.error(f"architecture {kind!r} is not supported; only 'llama' is")
        if (scaling := self.field("llama.rope.scaling.type", "none")) != "none":
            raise self.error(f"rope scaling {scaling!r} is not supported")
        heads, width = self.field("llama.attention.head_count"), self.field("llama.embedding_length")
        config = LlamaConfig(
            vocab_size=self.field("llama.vocab_size", None) or len(self.field("tokenizer.ggml.tokens")),
            d_model=width,
            d_ff=self.field("llama.feed_forward_length"),
            n_layers=self.field("llama.block_count"),
            n_heads=heads,
            n_kv_heads=self.field("llama.attention.head_count_kv", heads),
            head_dim=self.field("llama.rope.dimension_count", width // heads),
            max_positions=self.field("llama.context_length"),
            rope_theta=float(self.field("llama.rope.freq_base", 10000.0)),
            # Stored in single precision: 1e-5 comes back as 9.9999997e-06.
            norm_eps=float(f"{self.field('llama.attention.layer_norm_rms_epsilon'):.7g}"),
            tie_embeddings="output.weight" not in self.tensors,
        )
        return self._scaled(config)

    def _scaled(self, config: LlamaConfig) -> LlamaConfig:
        """With Llama 3.1's scaling of RoPE, where the file holds its factors."""
        if _FACTORS not in self.tensors:
            return config
        factors = self._tensor(_FACTORS).read()
        for scaling in _SCALINGS:
            scaled = dataclasses.replace(config, rope_scaling=scaling)
            if np.allclose(rope_frequencies(config) / rope_frequencies(scaled), factors, rtol=1e-4):
                return scaled
        raise self.error("its RoPE factors are those of no Llama that is known here")

    def stored(self) -> tuple[LlamaConfig, dict[str, Tensor]]:
        """The model's shape, and its tensors by Hugging Face's names. All is checked but the values, which are not
        read."""
        config = self.config()
        shapes = hf.tensor_shapes(config)
        there = {name: self._tensor(name, config) for name in self.tensors if name != _FACTORS}
        weights.check(self.path, there, {_name(name): shape for name, shape in shapes.items()})
        return config, {name: there[_name(name)] for name in shapes}

    def _tensor(self, name: str, config: LlamaConfig | None = None) -> Tensor:
        """A tensor by llama.cpp's name, in Hugging Face's layout: with a config, what is rotated is reordered."""
        tensor = self.tensors[name]
        kind, shape = tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape))
        try:
            self._dequantize(np.zeros((1, tensor.n_bytes // _rows(shape)), np.uint8), tensor.tensor_type)
        except NotImplementedError as e:
            raise self.error(f"{name} is quantized as {kind}, which cannot be read") from e
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads} if config else {}
        blocks = functools.partial(self._blocks, tensor, shape, heads.get(name.split(".")[-2]))
        return Tensor(name, shape, _FLOATS.get(kind, "float32"), blocks)

    def _blocks(self, tensor: Any, shape: tuple[int, ...], heads: int | None) -> Iterator[np.ndarray]:
        """Rows as float32. They are read past the map of the file, whose pages would count as memory until its end."""
        rows, width = _rows(shape), shape[-1]
        row_bytes, head = tensor.n_bytes // rows, rows // heads if heads else 1
        for start, stop in weights.spans((rows, width), 4, head):
            offset = tensor.data_offset + start * row_bytes
            raw = np.fromfile(self.path, np.uint8, (stop - start) * row_bytes, offset=offset)
            value = self._dequantize(raw.reshape(stop - start, row_bytes), tensor.tensor_type)
            if heads:  # llama.cpp rotates neighbours, Hugging Face halves
                value = value.reshape(-1, head // 2, 2, width).swapaxes(1, 2)
            yield value.reshape(-1, *shape[1:])

    def end_tokens(self) -> list[int]:
        """The ids that end an answer: of the text, of a turn, of a message."""
        found = (self.field(f"tokenizer.ggml.{kind}_token_id", None) for kind in ("eos", "eot", "eom"))
        return [i for i in found if i is not None]

    def tokenizer(self) -> Any:
        """The tokenizer, chat template included."""
        from transformers import PreTrainedTokenizerFast

        kind, cut = self.field("tokenizer.ggml.model"), self.field("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or cut not in _CUTS:
            raise self.error(
                f"its tokenizer ({kind}, {cut}) is not read from GGUF; put the model's tokenizer.json beside it"
            )
        tokens = self.field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
        vocab = {token: i for i, token in enumerate(tokens)}
        bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut == "llama-bpe"))
        bpe.pre_tokenizer = pre_tokenizers.Sequence(list(_CUTS[cut]))
        bpe.decoder = decoders.ByteLevel()
        types = self.field("tokenizer.ggml.token_type")
        control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
        ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        named = {f"{ours}_token": self.field(f"tokenizer.ggml.{theirs}_token_id", None) for ours, theirs in ids.items()}
        special = {name: tokens[i] for name, i in named.items() if i is not None}
        if self.field("tokenizer.ggml.add_bos_token", False) and "bos_token" in special:
            bos = special["bos_token"]
            bpe.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, vocab[bos])])
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe, chat_template=self.field("tokenizer.chat_template", None),
            clean_up_tokenization_spaces=False, **special,
        )  # fmt: skip


def _rows(shape: tuple[int, ...]) -> int:
    """A vector is one row."""
    return shape[0] if len(shape) > 1 else 1


def _name(name: str) -> str:
    """llama.cpp's name of a tensor, from Hugging Face's."""
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name
