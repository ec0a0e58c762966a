"""GGUF files, written here by llama.cpp's own package, against the parameters that went in."""

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
from astro_jax.llama import checkpoint, gguf_file, tokenizer, weights
from astro_jax.llama.config import RopeScaling
from astro_jax.llama.model import rope_frequencies

gguf = pytest.importorskip("gguf")

CONFIG = tiny_config(d_model=64, d_ff=96, n_heads=4, n_kv_heads=2, head_dim=16)
TYPES = gguf.GGMLQuantizationType
TEXT = "Hello, world! 12+3 = 15\n\n  日本語 naïve Ελλάδα עברית 😀\tdon't <|im_end|>"


def neighbours(weight, heads):
    """[heads x h, in] with the two halves of each head interleaved, as llama.cpp rotates them."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def tensors_of(config, params):
    """llama.cpp's tensors of a model of ours."""
    p, layers = jax.tree.map(np.asarray, params), {}
    for i in range(config.n_layers):
        at = jax.tree.map(lambda x, i=i: x[i], p.layers)
        q, k, v = (w.reshape(config.d_model, -1).T for w in (at.wq, at.wk, at.wv))
        named = {
            "attn_norm": at.attn_norm, "ffn_norm": at.mlp_norm, "attn_q": neighbours(q, config.n_heads),
            "attn_k": neighbours(k, config.n_kv_heads), "attn_v": v,
            "attn_output": at.wo.reshape(-1, config.d_model).T,
            "ffn_gate": at.w_gate.T, "ffn_up": at.w_up.T, "ffn_down": at.w_down.T,
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


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"n_kv_heads": 4}], ids=str)
def test_a_file_in_single_precision_is_read_exactly(changes, tmp_path):
    config = tiny_config(d_model=64, head_dim=16, **changes)
    params = tiny_params(config)
    path = write(tmp_path / "model.gguf", config, tensors_of(config, params))
    again, read = llama.load(path)
    assert again == config
    assert_trees_equal(read, params)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantized_weights_are_what_the_quantization_left(kind, tmp_path):
    kind, params = TYPES[kind], tiny_params(CONFIG)
    tensors = tensors_of(CONFIG, params)
    _, read = llama.load(write(tmp_path / "model.gguf", CONFIG, tensors, kind))
    there_and_back = {
        name: value if value.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        for name, value in tensors.items()
    }
    for name, value in tensors_of(CONFIG, read).items():
        np.testing.assert_array_equal(value, there_and_back[name], err_msg=name)
    assert not np.array_equal(read.layers.w_up, params.layers.w_up)  # it did lose something


@pytest.mark.parametrize(
    "kind, dtype", [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "float32")]
)
def test_an_import_keeps_what_is_not_quantized(kind, dtype, tmp_path, monkeypatch):
    config = tiny_config(d_model=64, d_ff=96, head_dim=16, vocab_size=len(countdown_tokenizer(9)))
    path = write(tmp_path / "model.gguf", config, tensors_of(config, tiny_params(config)), TYPES[kind])
    countdown_tokenizer(9).hf.save_pretrained(tmp_path)
    whole = llama.load(path)[1]
    monkeypatch.setattr(weights, "BLOCK_BYTES", 1500)  # several blocks a tensor; the rows of a head stay together
    assert cli.main(["import", str(path), str(tmp_path / "new")]) == 0
    assert_trees_equal(llama.load(tmp_path / "new")[1], whole)
    stored = llama.load(tmp_path / "new", dtype=None)[1]
    assert stored.embed.dtype == stored.layers.wq.dtype == dtype and stored.final_norm.dtype == np.float32
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == dtype


def test_llama_3_1s_factors_become_its_scaling(tmp_path):
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
    """A small byte-level BPE, trained here, and its tokens and merges."""
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


