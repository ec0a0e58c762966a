"""A run's typed configuration: YAML files with bases and overrides, checked key by key.

    from astro_jax import config as cfg
    c = cfg.load("quickstart", ["seed=7", "sft.num_train_epochs=2"])

`sections` declares the keys; `files` reads YAML; `renamed` knows the keys of older versions.
"""

from astro_jax.config.files import RECIPES, load, parse, recipes
from astro_jax.config.sections import (
    Architecture,
    Chat,
    Config,
    Corpus,
    EarlyStop,
    Eval,
    Grpo,
    Gym,
    Mesh,
    Problems,
    Sampler,
    Search,
    Section,
    Sft,
    Traces,
    Training,
    Verify,
    key_names,
    sections,
)

__all__ = [
    "RECIPES",
    "Architecture",
    "Chat",
    "Config",
    "Corpus",
    "EarlyStop",
    "Eval",
    "Grpo",
    "Gym",
    "Mesh",
    "Problems",
    "Sampler",
    "Search",
    "Section",
    "Sft",
    "Traces",
    "Training",
    "Verify",
    "key_names",
    "load",
    "parse",
    "recipes",
    "sections",
]
