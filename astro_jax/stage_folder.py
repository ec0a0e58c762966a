"""The folder of one stage: its inputs, its manifest, and where its results are.

The results of a stage lie in one of three places:

    RUN/STAGE                      made by this run
    RUN/STAGE/reference.json       in the folder of another run, which this file names
    RUN/previous/STAGE-DIGEST      put aside, because the stage ran again with other inputs

A digest of the inputs tells whether results can be kept (`Inputs.digest`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import pydantic
from etils import epath

from astro_jax import config as cfg
from astro_jax import distributed, storage
from astro_jax.errors import AstroError
from astro_jax.storage import Json

INPUTS, MANIFEST, REFERENCE, PREVIOUS = "inputs.json", "manifest.json", "reference.json", "previous"


class Inputs(pydantic.BaseModel, frozen=True):
    """What the results of a stage depend on.

    Attributes:
      stage: its name.
      keys: the values of the config keys that change its results, by dotted name.
      contents: hashes of other inputs, such as the problems and the files of the base model.
      parents: the digests of its parents.
      settings: further keys that it reads. They change no result, or only the rounding, or their effect is in
        `contents`.
    """

    stage: str
    keys: dict[str, Any]
    contents: dict[str, str]
    parents: dict[str, str]
    settings: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """A hash of all but `settings`. 16 hexadecimal digits."""
        return content_hash([self.stage, self.keys, self.contents, self.parents])

    def rounding_changes(self, values: Mapping[str, Any]) -> list[str]:
        """Return the keys that change only the rounding, and whose value here differs from `values`."""
        settings = self.settings.items()
        return [k for k, v in settings if cfg.effect(k) == "rounding" and values.get(k, v) != v]

    def changes_from(self, old: Inputs) -> str:
        """Say in which inputs this stage differs from an older one, as in "grpo.learning_rate was 2e-07".

        Names at most three keys. A changed problem set is explained by the keys of `problems` that differ.
        """
        before, now = old.keys | old.settings, self.keys | self.settings
        changed = [name for name in self.contents if self.contents[name] != old.contents.get(name)]
        shown = [key for key in {**self.keys, **old.keys} if self.keys.get(key) != old.keys.get(key)]
        if any(name.startswith("problems") for name in changed):
            shown += [key for key in now if key.startswith("problems.") and now[key] != before.get(key)]
        texts = [f"{key} was {json.dumps(before.get(key))}" for key in dict.fromkeys(shown)]
        texts += [f"the content of {name} changed" for name in changed if not texts]
        texts += [f"{name} changed" for name, digest in self.parents.items() if old.parents.get(name) != digest]
        return ", ".join(texts[:3]) or "its inputs changed"


def content_hash(value: Any) -> str:
    """Hash a JSON value. 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# ---- Writing


def begin(folder: epath.Path, inputs: Inputs) -> None:
    """Write inputs.json, before the first result of a stage."""
    storage.write_json(folder / INPUTS, inputs.model_dump(mode="json"))


def finish(folder: epath.Path, inputs: Inputs, wall_s: float, **counts: Any) -> None:
    """Write manifest.json, which marks a stage as finished.

    Args:
      folder: of the stage.
      inputs: what its results depend on.
      wall_s: seconds that the stage took.
      counts: further fields of the manifest.
    """
    manifest = {"stage": inputs.stage, "digest": inputs.digest, "parents": list(inputs.parents)}
    versions = {"versions": storage.versions()}
    storage.write_json(folder / MANIFEST, manifest | {"wall_s": round(wall_s, 2)} | counts | versions)


def refer(run: epath.Path, stage: str, other: epath.Path, digest: str) -> None:
    """Make RUN/STAGE stand for the results of another run. Nothing is copied."""
    path = str(other) if storage.is_remote(other) or storage.is_remote(run) else os.path.relpath(other, run)
    storage.write_json(run / stage / REFERENCE, {"run": path, "digest": digest})


