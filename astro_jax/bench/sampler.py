"""Benchmark the sampler: tokens a second, and their share of the limits of this machine, measured in the same run."""

from __future__ import annotations

import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from astro_jax.errors import AstroError
from astro_jax.llama import hf, params
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.sampler import EngineStats, Request, SamplingParams
from astro_jax.sampler.kv_cache import bytes_per_column
from astro_jax.storage import Json


@dataclasses.dataclass(frozen=True)
class Workload:
    """G groups of M samples.

    Attributes:
      groups: G, the number of prompts.
      samples: M, completions of each prompt.
      prompt: tokens of a prompt.
      new: T, tokens of a completion.
      ragged: sample the lengths of completions from a geometric distribution with mean T / 2, and at most 4 T.
      seed: of the prompts and the lengths.

    Raises:
      AstroError: for a size below 1.
    """

    groups: int
    samples: int
    prompt: int
    new: int
    ragged: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.groups, self.samples, self.prompt, self.new) < 1:
            raise AstroError("bench: --groups, --samples, --prompt and --new must be at least 1")

    def lengths(self) -> np.ndarray:
        """New tokens of each completion, int [G, M]."""
        shape = (self.groups, self.samples)
        if not self.ragged:
            return np.full(shape, self.new)
        lengths = np.random.default_rng(self.seed).geometric(min(1.0, 2 / self.new), shape)
        return np.minimum(lengths, 4 * self.new)

    def prompts(self, vocab_size: int) -> np.ndarray:
        """Random tokens, int [G, prompt]."""
        return np.random.default_rng(self.seed).integers(0, vocab_size, (self.groups, self.prompt))

    def requests(self, vocab_size: int) -> list[Request]:
        """The workload as requests to the engine."""
        return [
            Request(tuple(map(int, prompt)), self.samples, ("bench", i), tuple(map(int, lengths)))
            for i, (prompt, lengths) in enumerate(zip(self.prompts(vocab_size), self.lengths(), strict=True))
        ]


def measure(policy: Policy, work: Workload, compare: str | None = None) -> Json:
    """Generate the workload twice; the first call also compiles.

    Args:
      policy: the model.
      work: the workload.
      compare: "torch": also measure `generate` of transformers with the same weights. "static": also measure static
        batching, where a batch starts together and ends with its last sequence.

    Returns:
      workload; tokens: new tokens; seconds; tokens_per_s; limits (see `limit`); share_of_limit: of the lower limit;
      first_s: seconds of the first call; compile_s: the difference to the second call; peak_bytes; occupancy: the share
      of row steps that sampled a token; prefix_reuse: the share of prompt tokens that were not computed again; and
      under "torch" or "static" the comparison with `ratio`, the speed of the engine over the speed compared with.
    """
    config, run = policy.engine.config, generation(policy, work)
    first = timed(run)
    policy.engine.stats = EngineStats()
    seconds, stats = timed(run), policy.engine.stats
    limits = limit(config, policy.params, work, flops_per_s(), bytes_per_s(), policy.engine.quantized_cache)
    tokens = int(work.lengths().sum())
    result: Json = {
        "workload": dataclasses.asdict(work), "tokens": tokens, "seconds": round(seconds, 6),
        "tokens_per_s": round(tokens / seconds, 1), "limits": limits,
        "share_of_limit": round(tokens / seconds / min(limits["by_flops"], limits["by_bandwidth"]), 3),
        "first_s": round(first, 1), "compile_s": round(first - seconds, 1), "peak_bytes": peak_bytes(),
        "occupancy": round(stats.occupancy, 3), "prefix_reuse": round(stats.prefix_reuse, 3),
    }  # fmt: skip
    if compare:
        other = transformers(policy, work) if compare == "torch" else static(policy, work)
        result[compare] = other | {"ratio": round(result["tokens_per_s"] / other["tokens_per_s"], 2)}
    return result


