"""The context of one run: its folder, configuration, devices, problems, models and verifier."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, prompts, stage_folder, storage
from astro_jax import mesh as meshes
from astro_jax.errors import AstroError
from astro_jax.judge import RunJudge
from astro_jax.llama import checkpoint
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.config import LlamaConfig
from astro_jax.llama.params import Params
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.policy import Policy
from astro_jax.problems import source, suites
from astro_jax.problems.draws import Draws
from astro_jax.problems.suites import Suite
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
      judge: the model of `verify.judge`; None without one.
      verifier: judges answers.
      game: the rules of Countdown.

    Raises:
      AstroError: for a prompt file that cannot be used, a mesh of too many devices, impossible rules of Countdown,
        and a folder that holds something else.
    """

    def __init__(self, c: cfg.Config, command: str = "", shard: tuple[int, int] = (0, 1)):
        self.c, self.folder, self.command, self.shard = c, storage.absolute(c.out), command, shard
        self.prompts = prompts.load(c.prompts)
        self._check_folder()
        meshes.set_cpu_device_count(c.mesh.num_devices)
        mesh = meshes.make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tp)
        self.train_sharding = meshes.train_sharding(mesh, c.attention)
        self.decode_sharding = meshes.decode_sharding(mesh, c.attention)
        self.judge = RunJudge(c, self.prompts["evaluate"], self.decode_sharding) if c.verify.judge is not None else None
        self.verifier = Verifier(c.verify, self.judge)
        self.game = self.draws.game

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

    def engine(self, config: LlamaConfig, c: cfg.Sampler | None = None) -> Engine:
        """Make the inference engine of a model of this shape.

        Args:
          c: its settings; default those of the config.
        """
        return Engine.from_config(c or self.c.sampler, config, self.decode_sharding, self.c.seed)

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
        engine = self.engine(config)
        return Policy(engine, engine.quantize(params), tokenizer)

    def problems(self, use: cfg.Use) -> list[Problem]:
        """Draw the problems of one use (`Draws.draw`): "search", "rl" or "eval".

        Raises:
          AstroError: when the config asks for more problems than the source has.
        """
        return self.draws.draw(use)

    @functools.cached_property
    def draws(self) -> Draws:
        """Draws the problems of the run. Logs how many problems the sources left out."""
        draws = Draws.of(self.c.problems, self.c.seed)
        if source.has_source(draws.c):
            source.log_counts(draws.c, draws.problem_set.counts)
        return draws

    @functools.cached_property
    def suites(self) -> list[Suite]:
        """The suites that the models are evaluated on.

        Raises:
          AstroError: when a suite cannot be read.
        """
        return [suites.load(spec, self.c.eval.limit) for spec in self.c.eval.suites]

    @property
    def problem_counts(self) -> dict[str, Any]:
        """How many problems were read, skipped, dropped and drawn for search; empty for Countdown."""
        return self.draws.counts("search") if source.has_source(self.c.problems) else {}
