"""The stages of a run, in the order of the paper. Each is a pure step between artifacts in the run's folder:

    problems -> search -> traces -> SFT -> GRPO -> evaluation -> report

A stage is finished when its manifest is there; a run that was stopped anywhere goes on from its last finished piece.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from astro_jax import config as cfg
from astro_jax import countdown, distributed, prompts, report, storage
from astro_jax import mesh as meshes
from astro_jax.countdown.tokenizer import countdown_tokenizer
from astro_jax.errors import AstroError
from astro_jax.evaluate import difficulty
from astro_jax.evaluate import run as evaluation
from astro_jax.llama import attention, checkpoint, paths
from astro_jax.llama import params as llama_params
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.problems import source, words
from astro_jax.progress import log
from astro_jax.sampler import Engine
from astro_jax.search import run as searching
from astro_jax.search.store import Shard
from astro_jax.storage import Shards
from astro_jax.traces import card, dataset
from astro_jax.traces.writer import TraceWriter
from astro_jax.train import data, grpo, loop, sft
from astro_jax.train.state import abstract_state, make_optimizer, make_step, new_state, place
from astro_jax.types import Problem
from astro_jax.verify import Verifier, tally
from astro_jax.verify.tally import Tally

# Which model each training stage starts from.
PARENT = {"direct-sft": "base", "astro-sft": "base", "direct-rl": "direct-sft", "astro-rl": "astro-sft"}
MODELS = ("base", *PARENT)


class Run:
    """One run's folder, devices and configuration."""

    def __init__(self, c: cfg.Config, command: str = "", part: Shard = (0, 1)):
        p = c.problems
        self.part = part
        if source.given(p) and c.traces.replay:
            raise AstroError("traces.replay: only Countdown has a corpus to replay; set it to 0")
        if c.base_sft is not None and not source.given(p):
            raise AstroError("base_sft: only problems from a source have worked solutions; set problems.path")
        self.c, self.folder, self.command = c, storage.absolute(c.out), command
        self.prompts = prompts.load(c.prompts)
        self.digest = self._digest()
        self._check()
        meshes.set_cpu_device_count(c.mesh.data * c.mesh.fsdp * c.mesh.tp)
        mesh = meshes.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp)
        self.train_sharding = meshes.train_sharding(mesh, c.attention)
        self.decode_sharding = meshes.decode_sharding(mesh, c.attention)
        names = ("pretrain", "sft") if c.model == "scratch" else ("sft",)
        for length in (*(getattr(c, name).max_length for name in (*names, "grpo")), c.sampler.block_size):
            attention.choose_kernel(self.train_sharding, length)
        for name in names:
            if (batch := getattr(c, name).batch_size) % self.train_sharding.batch_size:
                devices = self.train_sharding.batch_size
                raise AstroError(
                    f"{name}.batch_size={batch} cannot be split over mesh.data x mesh.fsdp = {devices} devices"
                )
        self.verifier = Verifier(c.verify)
        self.game = countdown.Game(p.count, p.max_number, p.max_value, p.ops, p.held_out)

    def _digest(self) -> str:
        """The config's, that of the prompts which stand in the place of ours, and where problems come from a source,
        theirs."""
        digest = self.c.digest()
        if self.c.prompts:
            digest = hashlib.sha256(repr((digest, self.prompts)).encode()).hexdigest()[:16]
        if not source.given(self.c.problems):
            return digest
        return hashlib.sha256(repr((digest, self.source.every)).encode()).hexdigest()[:16]

    def _check(self) -> None:
        """Check that the folder is new or belongs to the same configuration."""
        path = self.folder / "config.json"
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise AstroError(f"{self.folder}: not empty and not a run; choose another folder with out=DIR")
            return
        theirs = storage.read_json(path)
        if theirs.get("hash") != self.digest:
            changed = _differences(theirs.get("config", {}), self.c.model_dump(mode="json"))
            changed = changed or "its source holds other problems or a file of `prompts` another prompt"
            raise AstroError(
                f"{self.folder}: holds a run of another config ({changed}); nothing was changed, "
                "choose another folder with out=DIR or remove it"
            )

    def _claim(self) -> None:
        """Write config.json, once all that can be checked before the first stage has been."""
        path = self.folder / "config.json"
        distributed.assert_equal_across_processes("the run's configuration", self.digest)
        if not path.exists():
            if self.c.model != "scratch":
                paths.resolve(self.c.model)
            mine = {"hash": self.digest, "command": self.command, "config": self.c.model_dump(mode="json")}
            storage.write_json(path, mine)
        distributed.assert_equal_across_processes("the run's folder")
        if not path.exists():
            raise AstroError(f"{self.folder}: this process does not see it; out must be a folder that all share")

    def execute(self, stage: str) -> None:
        """Run a stage unless it is finished.

        Raises:
          AstroError: when a stage that it rests on has not finished.
        """
        function, rests_on = STAGES[stage]
        parents = rests_on if stage != "eval" else tuple(self.models())
        if stage in ("direct-rl", "astro-rl") and self.c.problems.difficulty_samples:
            parents = (*parents, "difficulty")
        folder = self.folder / stage
        if storage.is_finished(folder):
            return
        for parent in parents:
            if not storage.is_finished(self.folder / parent):
                raise AstroError(f"{self.folder}: {stage} rests on {parent}, which has not finished: run that first")
        self._claim()
        start = time.monotonic()
        self.verifier.tally = Tally(folder / "verdicts-{}-of-{}.json".format(*self.part))
        counts = function(self) or {}
        self.verifier.tally.save()
        if self.part[1] > 1:  # the run without --shard, which finds all parts done, finishes the stage
            return
        counts |= tally.summary(folder) if distributed.is_main_process() else {}
        storage.write_manifest(folder, stage, self.digest, list(parents), time.monotonic() - start, **counts)

    def models(self) -> list[str]:
        """The models that this run makes."""
        return [m for m in MODELS if m in self.c.stages]

    def engine(self, config: LlamaConfig) -> Engine:
        return Engine.from_config(self.c.sampler, config, self.decode_sharding, self.c.seed)

    def load(
        self, model: str, sharding: meshes.Sharding, dtype: str = "float32"
    ) -> tuple[LlamaConfig, Params, Tokenizer]:
        """A finished stage's model: config, parameters, tokenizer."""
        folder = self.folder / model / "model"
        config, params = checkpoint.load(folder, sharding, jnp.dtype(dtype))
        return config, params, tokenizers.load(str(folder), self.c.chat)

    def policy(self, model: str) -> Policy:
        """A finished stage's model, ready to sample from."""
        config, params, tokenizer = self.load(model, self.decode_sharding, self.c.sampler.dtype)
        return Policy(self.engine(config), params, tokenizer)

    def problems(self, use: str) -> list[Problem]:
        """The problems of one use; search and RL draw from one side of the split, evaluation from the other."""
        p, n, held_out = self.c.problems, getattr(self.c.problems, use), use == "eval"
        if source.given(p):
            return self.source.draw(n, self.c.seed, evaluation=held_out)
        return countdown.problems(self.game, n, self.c.seed, held_out=held_out)

    @functools.cached_property
    def source(self) -> source.Source:
        """Where problems come from, when they are not Countdown's."""
        found = source.load(self.c.problems, self.c.seed)
        left_out = found.counts["skipped"] | found.counts["dropped"]
        if told := ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n):
            log(f"problems: {len(found.training)} for training, left out: {told}")
        return found

    @property
    def problem_counts(self) -> dict[str, Any]:
        """What was read, skipped and dropped on the way to the problems."""
        return self.source.counts if source.given(self.c.problems) else {}


