"""The sections of a run's configuration. Each key has a type, a default, a description and the default's source.

The section `problems` stands in config/problems.py, `grpo` in config/grpo.py.

A source is a section of the ASTRO paper ("paper, section 2.2"), another paper, or "ours". "Recalled" marks a value of
the paper that was not checked against its text.
"""

from __future__ import annotations

import functools
import typing
from typing import Annotated, Any, Literal, Self

import pydantic

from astro_jax.config.grpo import Grpo
from astro_jax.config.keys import Effect, Section, key, key_names
from astro_jax.config.problems import Problems
from astro_jax.config.training import Training
from astro_jax.stages import DEFAULT_STAGES


class Mesh(Section):
    """The device mesh: devices along each axis. On a CPU, JAX makes as many virtual devices."""

    data: int = key(1, "Devices over which the batch is split; each holds all parameters.", ge=1, effect="rounding")
    fsdp: int = key(
        1, "Devices over which the batch, the parameters and the optimizer state are split.", ge=1, effect="rounding"
    )
    tp: int = key(
        1, "Devices over which heads and feed-forward columns are split (tensor parallelism).", ge=1, effect="rounding"
    )

    @property
    def num_devices(self) -> int:
        return self.data * self.fsdp * self.tp


class Architecture(Section):
    """The shape of a Llama that is trained from scratch (`model: scratch`)."""

    d_model: int = key(128, "Model width D.")
    d_ff: int = key(320, "Feed-forward width F.")
    n_layers: int = key(4, "Layers L.")
    n_heads: int = key(4, "Query heads H.")
    n_kv_heads: int = key(2, "Key-value heads K.")
    max_positions: int = key(512, "Longest sequence, in tokens.")


class Chat(Section):
    """The chat format in which the model reads a problem."""

    template: bool = key(False, "Use the tokenizer's chat template. Without it the model reads the bare problem.")
    system: str | None = key(None, "System prompt. Null: the system prompt of the template.")


class Corpus(Section):
    """The Countdown corpus that `model: scratch` is trained on, and `base_sft` where the problems are Countdown's."""

    documents: int = key(600_000, "Documents.", ge=1)
    solved: float = key(0.3, "Share of solutions. The remaining attempts are random.", ge=0, le=1)
    drills: float = key(0.1, "Share of documents that are one sum each.", ge=0, le=1)
    recall: float = key(0.1, "Share of documents that repeat an earlier state after other lines.", ge=0, le=1)


_Line = Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\n]*$")]
Quantization = Literal["int8"] | None


class Judge(Section):
    """A model that judges the answers of search and RL by the prompt `evaluate`, for tasks that no rule can decide."""

    model: str = key(
        ..., "The judge: a checkpoint, a Hugging Face folder, a `.gguf` file, or `org/name` on the hub.", "required"
    )
    num_samples: int = key(8, "Judgements N of each answer.", "paper, appendix A.1", ge=1)
    pass_share: float = key(
        1.0, "Share of the judgements that must approve. 1: unanimous.", "paper, appendix A.1", gt=0, le=1
    )
    max_tokens: int = key(256, "Most tokens of a judgement.", ge=1)


class Verify(Section):
    """The verifier of mathematics. The paper says only that the reward comes from a verifier."""

    judge: Judge | None = key(
        None, "A model that judges the answers of search and RL in the place of the exact verifier. Null: none."
    )
    verdicts: tuple[_Line, _Line] = key(
        ("Verdict: correct", "Verdict: incorrect"),
        "Last lines of a judgement that approve and reject, as `prompts.evaluate` asks for them. Either ends it.",
    )
    reward_rule: Literal["strict", "lenient"] = key("strict", "Rule by which search and RL judge answers.")
    report_rule: Literal["strict", "lenient", "math500"] = key(
        "lenient", "Rule by which evaluation judges answers. `math500`: as published figures of MATH-500 are judged."
    )
    timeout_seconds: float = key(5.0, "Deadline of one answer, in seconds.", gt=0)
    memory_gib: float = key(1.0, "Memory limit of one answer, in GiB.", gt=0)
    num_workers: int = key(0, "Worker processes. 0: one a core.", ge=0, effect="none")
    max_failed_share: float = key(
        0.95,
        "Share of answers without a verdict (unparsed, timeout or error) above which a run stops.",
        gt=0,
        le=1,
        effect="none",
    )

    @pydantic.model_validator(mode="after")
    def _verdicts_differ(self) -> Self:
        approve, reject = self.verdicts
        # A judgement ends at the first verdict in it, so that a verdict within the other one would hide it.
        if approve == reject or approve in reject[:-1] or reject in approve[:-1]:
            raise ValueError("verdicts: two different lines, neither within the other one but at its end")
        return self


