"""The context of one run: its folder, configuration, devices, problems, models and verifier."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from etils import epath

from astro_jax import config as cfg
from astro_jax import countdown, distributed, prompts, stage_folder, storage
from astro_jax import mesh as meshes
from astro_jax.errors import AstroError
from astro_jax.llama import attention, checkpoint
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.problems import source
from astro_jax.progress import log
from astro_jax.sampler import Engine
from astro_jax.types import Problem
from astro_jax.verify import Verifier


class RunContext:
    """What the stages of one run share. Creating it checks the configuration and writes nothing.

    Attributes:
      c: the configuration.
      folder: the run's folder.
      command: the command line, for config.json.
      shard: (i, n): this process has the i-th of n shards of the search; (0, 1) is all of it.
      prompts: the prompts of the model that writes traces.
      train_sharding, decode_sharding: how arrays are split over the mesh in training and in sampling.
      verifier: judges answers.
      game: the rules of Countdown.

    Raises:
      AstroError: for settings that exclude each other, and for a folder that holds something else.
    """

    def __init__(self, c: cfg.Config, command: str = "", shard: tuple[int, int] = (0, 1)):
        self.c, self.folder, self.command, self.shard = c, storage.absolute(c.out), command, shard
        self._problems: dict[str, list[Problem]] = {}
        self._check_settings()
        self.prompts = prompts.load(c.prompts)
        self._check_folder()
        meshes.set_cpu_device_count(c.mesh.data * c.mesh.fsdp * c.mesh.tp)
        mesh = meshes.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp)
        self.train_sharding = meshes.train_sharding(mesh, c.attention)
        self.decode_sharding = meshes.decode_sharding(mesh, c.attention)
        self._check_shapes()
        self.verifier = Verifier(c.verify)
        p = c.problems
        self.game = countdown.Game(p.count, p.max_number, p.max_value, p.ops, p.held_out)

    def _check_settings(self) -> None:
        """Refuse settings that the source of the problems does not allow."""
        if source.has_source(self.c.problems) and self.c.traces.replay:
            raise AstroError("traces.replay: only Countdown has a corpus to replay; set it to 0")
        if self.c.base_sft is not None and not source.has_source(self.c.problems):
            raise AstroError("base_sft: only problems from a source have worked solutions; set problems.path")

    def _check_shapes(self) -> None:
        """Check that the attention kernel takes all lengths, and that batches split evenly over the mesh."""
        c, devices = self.c, self.train_sharding.batch_size
        names = ("pretrain", "sft") if c.model == "scratch" else ("sft",)
        for length in (*(getattr(c, name).max_length for name in (*names, "grpo")), c.sampler.block_size):
            attention.choose_kernel(self.train_sharding, length)
        for name in names:
            if (batch := getattr(c, name).batch_size) % devices:
                raise AstroError(
                    f"{name}.batch_size={batch} cannot be split over mesh.data x mesh.fsdp = {devices} devices"
                )

    def _check_folder(self) -> None:
        """Check that the folder is new or holds a run, of this version."""
        path = self.folder / "config.json"
        if path.exists():
            if "hash" in storage.read_json(path):
                raise AstroError(
                    f"{self.folder}: holds a run of astro_jax 0.2 or older, without digests of its stages' inputs; "
                    "nothing was changed, choose another folder with out=DIR. A new run can begin with its models, "
                    f"as in model={self.folder}/base/model"
                )
            return
        if self.folder.exists() and (not self.folder.is_dir() or {p.name for p in self.folder.iterdir()} - {".lock"}):
            raise AstroError(f"{self.folder}: not empty and not a run; choose another folder with out=DIR")

    def claim_folder(self) -> None:
        """Write config.json, unless the folder has it. All processes must see the folder."""
        path = self.folder / "config.json"
        record = {"command": self.command, "config": self.c.model_dump(mode="json")}
        if not path.exists() or storage.read_json(path).get("config") != record["config"]:
            storage.write_json(path, record)
        distributed.assert_equal_across_processes("the run's folder")
        if not path.exists():
            raise AstroError(f"{self.folder}: this process does not see it; out must be a folder that all share")

    def folder_of(self, stage: str) -> epath.Path:
        """Return the folder that holds the results of a stage, which may lie in another run."""
        return stage_folder.resolve(self.folder, stage)

    def engine(self, config: LlamaConfig) -> Engine:
        """Make the inference engine of a model of this shape."""
        return Engine.from_config(self.c.sampler, config, self.decode_sharding, self.c.seed)

    def load(
        self, model: str, sharding: meshes.Sharding, dtype: str = "float32"
    ) -> tuple[LlamaConfig, Params, Tokenizer]:
        """Load the model of a finished stage: its shape, parameters and tokenizer."""
        folder = self.folder_of(model) / "model"
        config, params = checkpoint.load(folder, sharding, jnp.dtype(dtype))
        return config, params, tokenizers.load(str(folder), self.c.chat)

    def policy(self, model: str) -> Policy:
        """Load the model of a finished stage with an engine, ready to sample from."""
        config, params, tokenizer = self.load(model, self.decode_sharding, self.c.sampler.dtype)
        return Policy(self.engine(config), params, tokenizer)

    def problems(self, use: str) -> list[Problem]:
        """Draw the problems of one use: "search" and "rl" from the training side of the split, "eval" from the other.

        Raises:
          AstroError: when the config asks for more problems than the source has.
        """
        if use not in self._problems:
            self._problems[use] = self._draw(use)
        return self._problems[use]

    def _draw(self, use: str) -> list[Problem]:
        p, n, held_out = self.c.problems, getattr(self.c.problems, use), use == "eval"
        if source.has_source(p):
            return self.source.draw(n, self.c.seed, evaluation=held_out)
        return countdown.problems(self.game, n, self.c.seed, held_out=held_out)

    @functools.cached_property
    def source(self) -> source.ProblemSet:
        """The problems of a file, a data set or reasoning-gym."""
        problems = source.load(self.c.problems, self.c.seed)
        left_out = problems.counts["skipped"] | problems.counts["dropped"]
        if reasons := ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n):
            log(f"problems: {len(problems.training)} for training, left out: {reasons}")
        return problems

    @property
    def problem_counts(self) -> dict[str, Any]:
        """How many problems were read, skipped and dropped; empty for Countdown."""
        return self.source.counts if source.has_source(self.c.problems) else {}
