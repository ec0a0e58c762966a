"""Write llama.npz: tiny Llamas of transformers and torch, their weights, config.json and logits.

python tests/golden/make_llama.py     # made with torch 2.13.0 and transformers 5.23.0
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM


def rope(theta, factor=None, original=8192):
    """The rope_parameters of Llama 3; with a factor, those of Llama 3.1."""
    if factor is None:
        return {"rope_type": "default", "rope_theta": theta}
    ramp = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **ramp}


ROPES = {  # of the published models; with head size 8 each scaling keeps, interpolates and divides some frequencies
    "llama-2": rope(1e4),
    "llama-3": rope(5e5),
    "llama-3.1": rope(5e5, 8.0),
    "llama-3.2": rope(5e5, 32.0),
}
VARIANTS = {
    "every-head-its-own": {"num_key_value_heads": 4, "rope_parameters": rope(500.0)},
    "grouped-llama3": {"num_key_value_heads": 2, "rope_parameters": rope(500.0, 4.0, original=16)},
    "one-shared-tied": {"num_key_value_heads": 1, "rope_parameters": rope(500.0), "tie_word_embeddings": True},
    "wide-heads": {"num_key_value_heads": 2, "rope_parameters": rope(500.0), "head_dim": 8},
    "llama-2": {"num_key_value_heads": 4, "rope_parameters": ROPES["llama-2"]},
    "llama-3": {"num_key_value_heads": 2, "rope_parameters": ROPES["llama-3"]},
    "llama-3.1": {"num_key_value_heads": 1, "rope_parameters": ROPES["llama-3.1"], "head_dim": 8},
    "llama-3.2-tied": {
        "num_key_value_heads": 2, "rope_parameters": ROPES["llama-3.2"], "head_dim": 8, "tie_word_embeddings": True,
    },
    "mistral": {"mistral": True, "num_key_value_heads": 2, "rope_parameters": rope(1e6), "sliding_window": None},
}  # fmt: skip
SHAPE = dict(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)


def make(changes, seed):
    """Make a model with random weights, norms too, which float16 represents exactly.

    Returns:
      (config.json, {name: tensor}, tokens, positions, logits). Some positions exceed original_max_position_embeddings.
    """
    torch.manual_seed(seed)
    shape = SHAPE | dict(max_position_embeddings=131072, rms_norm_eps=1e-5) | changes
    kind = (MistralConfig, MistralForCausalLM) if shape.pop("mistral", False) else (LlamaConfig, LlamaForCausalLM)
    model = kind[1](kind[0](**shape)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((0.3 * torch.randn(p.shape) + ("norm" in name)).half())
        tokens = torch.randint(0, SHAPE["vocab_size"], (2, 48))
        # Row 0 has the positions of a text. Row 1 has random positions below 3 x 8192.
        positions = torch.stack([torch.arange(48), torch.randperm(3 * 8192)[:48].sort().values])
        # Without a mask, transformers reads a gap in the positions as the start of another text.
        logits = model(tokens, attention_mask=torch.ones_like(tokens), position_ids=positions).logits
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = safetensors.numpy.load_file(Path(folder) / "model.safetensors")
        config = (Path(folder) / "config.json").read_text()
    numbers = (x.numpy().astype(np.int32) for x in (tokens, positions))
    return json.dumps(json.loads(config)), tensors, *numbers, logits.numpy()


def main():
    arrays = {}
    for seed, (name, changes) in enumerate(VARIANTS.items()):
        config, tensors, tokens, positions, logits = make(changes, seed)
        arrays |= {f"{name}/config": np.array(config), f"{name}/logits": logits}
        arrays |= {f"{name}/tokens": tokens, f"{name}/positions": positions}
        arrays |= {f"{name}/weights/{key}": value.astype(np.float16) for key, value in tensors.items()}
    np.savez_compressed(Path(__file__).parent / "llama.npz", **arrays)


if __name__ == "__main__":
    main()
