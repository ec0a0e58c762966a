"""A run's typed configuration: YAML files with bases and overrides, checked key by key.

    from astro_jax import config as cfg
    c = cfg.load("quickstart", ["seed=7", "sft.num_train_epochs=2"])

`sections` and `problems` declare the keys; `files` reads YAML; `renamed` knows the keys of older versions.
"""

from astro_jax.config.files import RECIPES, load, parse, recipes
from astro_jax.config.grpo import Grpo
from astro_jax.config.guard import GUARD_METRICS, Guard, GuardRule
from astro_jax.config.keys import Effect, Section, key_names
from astro_jax.config.problems import SOURCE_KINDS, USES, Gym, ListedSource, Problems, Source, Use
from astro_jax.config.sections import (
    Architecture,
    Chat,
    Config,
    Corpus,
    EarlyStop,
    Eval,
    Judge,
    Lora,
    Mesh,
    Quantization,
    Sampler,
    Search,
    Sft,
    Traces,
    Verify,
    effect,
    flatten,
    sections,
)
from astro_jax.config.training import Training

__all__ = [
    "GUARD_METRICS",
    "RECIPES",
    "SOURCE_KINDS",
    "USES",
    "Architecture",
    "Chat",
    "Config",
    "Corpus",
    "EarlyStop",
    "Effect",
    "Eval",
    "Grpo",
    "Guard",
    "GuardRule",
    "Gym",
    "Judge",
    "ListedSource",
    "Lora",
    "Mesh",
    "Problems",
    "Quantization",
    "Sampler",
    "Search",
    "Section",
    "Sft",
    "Source",
    "Traces",
    "Training",
    "Use",
    "Verify",
    "effect",
    "flatten",
    "key_names",
    "load",
    "parse",
    "recipes",
    "sections",
]
