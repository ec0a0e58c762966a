"""GGUF files, the format of llama.cpp: often quantized weights, and a tokenizer in the same file.

Weights are dequantized to float32, block by block.
"""

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
from astro_jax.llama import weights
from astro_jax.llama.config import LlamaConfig, RopeScaling
from astro_jax.llama.model import rope_frequencies
from astro_jax.llama.params import hf_shapes
from astro_jax.llama.weights import Tensor

# Patterns in Hugging Face's names of tensors, and the text in llama.cpp's names.
_TENSOR_NAMES = (
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
# A GGUF file stores RoPE's scaling as an array of factors. The published models have one of these scalings.
_ROPE_SCALINGS = (RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192))
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
# The pre-tokenizers of byte-level BPE, by the value of tokenizer.ggml.pre.
_PRE_TOKENIZERS: dict[str, tuple[pre_tokenizers.PreTokenizer, ...]] = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "default": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "smollm": (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama-bpe": (
        pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
}
_ROPE_FACTORS = "rope_freqs.weight"
# The dtypes of tensors that are not quantized. Quantized tensors become float32.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CONTROL_TOKEN = 3  # a value of tokenizer.ggml.token_type


class GgufFile:
    """A GGUF file of a Llama model.

    Attributes:
      tensors: the gguf package's tensors, by llama.cpp's names.
    """

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
            raise self.error("the byte order differs from this machine's; convert the file with llama.cpp")

    def error(self, message: str) -> AstroError:
        """An AstroError that names the file."""
        return AstroError(f"{self.path}: {message}")

    def field(self, name: str, default: Any = ...) -> Any:
        """Read one field of the header. The tokenizer's lists are long, so that fields are read on demand.

        Raises:
          AstroError: when the field is damaged, or missing and without a default.
        """
        if name not in self._fields:
            if default is ...:
                raise self.error(f"the header has no field {name}; convert the model again with llama.cpp")
            return default
        try:
            return self._fields[name].contents()
        except (ValueError, IndexError) as e:
            raise self.error(f"damaged or unreadable ({e}); copy it again") from e

    def config(self) -> LlamaConfig:
        """Read the model's config.

        Raises:
          AstroError: when the model is not supported.
        """
        if (architecture := self.field("general.architecture")) != "llama":
            raise self.error(f"architecture {architecture!r} is not supported; only 'llama' is")
        if (scaling := self.field("llama.rope.scaling.type", "none")) != "none":
            raise self.error(f"rope scaling {scaling!r} is not supported; only 'none' is")
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
            # The file stores float32: 1e-5 is read as 9.9999997e-06.
            norm_eps=float(f"{self.field('llama.attention.layer_norm_rms_epsilon'):.7g}"),
            tie_embeddings="output.weight" not in self.tensors,
        )
        return self._scaled(config)

    def _scaled(self, config: LlamaConfig) -> LlamaConfig:
        """Add Llama 3.1's RoPE scaling to a config, if the file has RoPE factors."""
        if _ROPE_FACTORS not in self.tensors:
            return config
        factors = self._tensor(_ROPE_FACTORS).read()
        for scaling in _ROPE_SCALINGS:
            scaled = dataclasses.replace(config, rope_scaling=scaling)
            if np.allclose(rope_frequencies(config) / rope_frequencies(scaled), factors, rtol=1e-4):
                return scaled
        raise self.error(
            "the RoPE factors match no published Llama model; convert the model from its Hugging Face folder"
        )

    def open_weights(self) -> tuple[LlamaConfig, dict[str, Tensor]]:
        """Open the weights: (config, {Hugging Face's name: tensor}). All checks run, but no values are read.

        Raises:
          AstroError: when the model is damaged or not supported.
        """
        config = self.config()
        shapes = hf_shapes(config)
        tensors = {name: self._tensor(name, config) for name in self.tensors if name != _ROPE_FACTORS}
        weights.check(self.path, tensors, {_gguf_name(name): shape for name, shape in shapes.items()})
        return config, {name: tensors[_gguf_name(name)] for name in shapes}

    def _tensor(self, name: str, config: LlamaConfig | None = None) -> Tensor:
        """A tensor by llama.cpp's name. With a config, query and key weights are in Hugging Face's order of rows."""
        tensor = self.tensors[name]
        kind, shape = tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape))
        n_rows = _row_count(shape)
        try:
            self._dequantize(np.zeros((1, tensor.n_bytes // n_rows), np.uint8), tensor.tensor_type)
        except NotImplementedError as e:
            raise self.error(
                f"{name} is quantized as {kind}, which the gguf package cannot dequantize; quantize the model as Q8_0"
            ) from e
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads} if config else {}
        blocks = functools.partial(self._blocks, tensor, shape, heads.get(name.split(".")[-2]))
        return Tensor(name, shape, _DTYPES.get(kind, "float32"), blocks)

    def _blocks(self, tensor: Any, shape: tuple[int, ...], heads: int | None) -> Iterator[np.ndarray]:
        """Read and dequantize blocks of rows, float32.

        The blocks are not read from the gguf package's memory map: its pages would count as resident memory.
        """
        n_rows, width = _row_count(shape), shape[-1]
        row_bytes, head = tensor.n_bytes // n_rows, n_rows // heads if heads else 1
        for start, stop in weights.block_ranges((n_rows, width), 4, head):
            offset = tensor.data_offset + start * row_bytes
            raw = np.fromfile(self.path, np.uint8, (stop - start) * row_bytes, offset=offset)
            value = self._dequantize(raw.reshape(stop - start, row_bytes), tensor.tensor_type)
            if heads:  # RoPE pairs elements 2 i and 2 i + 1 in llama.cpp, i and i + h / 2 in Hugging Face
                value = value.reshape(-1, head // 2, 2, width).swapaxes(1, 2)
            yield value.reshape(-1, *shape[1:])

    def eos_token_ids(self) -> list[int]:
        """The ids of the tokens that end a text, a turn and a message, as far as the file names them."""
        ids = (self.field(f"tokenizer.ggml.{name}_token_id", None) for name in ("eos", "eot", "eom"))
        return [i for i in ids if i is not None]

    def tokenizer(self) -> Any:
        """Make transformers' tokenizer, with the chat template.

        Raises:
          AstroError: for a tokenizer that is not a supported byte-level BPE.
        """
        from transformers import PreTrainedTokenizerFast

        kind, pre = self.field("tokenizer.ggml.model"), self.field("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
            raise self.error(
                f"the tokenizer ({kind}, {pre}) is not supported; put the model's tokenizer.json into the same folder"
            )
        tokens = self.field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
        vocab = {token: i for i, token in enumerate(tokens)}
        bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
        bpe.pre_tokenizer = pre_tokenizers.Sequence(list(_PRE_TOKENIZERS[pre]))
        bpe.decoder = decoders.ByteLevel()
        types = self.field("tokenizer.ggml.token_type")
        control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
        bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # transformers' names, and GGUF's
        ids = {f"{hf}_token": self.field(f"tokenizer.ggml.{gguf}_token_id", None) for hf, gguf in names.items()}
        special = {name: tokens[i] for name, i in ids.items() if i is not None}
        if self.field("tokenizer.ggml.add_bos_token", False) and "bos_token" in special:
            bos = special["bos_token"]
            bpe.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, vocab[bos])])
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe, chat_template=self.field("tokenizer.chat_template", None),
            clean_up_tokenization_spaces=False, **special,
        )  # fmt: skip


def _row_count(shape: tuple[int, ...]) -> int:
    """The number of rows; a vector is one row."""
    return shape[0] if len(shape) > 1 else 1


def _gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor, from Hugging Face's: blk.0.attn_q.weight."""
    for pattern, replacement in _TENSOR_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
