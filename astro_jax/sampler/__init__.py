"""The inference engine that generates text for search, traces, GRPO and evaluation.

    Request -> Scheduler -> prefill -> KVCache -> decode_step -> Completion

A reader of nano-vllm finds the same parts:

| module | contents |
|---|---|
| engine | `Engine`: checks requests, chooses a `CacheLayout`, runs one `GenerationLoop` a call |
| request, sampling_params | `Request`, `Completion`, `SamplingParams` |
| scheduler | `Sequence`, and `Scheduler` for continuous batching, on the host |
| generation_loop | `GenerationLoop` and its `LoopState`: schedule, prefill, decode, shrink |
| model_runner | `ModelRunner`: batches of fixed sizes for the programs |
| programs | the jitted `prefill`, `decode` (a loop of `decode_step`), copy and pack |
| kv_cache | `CacheLayout`, `KVCache`: shapes, shardings, bytes |
| attention | `attend(cache, q, k, v)`, an online softmax over the blocks of the cache |
| write_buffer | where new keys and values are written |
| prefix_cache | `PrefixCache`: prompts that are kept from one call to the next |
| sample | from logits to tokens |

Example: requests A and B with 2 completions each, prompts of 5 and 3 tokens, and C with 1 completion and a prompt of 5
tokens; `block_size=4`, `max_num_seqs=4`, `max_tokens=8`. The layout has B=4 rows in G=2 prefix groups of M=2 rows, and
each group has 2 prefix slots.

- prefill: tokens `[N=64, 4]`, the prompts of B and A without their last tokens, into prefix slots 0 and 2 of
  `prefix.k [L, prefix_blocks=1, num_prefixes=4, K, h, C=4]`.
- decode: tokens `[B=4]` at positions `2, 2, 4, 4`. Each step writes one column of
  `completion.k [L, completion_blocks=2, row_groups=4, 1, K, h, C=4]`, and samples one token of each row.
- row 1 ends after 2 steps. C is prefilled into the unused prefix slot 1 and starts in row 1. No key or value moves.

docs/sampler.md follows this example array by array.
"""

from astro_jax.sampler.engine import Engine
from astro_jax.sampler.prefix_cache import PrefixCache
from astro_jax.sampler.request import Completion, Request, RequestError
from astro_jax.sampler.sampling_params import SamplingParams
from astro_jax.sampler.stats import EngineStats

__all__ = ["Completion", "Engine", "EngineStats", "PrefixCache", "Request", "RequestError", "SamplingParams"]
