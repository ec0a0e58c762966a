"""Writes llama.npz: tiny Llamas of transformers and torch, their weights, config.json and logits.

python tests/golden/make_llama.py     # made with torch 2.13.0 and transformers 5.23.0
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROPE = {"rope_theta": 500.0, "rope_type": "default"}
LLAMA3 = {
    "rope_theta": 500.0, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
VARIANTS = {
    "every-head-its-own": {"num_key_value_heads": 4, "rope_parameters": ROPE},
    "grouped-llama3": {"num_key_value_heads": 2, "rope_parameters": LLAMA3},
    "one-shared-tied": {"num_key_value_heads": 1, "rope_parameters": ROPE, "tie_word_embeddings": True},
    "wide-heads": {"num_key_value_heads": 2, "rope_parameters": ROPE, "head_dim": 8},
}


def make(changes, seed):
    """A model with random weights, norms too; returns (config.json, {name: tensor}, tokens, logits)."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=128, rms_norm_eps=1e-5, **changes)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.3 * torch.randn(p.shape) + ("norm" in name))
        tokens = torch.randint(0, 20, (2, 48))
        logits = model(tokens).logits
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = safetensors.numpy.load_file(Path(folder) / "model.safetensors")
        config = (Path(folder) / "config.json").read_text()
    return json.dumps(json.loads(config)), tensors, tokens.numpy().astype(np.int32), logits.numpy()


def main():
    arrays = {}
    for seed, (name, changes) in enumerate(VARIANTS.items()):
        config, tensors, tokens, logits = make(changes, seed)
        arrays |= {f"{name}/config": np.array(config), f"{name}/tokens": tokens, f"{name}/logits": logits}
        arrays |= {f"{name}/weights/{key}": value for key, value in tensors.items()}
    np.savez_compressed(Path(__file__).parent / "llama.npz", **arrays)


if __name__ == "__main__":
    main()
