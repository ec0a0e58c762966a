"""Python functions for one thing at a time, without a run: search a problem, fine-tune on own data, evaluate a model.

To load a model use `llama.load`, to generate text `Policy.load`. docs/python-api.md has an example of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from astro_jax import config as cfg
from astro_jax import mesh, storage
from astro_jax.errors import AstroError
from astro_jax.evaluate import run as evaluation
from astro_jax.llama import checkpoint
from astro_jax.llama import tokenizer as tokenizers
from astro_jax.llama.params import Params
from astro_jax.policy import Policy
from astro_jax.search import run as searching
from astro_jax.search.tree import Node, Tree
from astro_jax.stage_folder import content_hash
from astro_jax.train import sft
from astro_jax.train.data import Example
from astro_jax.types import Problem
from astro_jax.verify import Verifier


def search(policy: Policy, problem: Problem, c: cfg.Search | None = None) -> Tree:
    """Build the search tree of one problem (paper, section 2.2).

    Args:
      policy: proposes steps and makes rollouts.
      problem: the problem.
      c: the settings; without them, the paper's.
    """
    with contextlib.closing(Verifier()) as verifier:
        (tree,) = searching.search([problem], c or cfg.Search(), policy, verifier)
    return tree


def format_tree(tree: Tree) -> str:
    """Write a tree as text, one node a line, children below their parent.

    Returns:
      the problem, then lines such as `  N=3 Q=0.67 P=0.25  6 * 3 = 18, left 11 18.`, with the visit count N, the value
      Q and the prior P of the step. Terminals end with "(correct)" or "(wrong)".
    """
    lines = [tree.problem.prompt.strip()]

    def visit(node: Node, depth: int) -> None:
        verdict = ("  (correct)" if node.correct else "  (wrong)") if node.terminal else ""
        lines.append(
            f"{'  ' * depth}N={node.visits} Q={node.value:.2f} P={node.prior:.2f}  {node.text.strip()}{verdict}"
        )
        for child in node.children:
            visit(tree.nodes[child], depth + 1)

    for child in tree.nodes[0].children:
        visit(tree.nodes[child], 1)
    return "\n".join(lines)


def fine_tune(
    model: str,
    examples: Iterable[tuple[str, str]],
    folder: str | os.PathLike[str],
    c: cfg.Sft | None = None,
    seed: int = 0,
) -> str:
    """Fine-tune a model on prompts and responses, on one device.

    A call that was stopped continues from its last checkpoint in `folder`, and one that has ended is not made again.

    Args:
      model: a checkpoint, a Hugging Face folder, or a model that ships with the package.
      examples: (prompt, response) pairs.
      folder: where checkpoints, metrics.jsonl and the model are written.
      c: the settings; without them, the paper's.
      seed: of the order of the examples.

    Returns:
      the folder of the new model, for `Policy.load`.

    Raises:
      AstroError: when `folder` holds results of another model, other examples or other settings.
    """
    sharding = mesh.train_sharding(mesh.make_mesh())
    config, params = checkpoint.load(model, sharding)
    tokenizer = tokenizers.load(model)
    pairs = [Example(tokenizer.prompt(prompt), tokenizer.encode_after(response)) for prompt, response in examples]
    path, c = storage.absolute(os.fspath(folder)), c or cfg.Sft()
    inputs = {"examples": content_hash(list(map(repr, pairs))), "settings": content_hash([repr(c), seed])}
    _claim(path, model=_digest(params), **inputs)
    sft.train(path, c, config, params, tokenizer, pairs, sharding, seed)
    return str(path / "model")


def evaluate(
    policy: Policy, problems: Sequence[Problem], folder: str | os.PathLike[str], c: cfg.Eval | None = None
) -> dict[str, Any]:
    """Answer each problem once at temperature 1 and once greedily, and judge the answers.

    Args:
      policy: the model.
      problems: the problems.
      folder: where the answers are written: answers-*.jsonl. Problems of a file that exists are not answered again.
      c: the settings.

    Returns:
      `pass@1` and `greedy`, each with mean, low and high (95% interval), and mean tokens and backtracks.

    Raises:
      AstroError: when `folder` holds answers of another model, to other problems or under other settings.
    """
    path, c = storage.absolute(os.fspath(folder)), c or cfg.Eval()
    settings = content_hash([repr(c), policy.engine.seed])
    _claim(path, model=_digest(policy.params), problems=content_hash(list(map(repr, problems))), settings=settings)
    with contextlib.closing(Verifier()) as verifier:
        return evaluation.run(path, "model", problems, c, policy, verifier)


def _digest(params: Params) -> str:
    """Hash parameters: up to 65,536 numbers of each array."""
    leaves = [np.ravel(jax.device_get(x.reshape(-1)[:: -(-x.size // 65536)])) for x in jax.tree.leaves(params)]
    return hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()[:16]


def _claim(folder: epath.Path, **inputs: str) -> None:
    """Write the hashes of a call's inputs, or refuse the folder of other inputs."""
    path = folder / "inputs.json"
    if not path.exists():
        storage.write_json(path, inputs)
    changed = [name for name, value in storage.read_json(path).items() if inputs[name] != value]
    if changed:
        raise AstroError(f"{folder}: its results have other inputs ({', '.join(changed)}); choose another folder")