def put_aside(run: epath.Path, stage: str) -> None:
    """Move the results of a stage to RUN/previous, where `restore` finds them. A reference is removed."""
    folder = run / stage
    if not folder.exists() or not distributed.is_main_process():
        return
    inputs = read_inputs(folder)
    if inputs is None:
        folder.rmtree()
        return
    target = previous(run, stage, inputs.digest)
    if target.exists() and not storage.is_remote(target):  # in a bucket: what a stopped move has moved
        target.rmtree()
    storage.move(folder, target, last=(MANIFEST, INPUTS))


def restore(run: epath.Path, stage: str, digest: str) -> None:
    """Move results that were put aside back to RUN/STAGE."""
    if distributed.is_main_process():
        folder = run / stage
        # In a bucket a folder without its inputs is what a stopped `restore` has moved.
        if not storage.is_remote(run) or any((folder / name).exists() for name in (INPUTS, REFERENCE)):
            put_aside(run, stage)
        storage.move(previous(run, stage, digest), folder, last=(INPUTS, MANIFEST))


# ---- Reading


def read_inputs(folder: epath.Path) -> Inputs | None:
    """Read inputs.json; None where the folder has none."""
    return Inputs(**storage.read_json(folder / INPUTS)) if (folder / INPUTS).exists() else None


def digest_of(folder: epath.Path) -> str | None:
    """The digest of the finished results in a folder; None if the stage has not finished there."""
    path = folder / MANIFEST
    return storage.read_json(path).get("digest") if path.exists() else None


def previous(run: epath.Path, stage: str, digest: str) -> epath.Path:
    """Return the folder for results with this digest that were put aside. It need not exist."""
    return run / PREVIOUS / f"{stage.replace('/', '-')}-{digest}"


def locate(run: epath.Path, stage: str, digest: str) -> epath.Path | None:
    """Return the folder with the finished results of a digest: of this run, referred to, or put aside.

    Raises:
      AstroError: when a reference with this digest leads nowhere.
    """
    reference = _reference(run / stage)
    if reference is not None and reference["digest"] == digest:
        return _follow(run / stage, reference)
    for folder in (run / stage, previous(run, stage, digest)):
        if digest_of(folder) == digest:
            return folder
    return None


def resolve(run: epath.Path, stage: str) -> epath.Path:
    """Return the folder that holds the results of a stage: RUN/STAGE, or the folder that its reference names.

    Raises:
      AstroError: when the reference leads nowhere.
    """
    reference = _reference(run / stage)
    return run / stage if reference is None else _follow(run / stage, reference)


def other_run(run: epath.Path, stage: str) -> str | None:
    """The run that a stage is kept from, as its reference names it; None for a stage of this run."""
    reference = _reference(run / stage)
    return None if reference is None else reference["run"]


def follow(path: epath.Path) -> epath.Path:
    """Return where a path inside a run really is: RUN/STAGE/model of a stage that is kept from another run.

    A path without a reference above it is returned unchanged.
    """
    # Neither "/" nor "gs://" is a run.
    for folder in [parent for parent in list(path.parents)[:2] if not os.fspath(parent).endswith("/")]:
        if (reference := _reference(folder)) is not None:
            return _follow(folder, reference) / path.relative_to(folder)
    return path


def _reference(folder: epath.Path) -> Json | None:
    path = folder / REFERENCE
    return storage.read_json(path) if path.exists() else None


def _follow(folder: epath.Path, reference: Json) -> epath.Path:
    """The folder that a reference of RUN/STAGE names."""
    run, stage = _split(folder)
    other = epath.Path(reference["run"])
    if not storage.is_remote(other) and not other.is_absolute():
        other = epath.Path(os.path.normpath(run / other))
    target = locate(other, stage, reference["digest"])
    if target is None:
        raise AstroError(
            f"{run}: {stage} is kept from {other}, which no longer holds these results (moved, deleted or run again); "
            f"say where they are with from=DIR, or remove {folder} to make them again"
        )
    return target


def _split(folder: epath.Path) -> tuple[epath.Path, str]:
    """RUN/eval/base as (RUN, "eval/base"), and RUN/search as (RUN, "search")."""
    if folder.parent.name == "eval":
        return folder.parent.parent, f"eval/{folder.name}"
    return folder.parent, folder.name