def timed(call: Callable[[], Any]) -> float:
    """Measure the seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def limit(
    config: LlamaConfig,
    weights: params.Params,
    work: Workload,
    flops: float,
    bandwidth: float,
    quantized_cache: bool = False,
) -> Json:
    """Compute the tokens a second that the machine allows if nothing else costs time.

    FLOPs: those of the matmuls, attention included; each prompt once. Bytes: the parameters once for each decode step
    of all rows and once for prefill, and the keys and values of each row at every step.

    Args:
      config: the model.
      weights: of the model; only their size counts.
      work: the workload.
      flops: measured FLOP/s of the machine.
      bandwidth: measured bytes/s of the machine.
      quantized_cache: whether keys and values are int8 numbers.

    Returns:
      flops_per_s and bytes_per_s of the machine; by_flops and by_bandwidth, the tokens a second that each allows.
    """
    lengths = work.lengths()
    decode = sum(int(n) * config.flops_per_token(work.prompt + int(n) // 2) for n in lengths.flat)
    prefill = work.groups * work.prompt * config.flops_per_token(work.prompt // 2)
    size = sum(x.nbytes for x in jax.tree.leaves(weights))
    column = bytes_per_column(config, weights.embed.dtype.itemsize, quantized_cache)
    cache = sum(int(n) * (work.prompt + int(n) // 2) * column for n in lengths.flat)
    tokens = int(lengths.sum())
    return {
        "flops_per_s": round(flops), "bytes_per_s": round(bandwidth),
        "by_flops": round(tokens * flops / (decode + prefill), 1),
        "by_bandwidth": round(tokens * bandwidth / ((int(lengths.max()) + 1) * size + cache), 1),
    }  # fmt: skip


def flops_per_s(dtype: DTypeLike = jnp.float32) -> float:
    """Measure the rate of a product of two large random matrices, the best of five.

    An accelerator takes larger ones, so that the start of a program does not count; and it multiplies float32 in its
    fast mode (TF32 on a GPU, bfloat16 on a TPU), as the model does.
    """
    n = 4096 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return 2 * n**3 / min(timed(lambda: product(x, x)) for _ in range(6))


def bytes_per_s() -> float:
    """Measure the rate at which a large array is read, the best of five."""
    size = 1 << (28 if jax.default_backend() == "cpu" else 32)
    x = jnp.ones((size // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    return size / min(timed(lambda: total(x)) for _ in range(6))


def peak_bytes() -> int:
    """The peak memory so far: of the first device if it has statistics, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    kib = 1 if sys.platform == "darwin" else 1024
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib


def generation(policy: Policy, work: Workload) -> Callable[[], Any]:
    """Make a function that generates the workload."""
    requests, longest = work.requests(policy.engine.config.vocab_size), int(work.lengths().max())
    return lambda: policy.generate(requests, SamplingParams(longest, stop_token_ids=()))


def rate(work: Workload, seconds: float) -> Json:
    """Seconds and tokens a second of a call that generated the workload."""
    return {"seconds": round(seconds, 3), "tokens_per_s": round(int(work.lengths().sum()) / seconds, 1)}


def static(policy: Policy, work: Workload) -> Json:
    """Measure static batching: a batch starts together and ends with its last sequence."""
    run = generation(dataclasses.replace(policy, engine=policy.engine.static_batching()), work)
    timed(run)
    return rate(work, timed(run))


def torch_model(config: LlamaConfig, weights: Params, tokenizer: Tokenizer) -> Any:
    """Return a model of transformers in float32 with the same weights, on a card if JAX computes on one.

    There torch multiplies float32 in TF32, as JAX does by default.
    """
    import torch
    from transformers import AutoModelForCausalLM

    on_card = jax.default_backend() == "gpu"
    if on_card:
        torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        hf.write(epath.Path(folder) / "model", config, weights, tokenizer)
        model: Any = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32)
    return model.to("cuda" if on_card else "cpu")


def transformers(policy: Policy, work: Workload) -> Json:
    """Measure `generate` of transformers with torch, on the same weights and prompts.

    transformers has one length for all completions. For a ragged workload it generates all to the longest, and tokens
    beyond the length of a completion do not count.
    """
    import torch

    model = torch_model(policy.engine.config, policy.params, policy.tokenizer).eval()
    prompts = torch.from_numpy(work.prompts(policy.engine.config.vocab_size)).to(model.device)

    def generate(new: int) -> None:
        with torch.no_grad():
            model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, eos_token_id=None,
                max_new_tokens=new, num_return_sequences=work.samples, pad_token_id=0,
            ).cpu()  # fmt: skip

    generate(2)  # loads the kernels
    return rate(work, timed(lambda: generate(int(work.lengths().max()))))