class Sampler(Section):
    """The inference engine of search, traces, RL and evaluation."""

    max_num_seqs: int = key(512, "Most sequences that decode at the same time.", ge=1, effect="rounding")
    kv_cache_gib: float | None = key(
        None,
        "Memory of the KV cache, in GiB a device: lowers `max_num_seqs` until the cache fits. Null: no limit.",
        gt=0,
        effect="rounding",
    )
    num_scheduler_steps: int = key(16, "Most decode steps between two calls of the scheduler.", ge=1, effect="rounding")
    block_size: int = key(
        32, "Cache columns that one attention block covers. 32 suits a CPU, 512 a TPU.", ge=1, effect="rounding"
    )
    dtype: Literal["float32", "bfloat16"] = key("float32", "Data type of the weights in search and evaluation.")
    quantization: Quantization = key(
        None,
        "int8: round the weights to int8, with a scale for each output channel. They compute in `dtype`. Null: no.",
    )
    kv_cache_dtype: Quantization = key(
        None, "int8: round keys and values to int8, with a scale for each token and head. Null: no."
    )
    prefix_cache_gib: float = key(
        0.0,
        "Memory of the prefix cache, in GiB a device: prefixes that the search keeps between calls. 0: none.",
        ge=0,
        effect="rounding",
    )

    def unquantized(self) -> Sampler:
        """The settings without int8 weights and without an int8 cache."""
        return self.model_copy(update={"quantization": None, "kv_cache_dtype": None})


class EarlyStop(Section):
    """The terminals with which a tree is complete before its last simulation."""

    correct: int = key(1, "Correct terminals.", ge=0)
    wrong: int = key(2, "Different wrong answers. The paper's traces use up to 2.", ge=0)
    hopeless: int | None = key(None, "Rollouts after which a tree without a right answer ends. Null: no limit.", ge=1)
    trivial: int | None = key(None, "Rollouts after which a tree without a wrong answer ends. Null: no limit.", ge=1)


