"""What would stop a run, found before its first token and listed at once (`astro check`).

`astro run` checks the stages that it is about to run. Each function of `_CHECKS` looks at one subject, and yields a
line for each problem: what is wrong, where, and what to do. Nothing is written, but for a probe of a bucket that is
removed again, and no weights are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from astro_jax import config as cfg
from astro_jax import mesh as meshes
from astro_jax import prompts as prompt_files
from astro_jax import run_plan, stage_inputs, storage
from astro_jax import stages as registry
from astro_jax.errors import AstroError, is_transient
from astro_jax.evaluate import responses
from astro_jax.llama import checkpoint, params, paths
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.plan import planner, programs, topology
from astro_jax.problems import lengths, source, suites
from astro_jax.problems.draws import Draws
from astro_jax.run_context import RunContext
from astro_jax.search.tree_sampler import max_prefix_tokens
from astro_jax.traces import dataset
from astro_jax.train import examples
from astro_jax.train.held_out import hold_out
from astro_jax.types import Problem, Response
from astro_jax.verify import Verifier

GIB = 2**30
SAMPLED_ANSWERS = 20  # gold answers that the verifier must read
# Bytes of a training state for each parameter in float32: the parameter, two moments and the gradient.
_TRAINING_BYTES, _CHECKPOINT_BYTES, _MODEL_BYTES = 16, 12, 4


@dataclasses.dataclass(frozen=True)
class Subject:
    """What the checks look at. A part that cannot be had is None, and its problem is listed once.

    Attributes:
      c: the config.
      names: the stages that are to run.
      topology: the TPU slice that the run is for, as "v5e:4x4"; None for this machine.
      run: the run, whose sources and suites have been read; None for a check alone.
    """

    c: cfg.Config
    names: Sequence[str]
    topology: str | None = None
    run: RunContext | None = None

    @functools.cached_property
    def draws(self) -> Draws:
        """Draws the problems of the run."""
        return self.run.draws if self.run is not None else Draws.of(self.c.problems, self.c.seed)

    @functools.cached_property
    def model_folder(self) -> Any:
        """The folder of the base model: in the run if the stage has finished with this model, else the config's."""
        if (base := run_plan.finished_base(storage.absolute(self.c.out), self.c.model)) is not None:
            return base[0] / "model"  # a new machine would download the model again
        return paths.resolve(self.c.model, download=True)

    @functools.cached_property
    def model(self) -> LlamaConfig | None:
        """The architecture of the base model, by its name if it is a published one; None for `model: scratch`."""
        if self.c.model == "scratch":
            return None
        try:
            return checkpoint.read_config(self.model_folder)
        except AstroError as e:
            try:
                return planner.model_config(self.c.model)
            except AstroError:
                raise e from None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the base model; None for a model that is trained from scratch."""
        return None if self.c.model == "scratch" else tokenizers.load(str(self.model_folder), self.c.chat)

    @functools.cached_property
    def judge(self) -> epath.Path | None:
        """The folder of the judge; None for stages that ask no judge."""
        if self.c.verify.judge is None or not any(stage_inputs.asks_judge(self.c, name) for name in self.names):
            return None
        return paths.resolve(self.c.verify.judge.model, download=True)

    @functools.cached_property
    def drawn(self) -> dict[cfg.Use, list[Problem] | AstroError]:
        """The problems of each use, or why they cannot be drawn. A source that cannot be read is read once."""
        drawn: dict[cfg.Use, list[Problem] | AstroError] = {}
        try:
            if source.has_source(self.c.problems) or self.c.problems.evaluation:
                self.draws.problem_set  # noqa: B018 (reads the sources)
        except AstroError as e:
            return dict.fromkeys(self.uses, e)
        for use in self.uses:
            try:
                drawn[use] = self.draws.draw(use)
            except AstroError as e:
                drawn[use] = e
        return drawn

    def problems(self, use: cfg.Use) -> list[Problem]:
        """The problems of a use; empty where they cannot be drawn."""
        drawn = self.drawn.get(use, [])
        return [] if isinstance(drawn, AstroError) else drawn

    @property
    def uses(self) -> list[cfg.Use]:
        """The uses whose problems the stages read."""
        read = {use for name in self.names for use in registry.get(name).problems if name != "base"}
        return [use for use in cfg.USES if use in read]


def find(
    c: cfg.Config, names: Sequence[str] = (), topology_name: str | None = None, run: RunContext | None = None
) -> list[str]:
    """Return what would stop a run, a line each; empty if nothing would.

    Args:
      c: the config.
      names: the stages that are to run; empty for all.
      topology_name: a TPU slice to check for in place of this machine.
      run: the run, so that what it has read is not read again.
    """
    subject = Subject(c, names or stage_inputs.planned(c), topology_name, run)
    lines: dict[str, None] = {}
    for check in _CHECKS:
        try:
            for line in check(subject):  # a check may end with an error after its first lines
                lines[line] = None
        except AstroError as e:
            if is_transient(e):  # says nothing about the run
                raise
            lines[str(e)] = None
    return list(lines)


def require(c: cfg.Config, names: Sequence[str], run: RunContext | None = None) -> None:
    """Check a run before it starts. The arguments are those of `find`.

    Raises:
      AstroError: with all lines of `find`.
    """
    if lines := find(c, names, run=run):
        raise AstroError("; ".join(lines))


# ---- The checks


def _settings(s: Subject) -> Iterator[str]:
    """Settings that exclude each other."""
    c, has_source = s.c, source.has_source(s.c.problems)
    if has_source and c.traces.replay:
        yield "traces.replay: only Countdown has a corpus to replay; set it to 0"
    if c.base_sft is not None and c.model == "scratch":
        yield "base_sft: model=scratch is trained by `pretrain`; leave base_sft out, or name a model"
    if c.problems.task and not has_source and s.uses:
        yield (
            f"problems.task={c.problems.task}: no source of problems; set problems.path, dataset, gym or sources "
            "(without a source the problems are Countdown games)"
        )
    if c.problems.needs_judge and c.verify.judge is None:
        yield "problems.task=judged: only a judge can decide on problems without an answer; set verify.judge"
    if "difficulty" in s.names and not c.problems.difficulty_samples:
        yield "difficulty: set problems.difficulty_samples, the answers to each prompt"
    if "sft" in s.names and not c.examples:
        yield "sft: no examples; set examples=FILE, or write `astro sft --data FILE`"
    prompt_files.load(c.prompts)


def _problems(s: Subject) -> Iterator[str]:
    """Sources that cannot be read, and too few problems."""
    for drawn in s.drawn.values():
        if isinstance(drawn, AstroError):
            if is_transient(drawn):
                raise drawn
            yield str(drawn)
    if "traces" in s.names:
        dataset.check(s.c.traces, [] if s.c.trees else s.problems("search"))
    if s.c.grpo.eval_share and (prompts := s.problems("rl")):
        hold_out(prompts, s.c.grpo.eval_share, s.c.seed)  # some must be left to train on


def _suites(s: Subject) -> Iterator[str]:
    """Suites that cannot be read, and Parquet that cannot be written."""
    if not any(name.endswith("-suites") for name in s.names):
        return
    for spec in () if s.run is not None else s.c.eval.suites:  # the plan of a run has read them
        try:
            suites.load(spec, s.c.eval.limit)
        except AstroError as e:
            yield str(e)
    responses.require_parquet()


def _sft(s: Subject) -> Iterator[str]:
    """Rows that are longer than the model's context, and a file of examples that cannot be read."""
    if s.model is None or s.tokenizer is None:
        return
    c, positions = s.c, s.model.max_positions
    used = {"base_sft": "base" in s.names, "sft": any(registry.get(name).command == "sft" for name in s.names)}
    for name in (name for name, is_used in used.items() if is_used and getattr(c, name) is not None):
        if (length := getattr(c, name).max_length) > positions:
            yield (
                f"{name}.max_length={length}: longer than the {positions} positions of the model; set "
                f"{name}.max_length={positions} or less"
            )
    if "sft" in s.names and c.examples:
        examples.check(c.examples, s.tokenizer)


