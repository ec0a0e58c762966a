"""Benchmark a step of GRPO: completion tokens a second, and their share of the limits of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from astro_jax import config as cfg
from astro_jax.bench import sampler, sft
from astro_jax.bench.sampler import bytes_per_s, flops_per_s, peak_bytes, timed, torch_model
from astro_jax.errors import AstroError
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.mesh import decode_sharding, make_mesh, train_sharding
from astro_jax.sampler import Engine
from astro_jax.storage import Json
from astro_jax.train.grpo import GRPOTrainer
from astro_jax.train.rewards import Group, Judgement, JudgementStream, Rewarder
from astro_jax.train.state import make_optimizer
from astro_jax.types import Problem, Verdict
from astro_jax.verify import Verifier


@dataclasses.dataclass(frozen=True)
class Workload:
    """Some steps on G prompts of random tokens. All completions have T tokens, and an advantage.

    Attributes:
      prompts: G, prompts of a step.
      samples: M, completions of a prompt.
      prompt: tokens of a prompt.
      new: T, tokens of a completion.
      steps: measured steps. The first step, which compiles, comes before them.
      micro_batch: rows of one gradient computation. 8 keep a CPU's memory small; an accelerator wants more.
      seed: of the prompts.

    Raises:
      AstroError: for a size below 1, or less than two completions of a prompt.
    """

    prompts: int = 8
    samples: int = 8
    prompt: int = 32
    new: int = 64
    steps: int = 3
    micro_batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.prompts, self.prompt, self.new, self.steps, self.micro_batch) < 1 or self.samples < 2:
            raise AstroError(
                "bench: --prompts, --prompt, --new, --steps and --micro-batch are at least 1, --samples at least 2 (a "
                "group)"
            )
        if self.prompt + self.new < 8:
            raise AstroError("bench: --prompt and --new are at least 8 together")

    @property
    def tokens(self) -> int:
        """Completion tokens of a step."""
        return self.prompts * self.samples * self.new

    @property
    def sampling(self) -> sampler.Workload:
        """What the sampler does in a step."""
        return sampler.Workload(self.prompts, self.samples, self.prompt, self.new, seed=self.seed)

    @property
    def update(self) -> sft.Workload:
        """What the gradient covers in a step: one completion with its prompt a row."""
        return sft.Workload(self.prompts * self.samples, self.prompt + self.new)


def measure(
    config: LlamaConfig, weights: Params, tokenizer: Tokenizer, work: Workload, compare: str | None = None
) -> Json:
    """Take some steps of GRPO in float32: copy of the parameters, sampling, rewards without cost, and one update.

    Args:
      config: the model.
      weights: float32, of the model.
      tokenizer: of the model, for the comparison.
      work: the workload.
      compare: "trl": also measure TRL's GRPOTrainer on the same weights, with completions of as many tokens.

    Returns:
      workload; seconds: the median of the measured steps; tokens_per_s: completion tokens; parts: the medians of the
      parts of a step, in seconds; limits (see `limit`); share_of_limit; first_s: seconds of the first step; peak_bytes;
      and under "trl" its seconds and tokens_per_s, with `ratio`, the speed of this package over that of TRL.
    """
    run = training(config, weights, work)
    first, steps = timed(run), [run() for _ in range(work.steps)]
    median = {name: round(statistics.median(step[name] for step in steps), 4) for name in steps[0]}
    seconds = median.pop("seconds")
    limits = limit(config, weights, work, flops_per_s(), bytes_per_s())
    result: Json = {
        "workload": dataclasses.asdict(work), "seconds": seconds, "tokens_per_s": round(work.tokens / seconds, 1),
        "parts": median, "limits": limits, "share_of_limit": round(work.tokens / seconds / limits["tokens_per_s"], 3),
        "first_s": round(first, 1), "peak_bytes": peak_bytes(),
    }  # fmt: skip
    if compare:
        other = trl(config, weights, tokenizer, work)
        result[compare] = other | {"ratio": round(result["tokens_per_s"] / other["tokens_per_s"], 2)}
    return result


def limit(config: LlamaConfig, weights: Params, work: Workload, flops: float, bandwidth: float) -> Json:
    """Compute the completion tokens a second that the machine allows if nothing else costs time.

    A step samples (`sampler.limit`), then computes the gradient on prompts and completions and updates the parameters
    (`sft.limit`). Each part takes the longer of its times by FLOPs and by bytes.

    Args:
      config: the model.
      weights: of the model; only their size counts.
      work: the workload.
      flops: measured FLOP/s of the machine.
      bandwidth: measured bytes/s of the machine.

    Returns:
      flops_per_s and bytes_per_s of the machine; sampling_s and update_s, the seconds of both parts; tokens_per_s.
    """
    rates = sampler.limit(config, weights, work.sampling, flops, bandwidth)
    sampling = work.tokens / min(rates["by_flops"], rates["by_bandwidth"])
    rates = sft.limit(config, work.update, flops, bandwidth)
    update = work.update.rows * work.update.length / min(rates["by_flops"], rates["by_bandwidth"])
    return {
        "flops_per_s": round(flops), "bytes_per_s": round(bandwidth), "sampling_s": round(sampling, 6),
        "update_s": round(update, 6), "tokens_per_s": round(work.tokens / (sampling + update), 1),
    }  # fmt: skip


def training(config: LlamaConfig, weights: Params, work: Workload) -> Callable[[], Json]:
    """Make a function that takes one step and returns its `seconds`, and those of its parts by name."""
    c, mesh = _settings(work), make_mesh()
    sharding, tx = train_sharding(mesh), make_optimizer(c, c.max_steps)
    engine = Engine(config, decode_sharding(mesh), work.seed, max_num_seqs=min(work.prompts * work.samples, 512))
    prompts = work.sampling.prompts(config.vocab_size)
    problems = [Problem(str(i), str(i), "") for i in range(work.prompts)]
    tokens: Any = _Prompts(prompts.tolist())
    trainer = GRPOTrainer(c, "bench", problems, engine, tokens, _AlternatingRewards(), tx, config, sharding)
    states = [sft.first_state(config, weights, tx, sharding)]

    def run() -> Json:
        start = time.perf_counter()
        state, metrics = trainer.step(states.pop(), 0)
        states.append(jax.block_until_ready(state))
        seconds = time.perf_counter() - start
        assert metrics["tokens"] == work.tokens
        parts = {k.removeprefix("seconds_"): v for k, v in metrics.items() if k.startswith("seconds_")}
        return {"seconds": seconds} | parts

    return run


def _settings(work: Workload) -> cfg.Grpo:
    return cfg.Grpo(
        prompts_per_step=work.prompts, num_generations=work.samples, max_completion_length=work.new,
        max_length=work.prompt + work.new, micro_batch_size=work.micro_batch,
    )  # fmt: skip


class _Prompts:
    """Stands for a tokenizer: prompt i has given tokens, and no token ends a completion."""

    stop_token_ids: tuple[int, ...] = ()

    def __init__(self, prompts: list[list[int]]):
        self._prompts = prompts

    def prompt(self, text: str) -> list[int]:
        return self._prompts[int(text)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return ""


class _AlternatingRewards(Rewarder):
    """Finds every other completion of a group correct, so that each has an advantage."""

    def __init__(self) -> None:
        super().__init__(Verifier())

    def judge(
        self, step: int, groups: Sequence[Group], batch: int = 0, stream: JudgementStream | None = None
    ) -> list[list[Judgement]]:
        pair = [Judgement(Verdict(correct, True, None, 0), 2.0 * correct - 1) for correct in (True, False)]
        return [[pair[j % 2] for j in range(len(group))] for group in groups]


def trl(config: LlamaConfig, weights: Params, tokenizer: Tokenizer, work: Workload) -> Json:
    """Measure TRL's GRPOTrainer with torch's fused AdamW on the same weights, without KL, in one gradient computation.

    Its prompts are texts of about as many tokens, and its completions have exactly as many.

    Returns:
      seconds: the median of the measured steps; tokens_per_s: completion tokens.
    """
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig
    from trl import GRPOTrainer as Peer

    class Clock(TrainerCallback):
        """The seconds of each step."""

        def __init__(self) -> None:
            self.start, self.seconds = 0.0, list[float]()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    c, clock = _settings(work), Clock()
    texts = [tokenizer.decode(row) for row in work.sampling.prompts(config.vocab_size).tolist()]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=work.prompts * work.samples, num_generations=work.samples,
            max_completion_length=work.new, generation_kwargs={"min_new_tokens": work.new}, max_steps=work.steps + 1,
            learning_rate=c.learning_rate, adam_beta1=c.betas[0], adam_beta2=c.betas[1], optim="adamw_torch_fused",
            beta=0.0, loss_type="dapo", gradient_checkpointing=False, bf16=False, use_cpu=not torch.cuda.is_available(),
            report_to=[], logging_strategy="no", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        peer = Peer(
            torch_model(config, weights, tokenizer),
            lambda completions, **_: [1.0 - 2.0 * (j % 2) for j in range(len(completions))],
            settings,
            Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=tokenizer.hf,
            callbacks=[clock],
        )
        peer.train()
    seconds = statistics.median(clock.seconds[1:])
    return {"seconds": round(seconds, 4), "tokens_per_s": round(work.tokens / seconds, 1)}