class Search(Section):
    """The search for training data: MCTS with PUCT (paper, sections 2.1 and 2.2), or a cheaper method of ours."""

    num_proposals: int = key(8, "Next steps k that an expansion samples.", "paper, section 2.2", ge=1)
    num_rollouts: int = key(16, "Rollouts M that evaluate a new node (Eq. 2).", "paper, section 2.2", ge=1)
    num_simulations: int = key(32, "Simulations of a tree.", "paper, section 2.2", ge=1)
    max_depth: int = key(50, "Most steps from the root to a node.", "paper, section 2.2", ge=1)
    c_puct: float = key(1.0, "Weight of the prior in PUCT.", "ours; the paper gives no value", ge=0)
    prior: Literal["total", "mean"] = key(
        "total", "Prior of a step: its probability (`total`), or the geometric mean over its tokens (`mean`)."
    )
    num_parallel_leaves: int = key(
        1, "Leaves of one tree that a simulation expands, by virtual loss. 1: exact PUCT.", ge=1
    )
    temperature: float = key(1.0, "Sampling temperature of steps and rollouts.", gt=0)
    max_concurrent_trees: int = key(128, "Trees that are searched at the same time.", ge=1, effect="rounding")
    shard_size: int = key(128, "Trees of one file of the tree store.", ge=1, effect="none")
    step_end: str = key(".\n", "Text that ends a step.")
    max_step_tokens: int = key(32, "Most tokens of a step.", ge=1)
    max_rollout_tokens: int = key(64, "Most tokens of a rollout, or of a best-of-N solution.", ge=1)
    keep_rollouts: bool = key(False, "Add the steps of finished rollouts to the tree, as nodes without visits.")
    rollout_rounds: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = key(
        (),
        "Rollouts of a new node in each round: after a round, trees that have enough end, and half of the nodes go on. "
        "Empty: `num_rollouts` at once.",
    )
    lines_per_step: int = key(
        1, "Ends of lines (`step_end`) in a step of a rollout. Above 1 only without proposals, so not for mcts.", ge=1
    )
    early_stop: EarlyStop | None = key(
        None, "End a tree as soon as it has enough terminals. Null: run all simulations.", "paper, section 2.2"
    )
    max_tree_tokens: int | None = key(
        None, "Token budget of a tree: no simulation starts after it is spent. Null: no limit.", ge=1
    )
    max_total_tokens: int | None = key(
        None, "Token budget of the stage, split evenly over the trees. Null: no limit.", ge=1
    )
    num_samples: int = key(32, "Solutions N of a problem, with `method: best-of-n`.", ge=1)
    rounds: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = key(
        (8, 8, 16, 16), "Rollouts of a tree in each round, with `method: rounds`.", min_length=1
    )
    focus: Literal["uncertain", "root"] = key(
        "uncertain", "Where later rounds sample, with `method: rounds`: half at uncertain nodes, or all at the root."
    )
    method: Literal["mcts", "best-of-n", "rounds"] = key(
        "mcts", "Tree search, a tree of N independent solutions with merged beginnings, or of rounds of rollouts.",
        "paper, section 2.2",
    )  # fmt: skip

    @pydantic.field_validator("method")
    @classmethod
    def _used_keys(cls, method: str, info: pydantic.ValidationInfo) -> str:
        """Refuse switches that the method does not have: only mcts evaluates nodes by rollouts, and best-of-N ends no
        tree early. Numbers of another method have no effect."""
        unused = {"mcts": (), "rounds": ("keep_rollouts", "rollout_rounds")}.get(
            method, ("keep_rollouts", "rollout_rounds", "early_stop", "max_tree_tokens", "max_total_tokens")
        )
        if names := [name for name in unused if info.data.get(name)]:
            raise ValueError(f"{', '.join(names)}: not with search.method={method}; leave out")
        return method

    @pydantic.model_validator(mode="after")
    def _one_line_per_proposal(self) -> Search:
        if self.method == "mcts" and self.lines_per_step > 1:
            raise ValueError("lines_per_step: mcts proposes one line at a time; leave out, or set search.method=rounds")
        return self