def base(run: Run) -> None:
    """The base model: taken as it is, or with `model: scratch` trained on Countdown's corpus."""
    folder = run.folder / "base"
    if run.c.model == "scratch":
        return _pretrain(run, folder)
    source = paths.resolve(run.c.model)
    tokenizer = tokenizers.load(str(source), run.c.chat)
    if run.c.base_sft is not None:
        config, params = checkpoint.load(source, run.train_sharding)
        documents = _worked_solutions(run, tokenizer)
        return _train_sft(run, "base", run.c.base_sft, config, params, tokenizer, documents)
    config, params = checkpoint.load(source, run.decode_sharding)
    checkpoint.save(folder / "model", config, params, tokenizer)
    return None


def _worked_solutions(run: Run, tokenizer: Tokenizer) -> list[list[int]]:
    """The problems that search or RL will draw from, with their worked solutions; all models start from these."""
    pairs = {p.id: (p.prompt, words.worked(p)) for use in ("search", "rl") for p in run.problems(use)}
    found = [tokenizer.prompt(prompt) + tokenizer.encode_after(text) for prompt, text in pairs.values() if text]
    if not found:
        raise AstroError("base_sft: no problem has a worked solution; give the file a field `solution`")
    return found


def _pretrain(run: Run, folder: epath.Path) -> None:
    c, a = run.c, run.c.architecture
    tokenizer = countdown_tokenizer(run.game.max_value)
    config = LlamaConfig(
        vocab_size=len(tokenizer), d_model=a.d_model, d_ff=a.d_ff, n_layers=a.n_layers, n_heads=a.n_heads,
        n_kv_heads=a.n_kv_heads, head_dim=a.d_model // a.n_heads, max_positions=a.max_positions, tie_embeddings=True,
    )  # fmt: skip
    params = llama_params.init(jax.random.key(c.seed), config)
    documents = map(tokenizer.encode, islice(_corpus(run, c.seed), c.corpus.documents))
    _train_sft(run, "base", c.pretrain, config, params, tokenizer, documents)


