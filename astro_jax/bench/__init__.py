"""Benchmarks: `sampler` measures the inference engine, `search` measures what a search budget gives."""