class Traces(Section):
    """Linearization (Algorithm 1) and procedure cloning (paper, sections 2.3 and 2.4)."""

    direct_examples: int = key(1, "Direct solutions (k = 0) of a problem.", "paper, section 2.3", ge=0)
    search_examples: int = key(3, "Search solutions (k >= 1) of a problem.", "paper, section 2.3", ge=0)
    max_examples: int | None = key(None, "Most traces of all problems together, chosen at random. Null: all.", ge=1)
    max_backtracks: int = key(2, "Largest number of backtracks k.", "paper, section 2.3", ge=1)
    backtrack_weights: tuple[Annotated[float, pydantic.Field(ge=0)], ...] = key(
        (), "Weights of k = 1, 2, ..., one for each k up to `max_backtracks`. Empty: equal weights."
    )
    merge_at: Literal["ancestor", "root", "random"] = key(
        "ancestor", "Node at which the next branch begins: the common ancestor, the root, or any node of its path.",
        "paper, section 2.3",
    )  # fmt: skip
    leave_at: Literal["terminal", "inside"] = key(
        "terminal", "Node at which a wrong branch ends: its terminal, or a node before.", "paper, section 2.3"
    )
    self_evaluation: int = key(
        0, "Judgements N of each correct terminal by the model. 0: no filter.",
        "ours, since Countdown's verifier is exact; the paper has 8 (appendix A.1)", ge=0,
    )  # fmt: skip
    self_evaluation_pass: float = key(
        1.0, "Share of the judgements that must approve. 1: unanimous.", "paper, appendix A.1", gt=0, le=1
    )
    self_evaluation_tokens: int = key(256, "Most tokens of a judgement.", ge=1)
    clone: Literal["template", "model"] = key(
        "template", "Writer of the steps and the backtracks.", "ours; the paper has `model` (section 2.4)"
    )
    clone_retries: int = key(2, "Further attempts after a rejected segment.", ge=0)
    clone_tokens: int = key(128, "Most tokens of a segment, or twice the template's segment if that is more.", ge=1)
    clone_temperature: float = key(0.7, "Sampling temperature of segments.", gt=0)
    phrases: Literal["fixed", "model", "none"] = key(
        "fixed", "Self-reflection: the fixed phrases, the model's own words, or none.", "paper, section 2.4"
    )
    min_value_reflect: float | None = key(
        None, "Value Q from which a node before the end gets the positive reflection. Null: none gets it.",
        "ours; the paper says a high Q (section 2.4)",
    )  # fmt: skip
    reflect_confidence: float | None = key(
        None, "Compare `min_value_reflect` with the lower bound of Q at this confidence. Null: with Q.", ge=0.5, lt=1
    )
    max_reflect_rate: float = key(
        1.0, "Largest share of a trace's nodes before the end that get the positive reflection.", ge=0, le=1
    )
    direct: Literal["trees", "best-of-n"] = key(
        "trees", "Source of the Direct control's solutions: the trees, or independent samples.", "paper, section 3.1"
    )
    direct_samples: int = key(8, "Samples N of a problem, with `direct: best-of-n`.", ge=1)
    direct_tokens: int = key(256, "Most tokens of a sample, with `direct: best-of-n`.", ge=1)
    direct_match: Literal["examples", "tokens"] = key(
        "examples", "Size of the Direct set: as many examples, or as many tokens, as ASTRO's.", "paper, section 3.1"
    )
    shard_size: int = key(32, "Trees of one file of model-written traces.", ge=1, effect="none")
    replay: float = key(0.0, "Countdown corpus documents that SFT adds, as a share of the examples.", ge=0)


class Lora(Section):
    """LoRA: low-rank adapters beside frozen weights (arXiv 2106.09685)."""

    rank: int = key(16, "Rank r of the adapters.", ge=1)
    alpha: float = key(32.0, "Adapters are scaled by alpha / rank.", gt=0)
    target_modules: tuple[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...
    ] = key(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "Linear layers that get an adapter, by the names of Hugging Face.", min_length=1,
    )  # fmt: skip

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Sft(Training):
    """Supervised fine-tuning (paper, section 3.1 and appendix B.2)."""

    num_train_epochs: float = key(
        1.0, "Times that each example is seen. 2.5: all twice, and half of them a third time.", "paper, section 3.1",
        gt=0,
    )  # fmt: skip
    learning_rate: float = key(3e-6, "Peak learning rate.", "paper, appendix B.2", gt=0)
    min_lr_rate: float = key(
        0.0, "Last learning rate of the cosine schedule, as a share of the peak.", "paper, appendix B.2", ge=0, le=1
    )
    weight_decay: float = key(0.1, "Weight decay of AdamW, on matrices only.", ge=0)
    batch_size: int = key(32, "Packed rows of a step.", ge=1)
    max_length: int = key(8192, "Tokens of a packed row.", "paper, appendix B.2", ge=8)
    overlong: Literal["drop", "truncate", "error"] = key(
        "drop", "Examples of more than `max_length` tokens: leave out, cut, or refuse. `wrapped` packing has none.",
        "ours; a cut example teaches neither the answer nor the end",
    )  # fmt: skip
    packing_strategy: Literal["first-fit", "bfd", "wrapped"] = key(
        "first-fit",
        "Packing: whole documents that cannot see each other, in random order or (bfd: best-fit decreasing) with the "
        "least padding; or one stream that is split into rows.",
    )
    loss_on: Literal["all", "completion", "correct-steps"] = key(
        "all",
        "Tokens that the loss counts: all, the completion, or the completion without the steps of wrong attempts.",
        "paper, appendix B.2",
    )
    micro_batch_size: int | None = key(
        None,
        "Packed rows of one gradient computation. Gradients are summed over a batch, by tokens. Null: `batch_size`.",
        effect="rounding",
        ge=1,
    )
    lora: Lora | None = key(
        None, "Train low-rank adapters in place of all weights, and merge them into the model at the end. Null: all."
    )
    metric_for_best_model: Literal["eval_loss"] | None = key(
        None, "Metric of the held-out prompts by which the best checkpoint is kept beside the last ones. Null: none."
    )
    save_steps: int = key(200, "Steps between checkpoints.", ge=1, effect="none")

    @property
    def gradient_rows(self) -> int:
        """Rows of one gradient computation."""
        return self.micro_batch_size or self.batch_size

    @property
    def num_micro_batches(self) -> int:
        """Gradient computations of a step."""
        return self.batch_size // self.gradient_rows

    @pydantic.model_validator(mode="after")
    def _is_consistent(self) -> Sft:
        if self.packing_strategy == "wrapped" and self.loss_on != "all":
            raise ValueError("loss_on: wrapped packing joins prompts and completions; set packing_strategy=bfd")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size: {self.micro_batch_size} does not divide batch_size={self.batch_size}; set a divisor"
            )
        return self