def _corpus(run: Run, seed: int) -> Iterator[str]:
    c = run.c.corpus
    pairs = countdown.corpus(run.game, seed, c.solved, c.drills, c.recall)
    return (prompt + response for prompt, response in pairs)


def search(run: Run) -> dict[str, Any]:
    """Grow a tree for each problem."""
    return searching.run(
        run.folder / "search", run.problems("search"), run.c.search, run.policy("base"), run.verifier, run.digest,
        run.part,
    )  # fmt: skip


def traces(run: Run) -> dict[str, Any]:
    """Linearize the trees and write them out in language, with a data card. A model is loaded only if one is asked."""
    c, folder, trees = run.c, run.folder / "traces", Shards(run.folder / "search", "trees")
    writer = TraceWriter(run.policy("base"), run.verifier, run.prompts) if dataset.needs_model(c.traces) else None
    tokenizer = tokenizers.load(str(run.folder / "base" / "model"), c.chat)
    counts = dataset.run(folder, trees, c.traces, c.seed, writer, tokenizer)
    distributed.assert_equal_across_processes("the traces", counts)
    origin = {"model": c.model, "seed": c.seed, "config": run.digest}
    card.write(folder, counts, trees, tokenizer, origin, run.problem_counts or None)
    return counts


def fine_tune(kind: str) -> Callable[[Run], None]:
    """SFT on the traces of one kind, "astro" or "direct"."""

    def stage(run: Run) -> None:
        config, params, tokenizer = run.load("base", run.train_sharding)
        examples = list(storage.read_jsonl(run.folder / "traces" / f"{kind}.jsonl"))
        if not examples:
            raise AstroError(
                f"{run.folder}: no trace was made: traces/counts.json says what each filter left; raise problems.search"
            )
        # Both kinds are mixed with the same documents of the base's corpus.
        replay = islice(_corpus(run, run.c.seed + 1), round(run.c.traces.replay * len(examples)))
        documents = [tokenizer.prompt(e["prompt"]) + tokenizer.encode_after(e["response"]) for e in examples]
        documents += map(tokenizer.encode, replay)
        _train_sft(run, f"{kind}-sft", run.c.sft, config, params, tokenizer, documents)

    return stage


def _train_sft(
    run: Run, name: str, c: cfg.Sft, config: LlamaConfig, params: Params, tokenizer: Tokenizer,
    texts: Iterable[list[int]],
) -> None:  # fmt: skip
    """Train on texts as tokens; an end token is appended to each."""
    folder, sharding = run.folder / name, run.train_sharding
    documents = [data.document([*tokens, tokenizer.eos_token_id], c.max_length) for tokens in texts]
    tokens = sum(len(d.tokens) for d in documents)
    steps = max(1, round(c.num_train_epochs * tokens / (c.batch_size * c.max_length)))
    batches = data.batches(documents, c.batch_size, c.max_length, run.c.seed, c.packing_strategy == "wrapped")
    tx = make_optimizer(c, steps)
    like = abstract_state(config, tx, sharding)
    step = make_step(sft.make_loss(c, config, sharding), tx, config, sharding)
    with contextlib.closing(batches):
        state = loop.run(
            folder, name, place(new_state(params, tx), like), like,
            lambda state, _: step(state, sharding.device_put(next(batches), "batch")), steps, c.save_steps,
            data=batches,
        )  # fmt: skip
    checkpoint.save(folder / "model", config, state.params, tokenizer)


def measure(run: Run) -> dict[str, Any]:
    """How often the base model solves each prompt that RL may draw: the same for both kinds of models."""
    p = run.c.problems
    if not p.difficulty_samples:
        raise AstroError("difficulty: set problems.difficulty_samples, the answers to each prompt")
    args = (p.difficulty_samples, run.c.eval, run.policy("base"), run.verifier)
    return difficulty.run(run.folder / "difficulty", run.problems("rl"), *args)


def _prompts(run: Run) -> tuple[list[Problem], dict[str, int]]:
    """The prompts of RL, where their difficulty was measured those that are moderately hard; and counts of them."""
    p, problems, left_out = run.c.problems, run.problems("rl"), dict[str, int]()
    if p.difficulty_samples:
        asked = (*p.rl_pass_rate, run.c.grpo.prompts_per_step)
        problems, left_out = difficulty.moderate(run.folder / "difficulty", problems, *asked)
    return problems, {"prompts": len(problems)} | left_out


