"""Sweeps: variants of a config, each compared with the default over the same seeds and problems (`astro sweep`).

`variants` makes the configs, `run` runs them without repeating a stage, `compare` computes the differences and `page`
shows them.
"""