def test_the_tokenizer_inside_reads_any_text_byte_for_byte(tmp_path):
    bpe, tokens, merges = byte_pairs()
    config = tiny_config(d_model=64, head_dim=16, vocab_size=len(tokens))
    types = [1] * (len(tokens) - 1) + [3]
    path = write(
        tmp_path / "model.gguf", config, tensors_of(config, tiny_params(config)), tokenizer_model="gpt2",
        tokenizer_pre="smollm", token_list=tokens, token_merges=merges, token_types=types,
        eos_token_id=len(tokens) - 1, chat_template="{{ messages[0]['content'] }}",
    )  # fmt: skip
    found = tokenizer.load(str(path))
    text = TEXT.removesuffix("<|im_end|>")
    assert found.encode(text) == bpe.encode(text).ids and found.decode(found.encode(text)) == text
    assert found.encode(TEXT) == [*bpe.encode(text).ids, found.eos_token_id] and found.hf.eos_token == "<|im_end|>"
    assert found.hf.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    endless = write(
        tmp_path / "endless.gguf", config, tensors_of(config, tiny_params(config)), tokenizer_model="gpt2",
        tokenizer_pre="smollm", token_list=tokens, token_merges=merges, token_types=types,
    )  # fmt: skip
    with pytest.raises(AstroError, match="no end token"):
        tokenizer.load(str(endless))
    countdown_tokenizer(9).hf.save_pretrained(tmp_path)  # a tokenizer.json beside it is taken instead
    assert tokenizer.load(str(path)).hf.get_vocab() == countdown_tokenizer(9).hf.get_vocab()


def test_the_ends_of_a_turn_and_of_a_message_end_answers_too(tmp_path):
    _, tokens, merges = byte_pairs()
    config, turn, message, end = tiny_config(d_model=64, head_dim=16, vocab_size=len(tokens)), 7, 8, len(tokens) - 1
    params = tiny_params(config)
    path = write(
        tmp_path / "model.gguf", config, tensors_of(config, params), tokenizer_model="gpt2", tokenizer_pre="smollm",
        token_list=tokens, token_merges=merges, token_types=[1] * end + [3],
        eos_token_id=end, eot_token_id=turn, eom_token_id=message,
    )  # fmt: skip
    found = tokenizer.load(str(path))
    assert found.stop_token_ids == (end, turn, message) and found.eos_token_id == end
    checkpoint.save(epath.Path(tmp_path / "ours"), config, params, found)
    assert tokenizer.load(str(tmp_path / "ours")).ends == found.stop_token_ids


def test_without_the_package_it_is_one_line(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", CONFIG, tensors_of(CONFIG, tiny_params(CONFIG)))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(AstroError, match="needs the extra `gguf`"):
        llama.load(path)


def test_a_file_of_another_byte_order_is_refused(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AstroError, match="another order"):
        llama.load(tmp_path / "model.gguf")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    tensors = tensors_of(CONFIG, tiny_params(CONFIG))
    path = write(tmp_path / "model.gguf", CONFIG, tensors)
    whole = path.read_bytes()
    for kept in (0, 3, 100, len(whole) // 2):
        path.write_bytes(whole[:kept])
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
    with pytest.raises(AstroError, match=r"output_norm\.weight is quantized as I32, which cannot be read"):
        llama.load(write(tmp_path / "integers.gguf", CONFIG, integers))
    lacking = {name: value for name, value in tensors.items() if name != "blk.1.ffn_up.weight"}
    with pytest.raises(AstroError, match=r"blk\.1\.ffn_up\.weight is missing"):
        llama.load(write(tmp_path / "lacking.gguf", CONFIG, lacking))
    biased = tensors | {
        "blk.0.attn_q.bias": np.zeros(64, np.float32)
    }  # it was passed over once, where a folder's was not
    with pytest.raises(AstroError, match=r"blk\.0\.attn_q\.bias has no place"):
        llama.load(write(tmp_path / "biased.gguf", CONFIG, biased))
    wrong = tensors | {"blk.0.attn_v.weight": np.zeros((64, 64), np.float32)}
    with pytest.raises(AstroError, match=r"blk.0.attn_v.weight is \(64, 64\)"):
        llama.load(write(tmp_path / "wrong.gguf", CONFIG, wrong))
    nan = tensors | {"output_norm.weight": np.full(64, np.nan, np.float32)}
    with pytest.raises(AstroError, match="not finite"):
        llama.load(write(tmp_path / "nan.gguf", CONFIG, nan))
    with pytest.raises(AstroError, match="tokenizer"):
        gguf_file.File(epath.Path(tmp_path / "nan.gguf")).tokenizer()
