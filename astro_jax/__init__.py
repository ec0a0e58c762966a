"""ASTRO for JAX: teach a Llama to reason by search inside its own answer (arXiv 2507.00417)."""

__version__ = "0.3.0.dev0"
