"""GGUF files, written by llama.cpp's Python package and read back."""

import json
import sys

import jax
import numpy as np
import pytest
import tokenizers
from etils import epath
from helpers import LLAMA3, assert_trees_equal, countdown_tokenizer, tiny_config, tiny_params

from astro_jax import cli, llama
from astro_jax.errors import AstroError
from astro_jax.llama import checkpoint, weights
from astro_jax.llama.config import RopeScaling
from astro_jax.llama.gguf_file import GgufFile
from astro_jax.llama.model import rope_frequencies
from astro_jax.llama.tokenizer import load as load_tokenizer

gguf = pytest.importorskip("gguf")

CONFIG = tiny_config(d_model=64, d_ff=96, n_heads=4, n_kv_heads=2, head_dim=16)
TYPES = gguf.GGMLQuantizationType
TEXT = "Hello, world! 12+3 = 15\n\n  日本語 naïve Ελλάδα עברית 😀\tdon't <|im_end|>"


def interleave(weight, heads):
    """Interleave the two halves of each head of [heads x h, in]: the order of rows of llama.cpp."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def tensors_of(config, params):
    """llama.cpp's tensors of a model, by llama.cpp's names."""
    p, layers = jax.tree.map(np.asarray, params), {}
    for i in range(config.n_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], p.layers)
        q, k, v = (w.reshape(config.d_model, -1).T for w in (layer.wq, layer.wk, layer.wv))
        named = {
            "attn_norm": layer.attn_norm, "ffn_norm": layer.mlp_norm, "attn_q": interleave(q, config.n_heads),
            "attn_k": interleave(k, config.n_kv_heads), "attn_v": v,
            "attn_output": layer.wo.reshape(-1, config.d_model).T,
            "ffn_gate": layer.w_gate.T, "ffn_up": layer.w_up.T, "ffn_down": layer.w_down.T,
        }  # fmt: skip
        layers |= {f"blk.{i}.{name}.weight": np.ascontiguousarray(value) for name, value in named.items()}
    head = {} if config.tie_embeddings else {"output.weight": np.ascontiguousarray(p.lm_head.T)}
    return layers | head | {"token_embd.weight": p.embed, "output_norm.weight": p.final_norm}


def write(path, config, tensors, kind=TYPES.F32, **header):
    writer = gguf.GGUFWriter(str(path), header.pop("architecture", "llama"))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_context_length(config.max_positions)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    for key, value in header.items():
        getattr(writer, f"add_{key}")(value)
    for name, value in tensors.items():
        if value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "n_kv_heads": 4}], ids=["grouped", "tied"])
def test_float32_file_is_read_bit_for_bit(changes, tmp_path):
    config = tiny_config(d_model=64, head_dim=16, **changes)
    params = tiny_params(config)
    path = write(tmp_path / "model.gguf", config, tensors_of(config, params))
    config_read, read = llama.load(path)
    assert config_read == config
    assert_trees_equal(read, params)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantized_weights_are_dequantized_as_by_llama_cpp(kind, tmp_path):
    kind, params = TYPES[kind], tiny_params(CONFIG)
    tensors = tensors_of(CONFIG, params)
    _, read = llama.load(write(tmp_path / "model.gguf", CONFIG, tensors, kind))
    dequantized = {
        name: value if value.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        for name, value in tensors.items()
    }
    for name, value in tensors_of(CONFIG, read).items():
        np.testing.assert_array_equal(value, dequantized[name], err_msg=name)
    assert not np.array_equal(read.layers.w_up, params.layers.w_up)  # the quantization loses precision


@pytest.mark.parametrize(
    "kind, dtype", [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "float32")]
)
def test_import_keeps_the_dtype_of_tensors_that_are_not_quantized(kind, dtype, tmp_path, monkeypatch):
    config = tiny_config(d_model=64, d_ff=96, head_dim=16, vocab_size=len(countdown_tokenizer(9)))
    path = write(tmp_path / "model.gguf", config, tensors_of(config, tiny_params(config)), TYPES[kind])
    countdown_tokenizer(9).hf.save_pretrained(tmp_path)
    params = llama.load(path)[1]
    monkeypatch.setattr(weights, "BLOCK_BYTES", 1500)  # several blocks a tensor; a block has whole heads
    assert cli.main(["import", str(path), str(tmp_path / "new")]) == 0
    assert_trees_equal(llama.load(tmp_path / "new")[1], params)
    stored = llama.load(tmp_path / "new", dtype=None)[1]
    assert stored.embed.dtype == stored.layers.wq.dtype == dtype and stored.final_norm.dtype == np.float32
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == dtype


def test_rope_factors_become_the_scaling_of_llama_3_1(tmp_path):
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    config = tiny_config(d_model=64, head_dim=16, rope_theta=500000.0, rope_scaling=scaling)
    plain = tiny_config(d_model=64, head_dim=16, rope_theta=500000.0)
    factors = np.asarray(rope_frequencies(plain) / rope_frequencies(config))
    tensors = tensors_of(config, tiny_params(config)) | {"rope_freqs.weight": factors}
    assert llama.load(write(tmp_path / "model.gguf", config, tensors))[0] == config
    assert LLAMA3 != scaling
    tensors["rope_freqs.weight"] = factors * 1.5
    with pytest.raises(AstroError, match="RoPE factors"):
        llama.load(write(tmp_path / "other.gguf", config, tensors))


def byte_pairs():
    """(tokenizer, tokens, merges) of a small byte-level BPE."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([TEXT, "the thin thing that thought"] * 4, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    return bpe, [*tokens, "<|im_end|>"], [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]


