"""Benchmark what follows a search: the store of its trees, their counts, the traces, the data card and the report.

The trees come from the real search on a synthetic policy (`synthetic.World`). Their lines get random words in the place
of the policy's short texts, so that files are about as large and as hard to compress as those of a model. The traces
are those of a run without a model: no judgements, and texts from templates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from astro_jax import config as cfg
from astro_jax import report, storage
from astro_jax.bench.search import PAPER, in_parts
from astro_jax.bench.synthetic import World
from astro_jax.errors import AstroError
from astro_jax.llama.tokenizer import Tokenizer
from astro_jax.progress import ProgressBar
from astro_jax.search import run as search
from astro_jax.search.store import TreeStore, shards
from astro_jax.search.tree import Tree
from astro_jax.traces import card, dataset

_SEARCHED = 256  # different trees at most. Further problems get the same trees again, which saves time only
_LETTERS, _WORDS = "etaoinsrhdlucmfpgwybvk", 2000  # of the random words
_DIGEST = "bench"  # in the place of the digest of a config


@dataclasses.dataclass(frozen=True)
class Workload:
    """The trees of a benchmark.

    Attributes:
      trees: the number of trees.
      nodes: about the mean number of nodes of a tree, which is made of independent solutions.
      lines: the lines of a solution.
      characters: about the number of characters of a line.
      paper: search with the paper's budget and kept rollouts, whatever `nodes` says.
      seed: of the policy, its problems and the draws of the traces.
    """

    trees: int = 20_700
    nodes: int = 1000
    lines: int = 12
    characters: int = 60
    paper: bool = False
    seed: int = 0


def measure(folder: epath.Path, work: Workload, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write trees into the folder of a run, and measure each step that follows.

    Args:
      folder: an empty folder, or one that does not exist.
      tokenizer: counts the tokens of the data card.

    Returns:
      `workload`; `trees`, `nodes`, `rollouts` and `examples` (of ASTRO), of the whole run; `start_mib`: the memory of
      the process before the first tree, most of it libraries.
      `steps`: {step: {"seconds", "cpu_seconds", "peak_mib", "bytes"}} of "store", "counts", "traces", "card" and
      "report". The peak is that of the whole process in the step; that of the store holds the search too.
      `seconds`, `cpu_seconds` and `bytes`: the sums over the steps. `peak_mib`: the largest. `bytes_per_tree`: of the
      store.

    Raises:
      AstroError: for a number out of range.
    """
    if min(work.trees, work.nodes, work.lines, work.characters) < 1:
        raise AstroError("bench trees: --trees, --nodes, --lines and --characters are at least 1")
    trees = _search(work)
    rollouts = sum(trees[i % len(trees)].rollouts for i in range(work.trees))
    start_mib, steps = _memory_mib("VmRSS"), _Steps(folder)
    store, traces = shards(folder / "search"), folder / "traces"
    with steps.measure("store"):
        _store(folder / "search", work, trees)
    trees.clear()
    with steps.measure("counts"):
        counts = search.count(folder / "search")
    with steps.measure("traces"):
        trace_counts = dataset.run(traces, store, cfg.Traces(), work.seed, None, tokenizer)
    with steps.measure("card"):
        origin = {"model": "synthetic", "seed": work.seed, "config": _DIGEST}
        card.write(traces, trace_counts, store, tokenizer, origin)
    with steps.measure("report"):
        report.write([folder], folder / "report.html")
    figures = steps.figures
    return {
        "workload": dataclasses.asdict(work),
        "trees": counts["trees"], "nodes": counts["nodes"], "rollouts": rollouts,
        "examples": trace_counts["ASTRO"]["examples"], "start_mib": start_mib, "steps": figures,
        **{key: round(sum(f[key] for f in figures.values()), 1) for key in ("seconds", "cpu_seconds", "bytes")},
        "peak_mib": max(f["peak_mib"] for f in figures.values()),
        "bytes_per_tree": round(figures["store"]["bytes"] / work.trees),
    }  # fmt: skip


def _search(work: Workload) -> list[Tree]:
    """The different trees of the benchmark."""
    world = World(work.lines, seed=work.seed)
    c = cfg.Search().model_copy(update=PAPER) if work.paper else _independent(world, work)
    words = ["".join(random.Random(i).choices(_LETTERS, k=2 + i % 8)) for i in range(_WORDS)]
    # The paper's trees have 40 times the nodes.
    problems = world.problems(min(work.trees, _SEARCHED // 32 if work.paper else _SEARCHED))
    trees = []
    with ProgressBar("search", len(problems), "trees") as bar:
        for tree in in_parts(problems, c, world.policy()):
            _lengthen(tree, words, work)
            trees.append(tree)
            bar.advance()
    return trees


def _store(folder: epath.Path, work: Workload, trees: Sequence[Tree]) -> None:
    """Write the trees into a store, again and again, until each problem has one."""
    problems = World(work.lines, seed=work.seed).problems(work.trees)
    store = TreeStore(folder, problems, cfg.Search().shard_size, _DIGEST)
    with ProgressBar("store", len(problems), "trees") as bar:
        for i, problem in enumerate(problems):
            tree = trees[i % len(trees)]
            tree.problem = problem
            store.add(tree)
            bar.advance()
    store.close()


def _independent(world: World, work: Workload) -> cfg.Search:
    """A search that adds so many independent solutions to each tree that the first trees have about `work.nodes`."""

    def search_with(rollouts: int) -> cfg.Search:
        return cfg.Search(method="rounds", rounds=(rollouts,), max_depth=work.lines, max_rollout_tokens=work.lines)

    low, high = 1, work.nodes
    while low < high:
        middle = (low + high) // 2
        trees = in_parts(world.problems(4), search_with(middle), world.policy())
        low, high = (middle + 1, high) if statistics.mean(len(t.nodes) for t in trees) < work.nodes else (low, middle)
    return search_with(low)


def _lengthen(tree: Tree, words: Sequence[str], work: Workload) -> None:
    """Put random words before the text of each line."""
    draw = random.Random(f"{work.seed}/{tree.problem.id}")
    mean = statistics.mean(map(len, words)) + 1
    for node in tree.nodes[1:]:
        n = max(0, round((work.characters - len(node.text)) / mean))
        node.text = " ".join([*draw.choices(words, k=n), node.text])


class _Steps:
    """Measures steps that write into a folder."""

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self.figures: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure the block as a step."""
        bytes_before = self._bytes()
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the process starts again from here
        start, cpu_start = time.monotonic(), time.process_time()
        yield
        seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start
        self.figures[name] = {
            "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), "peak_mib": _memory_mib("VmHWM"),
            "bytes": self._bytes() - bytes_before,
        }  # fmt: skip

    def _bytes(self) -> int:
        return sum(file.stat().length for file in storage.files(self.folder)) if self.folder.exists() else 0


def _memory_mib(field: str) -> int:
    """The memory of this process: VmRSS, now; VmHWM, the largest since it was cleared."""
    line = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert line is not None
    return round(int(line[1]) / 1024)
