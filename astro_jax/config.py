"""A run's typed configuration: a YAML file and dotted overrides. Unknown keys are errors.

Each default names its source: "paper" (with its section; the facts are in the README's reference) or "ours".
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
import yaml
from etils import epath

from astro_jax.errors import AstroError


class Section(pydantic.BaseModel):
    """Base of all sections: immutable, and strict about names."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Mesh(Section):
    """Devices along each axis (astro_jax.mesh). On a CPU, as many virtual devices are made."""

    data: int = pydantic.Field(1, ge=1)
    fsdp: int = pydantic.Field(1, ge=1)
    tp: int = pydantic.Field(1, ge=1)


class Architecture(Section):
    """A Llama trained from scratch (ours: the shape of the toy base)."""

    d_model: int = 128
    d_ff: int = 320
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    max_positions: int = 512


class Chat(Section):
    """How a problem is put to the model."""

    template: bool = False  # through the tokenizer's chat template; else as it stands
    system: str | None = None  # the system prompt; none: the template's own


class Gym(Section):
    """Problems of one reasoning-gym task."""

    task: str
    size: int = pydantic.Field(2048, ge=1)  # problems that are generated, before the split
    params: dict[str, Any] = pydantic.Field(default_factory=dict)


class Problems(Section):
    """Where problems come from, and how many each stage draws: a file, a data set, reasoning-gym tasks, or Countdown
    by these rules (problems.countdown.Game)."""

    path: str = ""  # a JSONL file with the fields problem and answer
    dataset: str = ""  # of the Hugging Face hub, or a folder of its files (problems.hub)
    subset: str | None = None
    split: str = "train"
    filters: dict[str, list[Any]] = pydantic.Field(default_factory=dict)  # allowed values of a data set's columns
    fields: dict[Literal["problem", "answer", "solution"], str] | None = None  # their names there
    task: Literal["number", "math"] | None = (
        None  # how answers are judged; none: numbers, or what a data set is known for
    )
    gym: tuple[Gym, ...] = ()  # tasks of reasoning-gym; one may stand without a list
    decontaminate: tuple[str, ...] = ()  # evaluation sets, beside the problems held out: JSONL files or data sets
    overlap_threshold: float = pydantic.Field(
        0.7, gt=0, le=1
    )  # overlap of n-grams from which two problems are one (ours)
    difficulty_samples: int = pydantic.Field(
        0, ge=0
    )  # answers to each prompt for RL that measure its difficulty; 0: not measured
    rl_pass_rate: tuple[float, float] = (0.01, 0.75)  # of prompts for RL (paper, section 3.2)
    count: int = 3
    max_number: int = 25
    max_value: int = 75
    ops: str = "+-*"
    held_out: float = pydantic.Field(0.2, gt=0, lt=1)  # share that only evaluation sees
    search: int = pydantic.Field(1024, ge=1)  # problems to search (the paper: 20.7K)
    rl: int = pydantic.Field(4096, ge=1)  # prompts for RL (the paper: 8.7K)
    eval: int = pydantic.Field(1024, ge=1)  # held-out problems

    @pydantic.field_validator("gym", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Problems:
        if sum(map(bool, (self.path, self.dataset, self.gym))) > 1:
            raise ValueError("set one of path, dataset and gym")
        low, high = self.rl_pass_rate
        if not 0 <= low <= high <= 1:
            raise ValueError("rl_pass_rate is [low, high] within 0 and 1")
        return self


class Corpus(Section):
    """What a base model is trained on from scratch (ours)."""

    documents: int = pydantic.Field(600_000, ge=1)
    solved: float = pydantic.Field(0.3, ge=0, le=1)  # share of solutions; the rest are random attempts
    drills: float = pydantic.Field(0.1, ge=0, le=1)  # share of single sums
    recall: float = pydantic.Field(0.1, ge=0, le=1)  # share that says states again after other lines


class Verify(Section):
    """How answers of mathematics are judged (verify.math); ours, the paper gives no more than a verifier."""

    reward_rule: Literal["strict", "lenient"] = "strict"  # by which search and RL score
    report_rule: Literal["strict", "lenient"] = "lenient"  # by which evaluation does
    timeout_seconds: float = pydantic.Field(5.0, gt=0)  # the deadline of one answer
    memory_gib: float = pydantic.Field(1.0, gt=0)  # GiB that one answer may take
    num_workers: int = pydantic.Field(0, ge=0)  # processes; 0: one a core
    max_failed_share: float = pydantic.Field(0.95, gt=0, le=1)  # share without a verdict at which a run stops


class Sampler(Section):
    """The one engine that generates text."""

    max_num_seqs: int = pydantic.Field(512, ge=1)  # rows that decode at once
    kv_cache_gib: float | None = pydantic.Field(None, gt=0)  # GiB a device for their caches: as many rows as fit
    num_scheduler_steps: int = pydantic.Field(
        16, ge=1
    )  # the most decode steps between two looks at which rows have ended
    block_size: int = pydantic.Field(32, ge=1)  # columns of the caches that are attended to at once (a TPU: 512)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights that search and evaluation sample from
    prefix_cache_gib: float = pydantic.Field(
        0.0, ge=0
    )  # GiB a device for prefixes that the search keeps from call to call


class EarlyStop(Section):
    """When a tree may stop early (ours)."""

    correct: int = pydantic.Field(1, ge=0)  # correct terminals
    wrong: int = pydantic.Field(2, ge=0)  # different wrong answers; the paper's traces need up to 2


class Search(Section):
    """PUCT Monte Carlo tree search (paper, sections 2.1 and 2.2)."""

    num_proposals: int = pydantic.Field(8, ge=1)  # k, paper
    num_rollouts: int = pydantic.Field(16, ge=1)  # M, paper
    num_simulations: int = pydantic.Field(32, ge=1)  # paper
    max_depth: int = pydantic.Field(50, ge=1)  # paper
    c_puct: float = pydantic.Field(1.0, ge=0)  # ours: the paper gives no value
    prior: Literal["total", "mean"] = (
        "total"  # a step's probability, or the mean over its tokens (ours: not in the paper)
    )
    num_parallel_leaves: int = pydantic.Field(
        1, ge=1
    )  # leaves of one tree expanded at once (virtual loss); 1 is exact PUCT
    temperature: float = pydantic.Field(1.0, gt=0)  # ours
    max_concurrent_trees: int = pydantic.Field(128, ge=1)  # trees that grow at the same time
    shard_size: int = pydantic.Field(128, ge=1)  # trees in a file of the store
    step_end: str = ".\n"  # what ends a step (ours: the lines of Countdown's language, but for a verdict)
    max_step_tokens: int = pydantic.Field(32, ge=1)
    max_rollout_tokens: int = pydantic.Field(64, ge=1)  # of one rollout, or of one of best-of-N's solutions
    keep_rollouts: bool = False  # rollouts that came to an end become nodes (ours)
    early_stop: EarlyStop | None = None  # end a tree early; none: all iterations, paper
    max_tree_tokens: int | None = pydantic.Field(None, ge=1)  # sampled for a tree: past it, no further iteration (ours)
    max_total_tokens: int | None = pydantic.Field(None, ge=1)  # the same for the stage, shared out evenly (ours)
    num_samples: int = pydantic.Field(32, ge=1)  # of best-of-N, a problem (ours)
    method: Literal["mcts", "best-of-n"] = "mcts"  # paper; or a tree of independent solutions, merged (ours)

    @pydantic.field_validator("method")
    @classmethod
    def _one_round(cls, method: str, info: pydantic.ValidationInfo) -> str:
        """Best-of-N has no iteration that these could end, and no rollouts."""
        names = ("keep_rollouts", "early_stop", "max_tree_tokens", "max_total_tokens")
        if method == "best-of-n" and (idle := [n for n in names if info.data.get(n)]):
            raise ValueError(f"{', '.join(idle)}: only for mcts; leave out")
        return method


class Traces(Section):
    """Algorithm 1 and procedure cloning (paper, sections 2.3 and 2.4). The wordings of `prompts` ask the model."""

    direct_examples: int = pydantic.Field(1, ge=0)  # solutions with k = 0 a problem, paper
    search_examples: int = pydantic.Field(3, ge=0)  # solutions with k >= 1 a problem, paper
    max_backtracks: int = pydantic.Field(2, ge=1)  # the largest k; paper: 2
    backtrack_weights: tuple[
        Annotated[float, pydantic.Field(ge=0)], ...
    ] = ()  # weights of k = 1, 2, ...; none: all alike
    merge_at: Literal["ancestor", "root", "random"] = "ancestor"  # where a branch is entered from the one before, paper
    leave_at: Literal["terminal", "inside"] = "terminal"  # where a wrong branch is left: at its end (paper), or before
    self_evaluation: int = pydantic.Field(0, ge=0)  # N judgements of a right solution; paper: 8 (Countdown's are exact)
    self_evaluation_pass: float = pydantic.Field(1.0, gt=0, le=1)  # share that must approve; paper: unanimous
    self_evaluation_tokens: int = pydantic.Field(256, ge=1)  # of one judgement (ours)
    clone: Literal["template", "model"] = "template"  # who writes the steps and the ways back; paper: the model
    clone_retries: int = pydantic.Field(2, ge=0)  # of a piece that is rejected (ours)
    clone_tokens: int = pydantic.Field(128, ge=1)  # of one piece (ours)
    clone_temperature: float = pydantic.Field(0.7, gt=0)  # ours
    phrases: Literal["fixed", "model", "none"] = "fixed"  # of reflection; paper: fixed
    min_value_reflect: float | None = None  # Q from which an intermediate node gets the positive reflection
    direct: Literal["trees", "best-of-n"] = "trees"  # where the Direct control's solutions come from; paper: trees
    direct_samples: int = pydantic.Field(8, ge=1)  # N of best-of-N, a problem (ours)
    direct_tokens: int = pydantic.Field(256, ge=1)  # of one such sample (ours)
    direct_match: Literal["examples", "tokens"] = "examples"  # what Direct has as much of as ASTRO; paper: examples
    shard_size: int = pydantic.Field(32, ge=1)  # trees whose traces a model writes together: a shard, a move of the bar
    replay: float = pydantic.Field(0.0, ge=0)  # documents of the base's corpus, as a share of the examples (ours)


class Sft(Section):
    """Supervised fine-tuning (paper, section 3.1 and appendix B.2)."""

    num_train_epochs: float = pydantic.Field(1.0, gt=0)  # paper
    learning_rate: float = pydantic.Field(3e-6, gt=0)  # paper
    warmup_ratio: float = pydantic.Field(0.05, ge=0, lt=1)  # share of the steps (ours)
    min_lr_rate: float = pydantic.Field(0.0, ge=0, le=1)  # where the cosine ends, as a share of the peak
    weight_decay: float = pydantic.Field(0.1, ge=0)  # ours
    betas: tuple[float, float] = (0.9, 0.95)  # ours
    max_grad_norm: float = pydantic.Field(1.0, gt=0)  # ours
    batch_size: int = pydantic.Field(32, ge=1)  # rows a step
    max_length: int = pydantic.Field(8192, ge=8)  # tokens a row; paper: 8192
    packing_strategy: Literal["first-fit", "wrapped"] = (
        "first-fit"  # wrapped: documents are joined and cut, and see each other
    )
    remat_policy: Literal["none", "full"] = "none"  # full: recompute each block in the backward pass
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32
    save_steps: int = pydantic.Field(200, ge=1)  # steps between checkpoints


class Grpo(Section):
    """Group relative policy optimization (paper, section 3.2)."""

    max_steps: int = pydantic.Field(100, ge=1)
    prompts_per_step: int = pydantic.Field(64, ge=1)  # problems a step
    num_generations: int = pydantic.Field(4, ge=2)  # samples a problem; paper: 4
    max_completion_length: int = pydantic.Field(256, ge=1)  # of a response; paper: 15,360
    learning_rate: float = pydantic.Field(2e-7, gt=0)  # paper
    warmup_ratio: float = pydantic.Field(0.05, ge=0, lt=1)
    min_lr_rate: float = pydantic.Field(1.0, ge=0, le=1)  # 1: constant after the warm-up
    weight_decay: float = pydantic.Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = pydantic.Field(1.0, gt=0)
    epsilon: float = pydantic.Field(0.2, gt=0)  # of the ratio, GRPO (arXiv 2402.03300)
    steps_per_generation: int = pydantic.Field(1, ge=1)  # optimizer steps a batch of responses
    scale_rewards: bool = True  # divide advantages by the group's standard deviation, GRPO
    max_length: int = pydantic.Field(512, ge=8)  # tokens of a packed row
    micro_batch_size: int = pydantic.Field(32, ge=1)  # rows whose gradient is computed at once
    remat_policy: Literal["none", "full"] = "none"  # full: recompute each block in the backward pass
    dtype: Literal["float32", "bfloat16"] = "float32"
    save_steps: int = pydantic.Field(10, ge=1)


class Eval(Section):
    """Evaluation on held-out problems."""

    max_tokens: int = pydantic.Field(256, ge=1)
    shard_size: int = pydantic.Field(512, ge=1)  # problems a shard


class Config(Section):
    """One run."""

    seed: int = pydantic.Field(0, ge=0)
    out: str = "runs/default"
    scale: float = pydantic.Field(1.0, gt=0)  # of the budgets: problems, documents, steps of RL
    model: str = "countdown-base"  # a Hugging Face folder, a model that ships with the package, or "scratch"
    stages: tuple[str, ...] = (
        "base", "search", "traces", "direct-sft", "astro-sft", "direct-rl", "astro-rl", "eval", "report",
    )  # fmt: skip
    mesh: Mesh = Mesh()
    attention: Literal["auto", "xla", "splash"] = "auto"  # of whole sequences; auto: splash on TPUs (ours)
    architecture: Architecture = Architecture()
    chat: Chat = Chat()
    problems: Problems = Problems()
    corpus: Corpus = Corpus()
    verify: Verify = Verify()
    sampler: Sampler = Sampler()
    search: Search = Search()
    traces: Traces = Traces()
    prompts: dict[str, str] = {}  # files in the place of astro_jax/prompts/*.txt (ours), by name
    pretrain: Sft = Sft()
    base_sft: Sft | None = None  # of the base, on worked solutions (ours: for models too weak to be searched)
    sft: Sft = Sft()
    grpo: Grpo = Grpo()
    eval: Eval = Eval()

    def digest(self) -> str:
        """A hash of everything that results depend on; where the run is written is not part of it."""
        return hashlib.sha256(json.dumps(self.model_dump(exclude={"out"}), sort_keys=True).encode()).hexdigest()[:16]


# Keys of older versions, with the key to write today.
RENAMED = {
    "sampler.slots": "sampler.max_num_seqs",
    "sampler.memory": "sampler.kv_cache_gib",
    "sampler.chunk": "sampler.num_scheduler_steps",
    "sampler.block": "sampler.block_size",
    "sampler.reuse": "sampler.prefix_cache_gib",
    "search.proposals": "search.num_proposals",
    "search.rollouts": "search.num_rollouts",
    "search.iterations": "search.num_simulations",
    "search.depth": "search.max_depth",
    "search.leaves": "search.num_parallel_leaves",
    "search.wave": "search.max_concurrent_trees and search.shard_size",
    "search.max_tokens": "search.max_rollout_tokens",
    "search.enough": "search.early_stop",
    "search.samples": "search.num_samples",
    "traces.wave": "traces.shard_size",
    "traces.backtracks": "traces.backtrack_weights",
    "traces.leave": "traces.leave_at",
    "traces.merge": "traces.merge_at",
    "sft.epochs": "sft.num_train_epochs",
    "base_sft.epochs": "base_sft.num_train_epochs",
    "sft.warmup": "sft.warmup_ratio",
    "base_sft.warmup": "base_sft.warmup_ratio",
    "sft.final_lr": "sft.min_lr_rate",
    "base_sft.final_lr": "base_sft.min_lr_rate",
    "sft.clip_norm": "sft.max_grad_norm",
    "base_sft.clip_norm": "base_sft.max_grad_norm",
    "sft.batch": "sft.batch_size",
    "base_sft.batch": "base_sft.batch_size",
    "sft.length": "sft.max_length",
    "base_sft.length": "base_sft.max_length",
    "sft.attend_across": "sft.packing_strategy (first-fit or wrapped)",
    "base_sft.attend_across": "base_sft.packing_strategy (first-fit or wrapped)",
    "sft.remat": "sft.remat_policy (none or full)",
    "base_sft.remat": "base_sft.remat_policy (none or full)",
    "sft.save_every": "sft.save_steps",
    "base_sft.save_every": "base_sft.save_steps",
    "pretrain.epochs": "pretrain.num_train_epochs",
    "pretrain.warmup": "pretrain.warmup_ratio",
    "pretrain.final_lr": "pretrain.min_lr_rate",
    "pretrain.clip_norm": "pretrain.max_grad_norm",
    "pretrain.batch": "pretrain.batch_size",
    "pretrain.length": "pretrain.max_length",
    "pretrain.attend_across": "pretrain.packing_strategy (first-fit or wrapped)",
    "pretrain.remat": "pretrain.remat_policy (none or full)",
    "pretrain.save_every": "pretrain.save_steps",
    "grpo.steps": "grpo.max_steps",
    "grpo.prompts": "grpo.prompts_per_step",
    "grpo.group": "grpo.num_generations",
    "grpo.max_tokens": "grpo.max_completion_length",
    "grpo.warmup": "grpo.warmup_ratio",
    "grpo.final_lr": "grpo.min_lr_rate",
    "grpo.clip_norm": "grpo.max_grad_norm",
    "grpo.clip": "grpo.epsilon",
    "grpo.updates": "grpo.steps_per_generation",
    "grpo.normalize_std": "grpo.scale_rewards",
    "grpo.length": "grpo.max_length",
    "grpo.micro_batch": "grpo.micro_batch_size",
    "grpo.remat": "grpo.remat_policy (none or full)",
    "grpo.save_every": "grpo.save_steps",
    "eval.wave": "eval.shard_size",
    "verify.seconds": "verify.timeout_seconds",
    "verify.memory": "verify.memory_gib",
    "verify.workers": "verify.num_workers",
    "verify.max_failed": "verify.max_failed_share",
    "verify.reward": "verify.reward_rule",
    "verify.report": "verify.report_rule",
    "problems.where": "problems.filters",
    "problems.near": "problems.overlap_threshold",
    "problems.rl_samples": "problems.difficulty_samples",
    "warm_up": "base_sft",
}


def load(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply "a.b=value" overrides (values are YAML).

    A file may begin with `base: PATH`, relative to it: then it says only what it changes of that one, which may have a
    base too. Sections are merged key by key, all other values are replaced.

    Raises:
      AstroError: for a missing file, bad YAML, a base that rests on itself, an unknown key or a value of the wrong
        type, with its dotted name.
    """
    raw = _read(epath.Path(path), ())
    for override in overrides:
        _override(raw, override)
    return parse(raw, path)


def parse(raw: dict[str, Any], where: str = "config") -> Config:
    """Validate a nested dict; every problem is named by its dotted key."""
    try:
        return _scaled(Config.model_validate(raw))
    except pydantic.ValidationError as e:
        problems = [f"{'.'.join(map(str, x['loc']))}: {_explain(x)}" for x in e.errors()]
        raise AstroError(f"{where}: {'; '.join(problems)}") from e


def _read(path: epath.Path, above: tuple[str, ...]) -> dict[str, Any]:
    """A file merged over its bases; `above` are the files that rest on it."""
    me = os.path.normpath(path)
    if me in above:
        raise AstroError(f"{above[0]}: rests on itself ({' -> '.join((*above, me))}); change one of the `base` keys")
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except OSError as e:
        where = f" (the base of {above[-1]})" if above else ""
        raise AstroError(f"{path}{where}: cannot be read ({e.strerror or e}); give the path of a YAML config") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise AstroError(f"{path}: not valid YAML ({' '.join(str(e).split())})") from e
    if not isinstance(raw, dict):
        raise AstroError(f"{path}: a config is a mapping of keys to values")
    if (base := raw.pop("base", None)) is None:
        return raw
    if not isinstance(base, str):
        raise AstroError(f"{path}: base: the path of a YAML config is wanted, got {base!r}")
    return _merged(_read(path.parent / base, (*above, me)), raw)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(under[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(under.get(k), dict)}
    return under | over | both


def _scaled(c: Config) -> Config:
    """The config with its budgets multiplied by `scale`."""

    def times(section: Any, *names: str) -> Any:
        return section.model_copy(update={n: max(1, round(getattr(section, n) * c.scale)) for n in names})

    budgets = {
        "problems": times(c.problems, "search", "rl", "eval"),
        "corpus": times(c.corpus, "documents"),
        "grpo": times(c.grpo, "max_steps"),
    }
    return c.model_copy(update=budgets)


def _explain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        if new := RENAMED.get(".".join(map(str, error["loc"]))):
            return f"renamed: write {new}"
        return "no such key; see astro_jax/config.py for all keys"
    return f"{error['msg'].lower()}, got {error['input']!r}"


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise AstroError(f"override {text!r}: write key=value, as in sft.epochs=2")
    *parents, last = key.split(".")
    at = raw
    for name in parents:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            raise AstroError(f"override {text!r}: {name!r} is not a section")
    try:
        at[last] = yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise AstroError(f"override {text!r}: the value is not valid YAML") from e
    if isinstance(at[last], str):
        at[last] = _number(at[last])


def _number(text: str) -> Any:
    """YAML 1.1 reads 3e-4 as a string; everybody means the number."""
    try:
        return float(text)
    except ValueError:
        return text
