"""The variants of a sweep: the default, and changes of it, one at a time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import yaml
from etils import epath

from astro_jax import config as cfg
from astro_jax.errors import AstroError
from astro_jax.stage_folder import content_hash

DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
      name: as tables show it: "default", "search.c_puct=1" or the name of a file.
      config: a recipe or a YAML file.
      overrides: key=value each, after those of the whole sweep.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its folder. Names that need other characters end with a hash: `+*` and `+/` have two folders."""
        plain = re.sub(r"[^\w.=-]+", "_", self.name)
        return plain if plain == self.name else f"{plain}-{content_hash(self.name)[:6]}"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: a variant with a seed.

    Attributes:
      variant: the variant.
      seed: the seed.
      c: its config. `out` is its folder inside the sweep's.
    """

    variant: Variant
    seed: int
    c: cfg.Config


def parse(config: str, vary: Sequence[str]) -> list[Variant]:
    """Read the `--vary` options.

    Args:
      config: the default, a recipe or a YAML file.
      vary: "KEY=a,b,c" for a variant of each value, or a YAML file or recipe for one variant.

    Returns:
      the default, then the variants in order.

    Raises:
      AstroError: for an option without a key or a value, and for two variants of one name.
    """
    variants = [Variant(DEFAULT, config)]
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals:
            name = epath.Path(text).stem if text.endswith(".yaml") else text
            variants.append(Variant(name, text))
            continue
        if not key or not (parts := _split(values)):
            raise AstroError(f"--vary {text}: write KEY=a,b,c, or the name of a YAML file or recipe")
        variants += [Variant(f"{key}={value}", config, (f"{key}={value}",)) for value in parts]
    names = [variant.name for variant in variants]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise AstroError(f"--vary: {repeated} comes twice; give each variant once")
    return variants


def _split(values: str) -> list[str]:
    """Split a YAML list that stands without its brackets: "1,[2, 3]" has two values. Empty for no list."""
    text = f"[{values}]"
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return []
    assert isinstance(node, yaml.SequenceNode)
    if values.rstrip().endswith(","):  # YAML allows it; here a value is missing
        return []
    return [text[item.start_mark.index : item.end_mark.index] for item in node.value]


def make_runs(
    out: epath.Path, variants: Sequence[Variant], seeds: Sequence[int], overrides: Sequence[str]
) -> list[Run]:
    """Make the runs of a sweep, the default's first. A run keeps stages of its own `from` and of all runs before it.

    Args:
      out: the sweep's folder.
      seeds: the seeds of each variant.
      overrides: "key=value" for all runs.

    Raises:
      AstroError: for a config that cannot be read, a seed that comes twice, and a seed among the overrides.
    """
    if len(set(seeds)) < len(seeds):
        raise AstroError(f"--seeds {','.join(map(str, seeds))}: give each seed once")
    for change in (*overrides, *(x for variant in variants for x in variant.overrides)):
        if change.startswith("seed="):
            raise AstroError(f"{change}: the seeds of a sweep are those of --seeds, as in --seeds 0,1,2")
    runs: list[Run] = []
    for variant in variants:
        for seed in seeds:
            changes = [*overrides, *variant.overrides, f"seed={seed}", f"out={out / variant.folder / f'seed-{seed}'}"]
            earlier = [run.c.out for run in runs if run.seed == seed or run.variant == variant]
            c = cfg.load(variant.config, changes)
            runs.append(Run(variant, seed, c.model_copy(update={"from_runs": (*c.from_runs, *earlier)})))
    return runs