def test_tokenizer_in_the_file_encodes_like_the_original(tmp_path):
    bpe, tokens, merges = byte_pairs()
    config = tiny_config(d_model=64, head_dim=16, vocab_size=len(tokens))
    types = [1] * (len(tokens) - 1) + [3]
    path = write(
        tmp_path / "model.gguf", config, tensors_of(config, tiny_params(config)), tokenizer_model="gpt2",
        tokenizer_pre="smollm", token_list=tokens, token_merges=merges, token_types=types,
        eos_token_id=len(tokens) - 1, chat_template="{{ messages[0]['content'] }}",
    )  # fmt: skip
    tokenizer = load_tokenizer(str(path))
    text = TEXT.removesuffix("<|im_end|>")
    assert tokenizer.encode(text) == bpe.encode(text).ids and tokenizer.decode(tokenizer.encode(text)) == text
    assert (
        tokenizer.encode(TEXT) == [*bpe.encode(text).ids, tokenizer.eos_token_id]
        and tokenizer.hf.eos_token == "<|im_end|>"
    )
    assert tokenizer.hf.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    no_end = write(
        tmp_path / "no_end.gguf", config, tensors_of(config, tiny_params(config)), tokenizer_model="gpt2",
        tokenizer_pre="smollm", token_list=tokens, token_merges=merges, token_types=types,
    )  # fmt: skip
    with pytest.raises(AstroError, match="no end token"):
        load_tokenizer(str(no_end))
    countdown_tokenizer(9).hf.save_pretrained(tmp_path)  # tokenizer.json takes precedence
    assert load_tokenizer(str(path)).hf.get_vocab() == countdown_tokenizer(9).hf.get_vocab()


def test_end_of_turn_and_end_of_message_are_end_tokens(tmp_path):
    _, tokens, merges = byte_pairs()
    config, turn, message, end = tiny_config(d_model=64, head_dim=16, vocab_size=len(tokens)), 7, 8, len(tokens) - 1
    params = tiny_params(config)
    path = write(
        tmp_path / "model.gguf", config, tensors_of(config, params), tokenizer_model="gpt2", tokenizer_pre="smollm",
        token_list=tokens, token_merges=merges, token_types=[1] * end + [3],
        eos_token_id=end, eot_token_id=turn, eom_token_id=message,
    )  # fmt: skip
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.stop_token_ids == (end, turn, message) and tokenizer.eos_token_id == end
    checkpoint.save(epath.Path(tmp_path / "checkpoint"), config, params, tokenizer)
    assert load_tokenizer(str(tmp_path / "checkpoint")).stop_token_ids == tokenizer.stop_token_ids


def test_missing_gguf_package_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", CONFIG, tensors_of(CONFIG, tiny_params(CONFIG)))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(AstroError, match="needs the extra `gguf`"):
        llama.load(path)


def test_file_of_another_byte_order_is_refused(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AstroError, match="byte order"):
        llama.load(tmp_path / "model.gguf")


def test_damaged_or_unsupported_file_is_an_error_of_one_line(tmp_path):
    tensors = tensors_of(CONFIG, tiny_params(CONFIG))
    path = write(tmp_path / "model.gguf", CONFIG, tensors)
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(AstroError, match=r"model\.gguf: damaged or unreadable") as e:
            llama.load(path)
        assert "\n" not in str(e.value)
    for changes, message in (
        (dict(architecture="qwen2"), "architecture 'qwen2'"),
        (dict(rope_scaling_type=gguf.RopeScalingType.YARN), "rope scaling 'yarn'"),
    ):
        with pytest.raises(AstroError, match=message):
            llama.load(write(tmp_path / "other.gguf", CONFIG, tensors, **changes))
    integers = tensors | {"output_norm.weight": np.zeros(64, np.int32)}
    with pytest.raises(AstroError, match=r"output_norm\.weight is quantized as I32, which the gguf package cannot"):
        llama.load(write(tmp_path / "integers.gguf", CONFIG, integers))
    incomplete = {name: value for name, value in tensors.items() if name != "blk.1.ffn_up.weight"}
    with pytest.raises(AstroError, match=r"blk\.1\.ffn_up\.weight is missing"):
        llama.load(write(tmp_path / "incomplete.gguf", CONFIG, incomplete))
    biased = tensors | {"blk.0.attn_q.bias": np.zeros(64, np.float32)}  # GGUF files with a bias were once accepted
    with pytest.raises(AstroError, match=r"blk\.0\.attn_q\.bias is not part of a Llama model"):
        llama.load(write(tmp_path / "biased.gguf", CONFIG, biased))
    wrong = tensors | {"blk.0.attn_v.weight": np.zeros((64, 64), np.float32)}
    with pytest.raises(AstroError, match=r"blk.0.attn_v.weight is \(64, 64\)"):
        llama.load(write(tmp_path / "wrong.gguf", CONFIG, wrong))
    nan = tensors | {"output_norm.weight": np.full(64, np.nan, np.float32)}
    with pytest.raises(AstroError, match="not finite"):
        llama.load(write(tmp_path / "nan.gguf", CONFIG, nan))
    with pytest.raises(AstroError, match="tokenizer"):
        GgufFile(epath.Path(tmp_path / "nan.gguf")).tokenizer()