def _prompts(s: Subject) -> Iterator[str]:
    """A chat template that is missing, and limits that leave no prompt."""
    if s.tokenizer is None or s.model is None or not s.uses:
        return
    c, sizes = s.c, {use: [len(s.tokenizer.prompt(p.prompt)) for p in s.problems(use)[:500]] for use in s.uses}
    limits = {
        "search": (max_prefix_tokens(c.search, s.model), "search.max_rollout_tokens or search.max_step_tokens"),
        "rl": (lengths.max_prompt_tokens(c, s.model), "grpo.max_completion_length, or raise grpo.max_length"),
        "eval": (lengths.max_prompt_tokens(c, s.model, "eval"), "eval.max_tokens"),
    }
    for use, prompt_sizes in sizes.items():
        limit, key = limits[use]
        if prompt_sizes and min(prompt_sizes) > limit:
            yield (
                f"{use}: no prompt fits: the shortest of {len(prompt_sizes)} has {min(prompt_sizes)} tokens, and "
                f"{max(limit, 0)} are left beside the answer; lower {key}"
            )


def _answer_format(s: Subject) -> Iterator[str]:
    """An answer format that the prompt does not ask for, and gold answers that the verifier cannot read."""
    c, math_problems = s.c, [p for use in s.uses for p in s.problems(use) if p.task == "math"]
    if not math_problems:
        return
    asked = c.chat.template and c.chat.system is not None and "boxed" in c.chat.system
    if c.verify.reward_rule == "strict" and not asked and not all("boxed" in p.prompt for p in math_problems[:20]):
        yield (
            "verify.reward_rule=strict reads answers in \\boxed{}, which chat.system does not name; name it there, "
            "or set verify.reward_rule=lenient"
        )
    sample = math_problems[:: max(1, len(math_problems) // SAMPLED_ANSWERS)][:SAMPLED_ANSWERS]
    with contextlib.closing(Verifier(c.verify)) as verifier:
        verdicts = verifier.judge([Response(p, f"\\boxed{{{p.answer}}}", True) for p in sample])
    wrong = [p.answer for p, verdict in zip(sample, verdicts, strict=True) if not verdict.correct]
    if len(wrong) > len(sample) // 2:
        yield (
            f"verify: {len(wrong)} of {len(sample)} sampled gold answers are not judged correct, such as {wrong[0]!r}; "
            "see problems.fields and problems.task"
        )


def _judge(s: Subject) -> Iterator[str]:
    """A judge that is not there, or whose context has no room for the rubric and a judgement."""
    if s.judge is None or (judge := s.c.verify.judge) is None:
        return
    rubric = prompt_files.load(s.c.prompts)["evaluate"].render(problem="", solution="")
    tokens, room = len(tokenizers.load(str(s.judge)).prompt(rubric)), checkpoint.read_config(s.judge).max_positions
    if tokens + judge.max_tokens >= room:
        yield (
            f"verify.judge: the rubric of {tokens} tokens and a judgement of {judge.max_tokens} leave no room for an "
            f"answer in the context of {room}; lower verify.judge.max_tokens, or name a shorter prompts.evaluate"
        )


def _mesh(s: Subject) -> Iterator[str]:
    """A mesh of more devices than there are, or that does not divide the model and the batches."""
    c, m = s.c, s.c.mesh
    need, devices = m.num_devices, _device_count(s)
    if need > devices or (s.topology and need != devices):
        yield f"the mesh {m.data}x{m.fsdp}x{m.tp} needs {need} devices, but {devices} exist; set mesh.*"
    if s.topology:
        meshes.require_slices_divide(m.data, topology.slices(s.topology))
    if s.topology or need > devices:  # the devices need not exist
        mesh: Any = jax.sharding.AbstractMesh((m.data, m.fsdp, m.tp), meshes.AXES)
        sharding = meshes.train_sharding(mesh, "xla")
    else:
        sharding = meshes.train_sharding(meshes.make_mesh(m.data, m.fsdp, m.tp), c.attention)
    programs.check(c, s.model, sharding)
    if s.judge is not None:
        programs.check_model(checkpoint.read_config(s.judge), sharding, "the judge's ")


def _memory(s: Subject) -> Iterator[str]:
    """Parameters, optimizer state and gradients that cannot fit the memory of a device."""
    memory = _device_bytes(s)
    if s.model is None or memory is None or not any(registry.get(name).initial_model for name in s.names):
        return
    m = s.c.mesh
    shards = m.fsdp * m.tp if s.topology or jax.default_backend() != "cpu" else 1  # CPU devices share one memory
    has_reference = s.c.grpo.beta > 0 and any(registry.get(name).command == "grpo" for name in s.names)
    reference_bytes = has_reference * (4 if s.c.grpo.dtype == "float32" else 2)
    need = (_TRAINING_BYTES + reference_bytes) * params.count(s.model) / shards
    if need > memory:
        yield (
            f"training needs {need / GIB:.1f} GiB a device for parameters, moments and gradients, and a device has "
            f"{memory / GIB:.1f} GiB; raise mesh.fsdp or mesh.tp, or choose a smaller model"
        )


def _disk(s: Subject) -> Iterator[str]:
    """A disk without room for the models and the checkpoints of the stages."""
    models = [name for name in s.names if registry.get(name).makes_model]
    if s.model is None or not models:
        return
    trained = [name for name in models if registry.get(name).initial_model]
    # Each trained model keeps its last checkpoint; while the next one is written there are two.
    need = params.count(s.model) * (_MODEL_BYTES * len(models) + _CHECKPOINT_BYTES * (len(trained) + bool(trained)))
    need -= sum(storage.size(storage.absolute(s.c.out) / name) for name in models)  # of a run that goes on
    if need > (free := storage.free_bytes(storage.absolute(s.c.out) / "base")):
        yield (
            f"out={s.c.out}: the models and checkpoints of {len(models)} stages need {need / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB are free; make room, or set out= to a larger disk or a bucket"
        )


def _bucket(s: Subject) -> Iterator[str]:
    """A bucket that the account of this machine cannot use. With a topology another machine will run."""
    if s.topology is None and (refusal := storage.bucket_refusal(storage.absolute(s.c.out))):
        yield f"out={refusal}"


def _workers(s: Subject) -> Iterator[str]:
    """Files on the disk of this machine, for a run that other machines will do: its folder is in a bucket."""
    if s.topology is None or not storage.is_remote(s.c.out):
        return
    p = s.c.problems
    paths = {"problems.path": p.path, "examples": s.c.examples, "trees": s.c.trees}
    paths |= {f"problems.{name}": x.path for name in ("sources", "evaluation") for x in getattr(p, name)}
    files = {key: value for key, value in paths.items() if value and os.path.isabs(value)}
    if s.c.model != "scratch" and epath.Path(s.c.model).exists() and not storage.is_remote(s.c.model):
        files["model"] = s.c.model
    for key, value in files.items():
        yield f"{key}={value} is on the disk of this machine, which the workers do not see; upload it to the bucket"


_CHECKS: tuple[Callable[[Subject], Iterator[str]], ...] = (
    _settings, _bucket, _workers, _problems, _suites, _sft, _prompts, _answer_format, _judge, _mesh, _memory, _disk,
)  # fmt: skip


def _device_count(s: Subject) -> int:
    if s.topology:
        return topology.parse(s.topology)[1]
    meshes.set_cpu_device_count(s.c.mesh.num_devices)
    return len(jax.devices())


def _device_bytes(s: Subject) -> float | None:
    """The memory of a device; of a CPU, the memory of this machine. None where it is not known."""
    if s.topology:
        return topology.parse(s.topology)[0].hbm_bytes
    if jax.default_backend() != "cpu":
        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return math.prod(map(os.sysconf, ("SC_PAGE_SIZE", "SC_PHYS_PAGES")))
