"""Which stages of a run are kept and which run: compares the digests of their inputs with the folders of runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Literal

from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, prompts, stage_folder, stage_inputs, storage
from astro_jax.errors import AstroError
from astro_jax.llama import paths
from astro_jax.run_context import RunContext
from astro_jax.search.store import shards
from astro_jax.stage_folder import Inputs
from astro_jax.train import rewards

State = Literal["kept", "put aside", "other run", "begun", "begun aside", "new"]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """The plan for one stage.

    Attributes:
      inputs: what its results depend on.
      state: where its results are. "kept": in the run. "put aside": in RUN/previous. "other run": in `other`. "begun":
        in the run, not finished. "begun aside": in RUN/previous, not finished. "new": nowhere.
      note: the state in words, as in "runs again, grpo.learning_rate was 2e-07".
      other: the run that has the results.
    """

    inputs: Inputs
    state: State
    note: str
    other: epath.Path | None = None

    @property
    def runs(self) -> bool:
        """Whether the stage has work to do."""
        return self.state in ("begun", "begun aside", "new")


def plan(run: RunContext, names: Sequence[str]) -> dict[str, StagePlan]:
    """Plan stages and their ancestors, each after its parents. Nothing is written.

    Raises:
      AstroError: for an input that cannot be read, a run to keep from that does not exist, and a reference that leads
        nowhere.
    """
    others = [_other_run(run, name) for name in run.c.from_runs]
    inputs = stage_inputs.of_run(run.c, names, lambda name: content(run, name))
    return {name: _plan_stage(run.folder, name, inputs[name], others) for name in inputs}


def adopt(run: epath.Path, stage: StagePlan) -> None:
    """Make results that can be kept stand at RUN/STAGE. Put aside results of other inputs before the stage runs."""
    if not distributed.is_main_process():  # the others would read what it moves
        return
    name, digest = stage.inputs.stage, stage.inputs.digest
    if stage.state in ("put aside", "begun aside"):
        stage_folder.restore(run, name, digest)
    elif stage.state in ("other run", "new"):
        old = stage_folder.read_inputs(run / name)
        # Another shard of the search may have begun this stage since the plan was made.
        if stage.other is not None or old is None or old.digest != digest:
            stage_folder.put_aside(run, name)
        if stage.other is not None:
            stage_folder.refer(run, name, stage.other, digest)


def _plan_stage(run: epath.Path, name: str, inputs: Inputs, others: Sequence[epath.Path]) -> StagePlan:
    digest, folder = inputs.digest, run / name
    previous = stage_folder.previous(run, name, digest)
    found = lost = None
    try:
        found = stage_folder.locate(run, name, digest)
    except AstroError as e:
        lost = e
    # The files of a report lie in the folder of the run, and belong to this run alone.
    is_whole = name != "report" or all((run / file).exists() for file in ("results.json", "report.html"))
    if found == folder and is_whole:
        return StagePlan(inputs, "kept", "kept" + _rounding(folder, inputs))
    if name == "report":
        return StagePlan(inputs, "new", _reason(folder, inputs))
    if found == previous:
        return StagePlan(inputs, "put aside", "kept, made before" + _rounding(previous, inputs))
    if found is not None:
        return StagePlan(inputs, "kept", f"kept from {found}" + _rounding(found, inputs))
    for other in others:
        if (found := stage_folder.locate(other, name, digest)) is not None:
            return StagePlan(inputs, "other run", f"kept from {other}" + _rounding(found, inputs), other)
    if lost is not None:
        raise lost
    old = stage_folder.read_inputs(folder)
    if old is not None and old.digest == digest:
        return StagePlan(inputs, "begun", "goes on")
    if previous.exists():
        return StagePlan(inputs, "begun aside", "goes on, begun before")
    if old is not None and stage_folder.digest_of(folder) is None and _differs_in_reward(old, inputs):
        return StagePlan(inputs, "begun", "goes on, with a changed reward function")
    return StagePlan(inputs, "new", _reason(folder, inputs))


def _differs_in_reward(old: Inputs, new: Inputs) -> bool:
    """Whether two inputs differ only in the file of the reward function, which may be corrected during a run."""
    same = old.model_copy(update={"contents": old.contents | {"reward": new.contents.get("reward")}})
    return "reward" in old.contents and same.digest == new.digest


def _reason(folder: epath.Path, inputs: Inputs) -> str:
    """Say why a stage runs."""
    old = stage_folder.read_inputs(folder)
    if old is None:
        return "runs"
    return f"runs again, {inputs.changes_from(old)}" if old.digest != inputs.digest else "goes on"


def _rounding(folder: epath.Path, inputs: Inputs) -> str:
    """Name the keys in which kept results may differ by rounding from results of this config."""
    old = stage_folder.read_inputs(folder)
    before = {} if old is None else old.settings
    changed = ", ".join(f"{key} was {before[key]}" for key in inputs.rounding_changes(before))
    return f" (by rounding it may differ: {changed})" if changed else ""


def _other_run(run: RunContext, name: str) -> epath.Path:
    other = storage.absolute(name)
    if other == run.folder:
        raise AstroError(f"from={name}: is the folder of this run; name another run")
    if not (other / "config.json").exists():
        raise AstroError(f"from={name}: no run is there; give the folder of a run, as in from=runs/quickstart")
    return other


def content(run: RunContext, name: str) -> str:
    """Hash an input that is no key of the config."""
    if name == "prompts":
        return stage_folder.content_hash({key: run.prompts[key].source for key in prompts.OF_TRACES})
    if name == "prompts.evaluate":
        return stage_folder.content_hash(run.prompts["evaluate"].source)
    if name == "verify.judge.model":
        assert run.c.verify.judge is not None
        return storage.fingerprint(paths.resolve(run.c.verify.judge.model, download=True))
    if name == "model":
        return _model_content(run)
    if name == "reward":
        with contextlib.closing(rewards.user_reward(run.c, str(run.c.grpo.reward), run.problems("rl"))) as reward:
            return reward.check()[:16]
    if name in ("examples", "trees"):
        path = stage_folder.follow(storage.absolute(getattr(run.c, name)))
        if not path.exists():
            raise AstroError(f"{name}={path}: is not there; give an existing path")
        if name == "trees" and not shards(path).paths():
            raise AstroError(f"{name}={path}: no trees; name the folder of a search, as in RUN/search")
        return storage.fingerprint(path)
    if name == "suites":
        return stage_folder.content_hash([suite.digest for suite in run.suites])
    if name == "problems.rl_candidates":
        return stage_folder.content_hash(repr(run.draws.rl_candidates()))
    use = next(use for use in cfg.USES if name == f"problems.{use}")
    return stage_folder.content_hash(repr(run.problems(use)))


def _model_content(run: RunContext) -> str:
    """Hash the files of the base model. A finished base stands for a model whose files are no longer there."""
    try:
        return storage.fingerprint(paths.resolve(run.c.model, download=True))
    except AstroError:
        if (base := finished_base(run.folder, run.c.model)) is None:
            raise
        return base[1].contents["model"]


def finished_base(run: epath.Path, model: str) -> tuple[epath.Path, Inputs] | None:
    """The folder and the inputs of a run's finished base, if it was made from this model."""
    base = stage_folder.resolve(run, "base")
    inputs = stage_folder.read_inputs(base)
    if inputs is None or stage_folder.digest_of(base) is None or inputs.settings.get("model") != model:
        return None
    return base, inputs
