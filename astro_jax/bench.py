"""What the sampler reaches, as a share of what this machine can do, measured in the same run."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from astro_jax.errors import AstroError
from astro_jax.llama import hf, params
from astro_jax.llama.config import LlamaConfig
from astro_jax.policy import Policy
from astro_jax.sampler import EngineStats, Request, SamplingParams
from astro_jax.sampler.cache import row_bytes
from astro_jax.storage import Json


@dataclasses.dataclass(frozen=True)
class Workload:
    """G groups of M samples: a prompt of P tokens each, and T new ones; ragged: lengths drawn from a geometric
    distribution with mean T / 2, and 4 T at most."""

    groups: int
    samples: int
    prompt: int
    new: int
    ragged: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.groups, self.samples, self.prompt, self.new) < 1:
            raise AstroError("bench: --groups, --samples, --prompt and --new are at least 1")

    def lengths(self) -> np.ndarray:
        """New tokens of each sample, int [G, M]."""
        shape = (self.groups, self.samples)
        if not self.ragged:
            return np.full(shape, self.new)
        drawn = np.random.default_rng(self.seed).geometric(min(1.0, 2 / self.new), shape)
        return np.minimum(drawn, 4 * self.new)

    def prompts(self, vocab_size: int) -> np.ndarray:
        """Random tokens, int [G, P]."""
        return np.random.default_rng(self.seed).integers(0, vocab_size, (self.groups, self.prompt))

    def requests(self, vocab_size: int) -> list[Request]:
        """The same as requests to the sampler."""
        return [
            Request(tuple(map(int, prompt)), self.samples, ("bench", i), tuple(map(int, caps)))
            for i, (prompt, caps) in enumerate(zip(self.prompts(vocab_size), self.lengths(), strict=True))
        ]


def sampler(policy: Policy, work: Workload, compare: str | None = None) -> Json:
    """Generate the workload twice, the first time with compilation.

    Args:
      compare: "torch": transformers' generate on the same weights; "static": the same sampler, without giving the rows
        of samples that have ended to others.

    Returns:
      new tokens and seconds; tokens_per_s; the machine's matmul FLOP/s and read bandwidth, and the tokens/s that each
      allows (`limits`); share_of_limit, of the lower one; first_s, of the first call, and compile_s, by which it took
      longer; peak_bytes; occupancy, the share of the rows' steps that made a token; prefix_reuse, the share of the
      samples' prompt tokens that were not computed for them; what was compared, and the ratio to it.
    """
    config = policy.engine.config
    run = generation(policy, work)
    first = timed(run)
    policy.engine.stats = EngineStats()
    seconds, stats = timed(run), policy.engine.stats
    limits = limit(config, policy.params, work, flops_per_s(), bytes_per_s())
    tokens = int(work.lengths().sum())
    found: Json = {
        "workload": dataclasses.asdict(work), "tokens": tokens, "seconds": round(seconds, 6),
        "tokens_per_s": round(tokens / seconds, 1), "limits": limits,
        "share_of_limit": round(tokens / seconds / min(limits["by_flops"], limits["by_bandwidth"]), 3),
        "first_s": round(first, 1), "compile_s": round(first - seconds, 1), "peak_bytes": peak_bytes(),
        "occupancy": round(stats.occupancy, 3), "prefix_reuse": round(stats.prefix_reuse, 3),
    }  # fmt: skip
    if compare:
        theirs = transformers(policy, work) if compare == "torch" else static(policy, work)
        found[compare] = theirs | {"ratio": round(found["tokens_per_s"] / theirs["tokens_per_s"], 2)}
    return found


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def limit(config: LlamaConfig, weights: params.Params, work: Workload, flops: float, bandwidth: float) -> Json:
    """The machine's measured FLOP/s and bytes/s, and the tokens/s that each would allow if nothing else cost time.

    FLOPs: of the matmuls, attention included; each prompt once. Bytes: the parameters once a decode step of all rows
    and once a prefill, and each row's keys and values at every step.
    """
    lengths = work.lengths()
    decode = sum(int(n) * config.flops_per_token(work.prompt + int(n) // 2) for n in lengths.flat)
    prefill = work.groups * work.prompt * config.flops_per_token(work.prompt // 2)
    size = sum(x.nbytes for x in jax.tree.leaves(weights))
    column = row_bytes(config, 0, 1, 1, weights.embed.dtype.itemsize)
    cache = sum(int(n) * (work.prompt + int(n) // 2) * column for n in lengths.flat)
    tokens = int(lengths.sum())
    return {
        "flops_per_s": round(flops), "bytes_per_s": round(bandwidth),
        "by_flops": round(tokens * flops / (decode + prefill), 1),
        "by_bandwidth": round(tokens * bandwidth / ((int(lengths.max()) + 1) * size + cache), 1),
    }  # fmt: skip


def flops_per_s(n: int = 4096) -> float:
    """The rate of a float32 product of two n x n matrices, the best of five."""
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    return 2 * n**3 / min(timed(lambda: product(x, x)) for _ in range(6))


def bytes_per_s(size: int = 1 << 28) -> float:
    """The rate at which an array of `size` bytes is read, the best of five."""
    x = jnp.ones((size // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    return size / min(timed(lambda: total(x)) for _ in range(6))


def peak_bytes() -> int:
    """The most memory held so far: of the first device where it tells, else of this process."""
    told = jax.devices()[0].memory_stats() or {}
    kib = 1 if sys.platform == "darwin" else 1024
    return told.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib


def generation(policy: Policy, work: Workload) -> Callable[[], Any]:
    """What generates the workload."""
    requests, longest = work.requests(policy.engine.config.vocab_size), int(work.lengths().max())
    return lambda: policy.generate(requests, SamplingParams(longest, stop_token_ids=()))


def rate(work: Workload, seconds: float) -> Json:
    """Of something else that generated the workload's tokens."""
    return {"seconds": round(seconds, 3), "tokens_per_s": round(int(work.lengths().sum()) / seconds, 1)}


def static(policy: Policy, work: Workload) -> Json:
    """The same sampler, but whole batches begin together and end with their last sample."""
    run = generation(dataclasses.replace(policy, engine=policy.engine.static_batching()), work)
    timed(run)
    return rate(work, timed(run))


def transformers(policy: Policy, work: Workload) -> Json:
    """transformers' generate with torch on the same weights and prompts. It has no caps for each sample: of a ragged
    workload it generates all to the longest, and what lies beyond a sample's own length does not count."""
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        hf.write(epath.Path(folder) / "model", policy.engine.config, policy.params, policy.tokenizer)
        theirs = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32).eval()
    prompts = torch.from_numpy(work.prompts(policy.engine.config.vocab_size))
    longest = int(work.lengths().max())
    start = time.perf_counter()
    with torch.no_grad():
        theirs.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, eos_token_id=None,
            max_new_tokens=longest, num_return_sequences=work.samples, pad_token_id=0,
        )  # fmt: skip
    return rate(work, time.perf_counter() - start)