class Eval(Section):
    """Evaluation on held-out problems, and on suites."""

    max_tokens: int = key(256, "Most tokens of an answer.", ge=1)
    shard_size: int = key(
        512, "Problems of one file of answers; of a suite: answers, those of a problem together.", ge=1, effect="none"
    )
    suites: tuple[str, ...] = key(
        (),
        "Suites, on which each model is measured too: `math500`, `amc2023`, `aime2024`, `aime2025`, `aime2026`, "
        "`gsm8k`, `math-test`, `countdown`, `gym:TASK`, a file, or a data set of the hub.",
        "ours; the paper has MATH-500, AMC 2023 and AIME 2024 (section 4)",
    )
    num_samples: int = key(16, "Answers n to each problem of a suite.", ge=1)
    limit: int | None = key(None, "Only the first problems of each suite. Null: all.", ge=1)
    temperature: float = key(1.0, "Sampling temperature of the answers to suites. 0: greedy.", ge=0)
    min_backtracks: int = key(
        0, "Answers to suites that would end with fewer backtracks are made to start again. 0: they end.", ge=0
    )
    prompt: str = key(
        "{problem}", "Text that a problem of mathematics in a suite is put into, in the place of `{problem}`."
    )
    token_limits: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = key(
        (), "Smaller limits of tokens: the same answers to suites, cut there, are judged for each of them too."
    )

    @pydantic.field_validator("prompt")
    @classmethod
    def _names_the_problem(cls, value: str) -> str:
        if "{problem}" not in value:
            raise ValueError("must hold {problem}, the place of the problem")
        return value


