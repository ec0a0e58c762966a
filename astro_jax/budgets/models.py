"""The models of `astro budgets`: the two models of a run, or models by name, each with its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from etils import epath

from astro_jax import config as cfg
from astro_jax import stage_folder, storage
from astro_jax.errors import AstroError
from astro_jax.evaluate import model_suites
from astro_jax.llama import paths

_PAIRS = (("astro-rl", "direct-rl"), ("astro-sft", "direct-sft"))
_STEP_TOKENS = 256  # most tokens of a step, for a model of no run


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that is measured.

    Attributes:
      name: in tables, and of its folder.
      folder: its files.
      of_run: the config of its run; None for a model of no run.
    """

    name: str
    folder: epath.Path
    of_run: cfg.Config | None

    def config(self, overrides: Sequence[str]) -> cfg.Config:
        """The settings with which the model is measured: those of its run, its chat format, and then the overrides.

        Without a run, a step of the tree search is a line, and a rollout may be as long as an answer.
        """
        chat = model_suites.settings_of(self.folder, self.of_run)
        if self.of_run is not None:
            return cfg.parse(self.of_run.model_dump(mode="json"), self.name, [*chat, *overrides])
        tokens = cfg.load(None, overrides).eval.max_tokens
        steps = ['search.step_end="\\n"', f"search.max_step_tokens={min(_STEP_TOKENS, tokens)}",
                 f"search.max_rollout_tokens={tokens}"]  # fmt: skip
        return cfg.load(None, [*chat, *steps, *overrides])


def find(names: Sequence[str]) -> list[Model]:
    """Find models by name. The folder of a run stands for its ASTRO and its Direct model, after RL if it has them.

    Raises:
      AstroError: for a name that is no run and no model, a run without the two models, and two models of one name.
    """
    models: list[Model] = []
    for name in names:
        run = storage.absolute(name)
        models += _of_run(run) if is_run(run) else [_by_name(name)]
    listed = [m.name for m in models]
    if repeated := next((name for name in listed if listed.count(name) > 1), None):
        raise AstroError(f"budgets: the model {repeated} comes twice; give each model once")
    return models


def is_run(folder: epath.Path) -> bool:
    """Whether a folder holds a run, and not a model."""
    path = folder / "config.json"
    return path.exists() and "config" in storage.read_json(path)


def _of_run(run: epath.Path) -> list[Model]:
    for pair in _PAIRS:
        folders = [stage_folder.resolve(run, stage) for stage in pair]
        if all((folder / stage_folder.MANIFEST).exists() for folder in folders):
            of_run = model_suites.run_config(folders[0] / "model", run)
            return [Model(stage, folder / "model", of_run) for stage, folder in zip(pair, folders, strict=True)]
    wanted = " or ".join(" and ".join(pair) for pair in _PAIRS)
    raise AstroError(f"{run}: has not finished {wanted}; name two models, as in {run}/astro-sft/model {run}/base/model")


def _by_name(name: str) -> Model:
    folder = paths.resolve(name, download=True)
    return Model(model_suites.folder_name(name), folder, model_suites.run_config(folder))