def reinforce(kind: str) -> Callable[[Run], dict[str, Any]]:
    """GRPO from the SFT model of one kind."""

    def stage(run: Run) -> dict[str, Any]:
        c, name, sharding = run.c.grpo, f"{kind}-rl", run.train_sharding
        config, params, tokenizer = run.load(PARENT[name], sharding)
        tx = make_optimizer(c, c.max_steps * c.steps_per_generation)
        like = abstract_state(config, tx, sharding)
        problems, counts = _prompts(run)
        trainer = grpo.Trainer(c, name, problems, run.engine(config), tokenizer, run.verifier, tx, config, sharding)
        state = loop.run(
            run.folder / name, name, place(new_state(params, tx), like), like, trainer.step, c.max_steps, c.save_steps
        )
        checkpoint.save(run.folder / name / "model", config, state.params, tokenizer)
        return counts

    return stage


def evaluate(run: Run) -> None:
    """All models on the held-out problems; and Direct's majority vote with as many tokens as ASTRO's answers take."""
    folder, c, problems = run.folder / "eval", run.c.eval, run.problems("eval")
    entries: dict[str, Any] = {}
    for name in run.models():
        entries[name] = evaluation.run(folder, name, problems, c, run.policy(name), run.verifier)
    for direct, astro in (("direct-sft", "astro-sft"), ("direct-rl", "astro-rl")):
        if direct in entries and astro in entries:
            k = max(1, round(entries[astro]["mean_tokens"] / entries[direct]["mean_tokens"]))
            entries[direct]["maj"] = evaluation.vote(direct, problems, c, run.policy(direct), run.verifier, k)
    storage.write_json(folder / "models.json", entries)


def results(run: Run) -> dict[str, Any]:
    """results.json: the seed, the time of all stages, and each model's figures."""
    manifests = [storage.read_json(run.folder / s / "manifest.json") for s in planned(run.c) if s != "report"]
    wall = round(sum(m["wall_s"] for m in manifests), 1)
    found = {"seed": run.c.seed, "wall_s": wall, "models": storage.read_json(run.folder / "eval" / "models.json")}
    storage.write_json(run.folder / "results.json", found)
    return found


def write_report(run: Run) -> None:
    """results.json, and the page."""
    if distributed.is_main_process():  # the others have nothing to compute
        results(run)
        report.write(run.folder)


# Each stage with those that it rests on (evaluation: all models of the run).
STAGES: dict[str, tuple[Callable[[Run], Any], tuple[str, ...]]] = {
    "base": (base, ()),
    "search": (search, ("base",)),
    "traces": (traces, ("search",)),
    "direct-sft": (fine_tune("direct"), ("traces",)),
    "astro-sft": (fine_tune("astro"), ("traces",)),
    "difficulty": (measure, ("base",)),
    "direct-rl": (reinforce("direct"), ("direct-sft",)),
    "astro-rl": (reinforce("astro"), ("astro-sft",)),
    "eval": (evaluate, ()),
    "report": (write_report, ("eval",)),
}


def execute(c: cfg.Config, command: str = "", only: tuple[str, ...] = (), part: Shard = (0, 1)) -> Run:
    """Run a config's stages in order, or only some of them; what is finished is skipped.

    Args:
      part: (i, n), of the search only: the i-th of n processes that share it.
    """
    stages = only or planned(c)
    for stage in stages:
        if stage not in STAGES:
            raise AstroError(f"stages: no stage {stage!r}; there are {', '.join(STAGES)}")
    run = Run(c, command, part)
    for use, needed_by in (("search", {"search"}), ("rl", {"difficulty", "direct-rl", "astro-rl"}), ("eval", {"eval"})):
        if needed_by & set(stages):
            run.problems(use)  # too many asked for is an error now, not after hours
    if "traces" in stages:
        dataset.check(c.traces, run.problems("search"))
    with contextlib.closing(run.verifier):
        for stage in stages:
            run.execute(stage)
            distributed.assert_equal_across_processes(f"{stage} is done")
            log(f"{stage}{f' {part[0]}/{part[1]}' * (part[1] > 1)} done")
    return run


def planned(c: cfg.Config) -> tuple[str, ...]:
    """The stages of a whole run: those of the config, and before RL the difficulty of its prompts, where asked for."""
    if not c.problems.difficulty_samples or "difficulty" in c.stages:
        return c.stages
    first = next((i for i, s in enumerate(c.stages) if s.endswith("-rl")), len(c.stages))
    return (*c.stages[:first], "difficulty", *c.stages[first:])


def _differences(theirs: dict[str, Any], mine: dict[str, Any], prefix: str = "") -> str:
    """The first keys in which two configs differ, for people."""
    found = []
    for key in sorted(theirs.keys() | mine.keys()):
        a, b = theirs.get(key), mine.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := _differences(a, b, f"{prefix}{key}."):
                found.append(inner)
        elif a != b and f"{prefix}{key}" != "out":
            found.append(f"{prefix}{key} is {a} there, {b} here")
    return ", ".join(found[:3])