class Config(Section):
    """One run."""

    seed: int = key(0, "Seed of all random draws.", ge=0)
    out: str = key("runs/default", "Folder of the run: a path, or `gs://BUCKET/...`.", effect="none")
    from_runs: tuple[str, ...] = key(
        (), "Other runs, whose stages with the same inputs this run keeps instead of making them again.",
        effect="none", alias="from",
    )  # fmt: skip
    scale: float = key(1.0, "Factor of the budgets: problems, corpus documents and RL steps.", gt=0, effect="none")
    model: str = key(
        "countdown-base", "Base model: a Hugging Face folder, a `.gguf` file, a shipped model, or `scratch`.",
        "ours; the paper has Llama-3.1-70B-Instruct (section 3.1)",
    )  # fmt: skip
    stages: tuple[str, ...] = key(
        DEFAULT_STAGES, "Stages of the run, in order.", "paper, sections 2 and 3", effect="none"
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = key(
        "auto", "Attention of whole sequences. `auto`: splash attention on TPUs, cuDNN's on GPUs, XLA elsewhere.",
        effect="rounding",
    )  # fmt: skip
    prompts: dict[str, str] = key({}, "Files that replace the shipped prompts, by name, as in `{rewrite: mine.txt}`.")
    mesh: Mesh = key(Mesh(), "Device mesh.")
    architecture: Architecture = key(Architecture(), "Shape of a model that is trained from scratch.")
    chat: Chat = key(Chat(), "Chat format of the problems.")
    problems: Problems = key(Problems(), "Source and number of the problems.")
    corpus: Corpus = key(Corpus(), "Countdown corpus of `model: scratch`, and of `base_sft`.")
    examples: str = key(
        "", "File of examples of the stage `sft`: JSONL or Parquet, with `messages`, or `prompt` and `response`."
    )
    trees: str = key("", "Folder of search trees that the stage `traces` reads in place of the run's own.")
    verify: Verify = key(Verify(), "Verifier of mathematics.")
    sampler: Sampler = key(Sampler(), "Inference engine.")
    search: Search = key(Search(), "Tree search.")
    traces: Traces = key(Traces(), "From trees to training examples.")
    sft: Sft = key(Sft(), "Supervised fine-tuning on traces.")
    pretrain: Sft = key(Sft(), "Training of `model: scratch` on the corpus. Keys as in `sft`.")
    base_sft: Sft | None = key(
        None,
        "SFT of a base model that is too weak to be searched: on worked solutions, or for Countdown on its corpus. "
        "Null: none. Keys as in `sft`.",
    )
    grpo: Grpo = key(Grpo(), "Reinforcement learning.")
    eval: Eval = key(Eval(), "Evaluation.")

    @pydantic.model_validator(mode="after")
    def _rollouts_have_a_quantization(self) -> Config:
        if self.grpo.quantized_rollouts and self.sampler == self.sampler.unquantized():
            raise ValueError(
                "grpo.quantized_rollouts: nothing is rounded; set sampler.quantization or sampler.kv_cache_dtype"
            )
        return self

    @property
    def rollout_sampler(self) -> Sampler:
        """The settings of the sampler in RL: without int8, unless `grpo.quantized_rollouts` asks for int8."""
        return self.sampler if self.grpo.quantized_rollouts else self.sampler.unquantized()

    @pydantic.field_validator("from_runs", mode="before")
    @classmethod
    def _as_runs(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@functools.cache
def sections() -> dict[str, type[Section]]:
    """Return all sections by dotted name: "" for the config itself, "search", "search.early_stop", "problems.gym"."""
    by_name: dict[str, type[Section]] = {}

    def visit(name: str, section: type[Section]) -> None:
        by_name[name] = section
        for field, info in section.model_fields.items():
            for part in _types(info.annotation):
                if isinstance(part, type) and issubclass(part, Section):
                    visit(f"{name}.{field}".lstrip("."), part)

    visit("", Config)
    return by_name


def _types(annotation: Any) -> list[Any]:
    """Return a type and the types inside: `tuple[Gym, ...] | None` holds Gym."""
    return [annotation, *(part for inner in typing.get_args(annotation) for part in _types(inner))]


def flatten(section: Section, prefix: str = "") -> dict[str, Any]:
    """Return all keys of a section by dotted name, with JSON values: {"search.num_rollouts": 16, ...}."""
    values = section.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for name, info in key_names(type(section)).items():
        part = None if info.alias else vars(section)[name]
        flat |= flatten(part, f"{prefix}{name}.") if isinstance(part, Section) else {prefix + name: values[name]}
    return flat


@functools.cache
def effect(key: str) -> Effect:
    """What a change of a key does, by its dotted name: "none" for a key of another version, which this one lacks."""
    section, _, name = key.rpartition(".")
    info = key_names(sections()[section]).get(name) if section in sections() else None
    if info is None:
        return "none"
    assert isinstance(info.json_schema_extra, dict)
    return info.json_schema_extra["effect"]  # type: ignore[return-value]
