"""The tree store: finished trees in files that are written once, and beside them the active trees."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from astro_jax import distributed, storage
from astro_jax.errors import AstroError
from astro_jax.progress import log
from astro_jax.search.tree import Tree
from astro_jax.storage import Shards
from astro_jax.types import Problem

Shard = tuple[int, int]  # (i, n): the i-th of n processes, counted from 0


def shards(folder: epath.Path) -> Shards:
    """The files of finished trees in a folder."""
    return Shards(folder, "trees", compressed=True)


class TreeStore:
    """The trees of a list of problems, in a folder.

    The problems are cut, in order, into blocks of `size`. Block b is the file trees-0000b.jsonl.gz, one tree a line. A
    block is written whole when its last tree has ended, and its bytes do not depend on the process that writes it.
    Process i of n owns the blocks b with b mod n = i, so no two processes write the same file. Example: 11 problems and
    size 3 make 4 blocks; with n = 3, process 0 owns blocks 0 and 3.

    The file active-i-of-n.jsonl holds the other trees of process i, with all that a restart needs: active trees, and
    ended trees whose block is not complete yet.

    Args:
      digest: the hash of the run's configuration. Each record holds it.

    Attributes:
      total: the number of trees of this process.
      active: trees whose search goes on, in their order.
      waiting: problems without a tree yet.
      torn: trees that were lost because a file was cut short. They are searched again.

    Raises:
      AstroError: when a file holds trees of another configuration or of other problems, or a line that is no tree.
    """

    def __init__(self, folder: epath.Path, problems: Sequence[Problem], size: int, digest: str, shard: Shard = (0, 1)):
        blocks = [problems[i : i + size] for i in range(0, len(problems), size)]
        if shard[1] > len(blocks):
            raise AstroError(
                f"--shard {shard[0]}/{shard[1]}: search.shard_size={size} cuts the problems into {len(blocks)} blocks; "
                "use fewer processes or a smaller shard_size"
            )
        self.folder, self.digest, self.torn = folder, digest, 0
        self.total = sum(map(len, blocks[shard[0] :: shard[1]]))
        self._alone = shard[1] == 1
        self._shards = shards(folder)
        self._active_path = folder / f"active-{shard[0]}-of-{shard[1]}.jsonl"
        self._missing: dict[int, Sequence[Problem]] = {}  # blocks without a file
        self._ended: dict[str, str] = {}  # trees whose block is not complete yet, by problem, as lines of their file
        for b in range(shard[0], len(blocks), shard[1]):
            self._check_block(b, blocks[b])
        self._block_of = {p.id: b for b, block in self._missing.items() for p in block}
        self.active: list[Tree] = []
        for tree in self._read_active():
            if tree.end_reason:
                self._ended[tree.problem.id] = self._line(tree)
            else:
                self.active.append(tree)
        started = self._ended.keys() | {tree.problem.id for tree in self.active}
        self.waiting = [p for block in self._missing.values() for p in block if p.id not in started]
        distributed.assert_equal_across_processes("the trees so far", [sorted(started), sorted(self._missing)])
        for b in list(self._missing):
            self._write_if_complete(b)

    @property
    def remaining(self) -> int:
        """The number of trees that have not ended."""
        return len(self._block_of) - len(self._ended)

    def add(self, tree: Tree) -> None:
        """Add a tree that has ended. Its block is written if it was the last tree of the block."""
        self._ended[tree.problem.id] = self._line(tree)
        self._write_if_complete(self._block_of[tree.problem.id])

    def save(self, active: Iterable[Tree]) -> None:
        """Write the active trees, so that a restart goes on from here."""
        lines = (self._line(tree, resumable=True) for tree in active)
        storage.write_lines(self._active_path, itertools.chain(lines, self._ended.values()))

    def close(self) -> None:
        """Remove the files of active trees: all trees of this process are in their blocks."""
        for path in list(self.folder.glob("active-*.jsonl")):
            if distributed.is_main_process() and (self._alone or path == self._active_path):
                path.unlink()

    def _line(self, tree: Tree, resumable: bool = False) -> str:
        return storage.to_line({"config": self.digest, **tree.record(resumable)})

    def _write_if_complete(self, b: int) -> None:
        if all(p.id in self._ended for p in self._missing[b]):
            lines = [self._ended.pop(p.id) for p in self._missing.pop(b)]
            self._block_of = {problem: block for problem, block in self._block_of.items() if block != b}
            self._shards.write_lines(b, lines)

    def _check_block(self, b: int, block: Sequence[Problem]) -> None:
        """Check the file of a block. A block whose file is missing or cut short is added to the missing ones."""
        path = self._shards.path(b)
        if not path.exists():
            self._missing[b] = block
            return
        ids = [tree.problem.id for tree in self._read_trees(path)]
        if ids != [p.id for p in block[: len(ids)]]:
            raise AstroError(
                f"{path}: holds trees of other problems; nothing was changed, remove it or choose another out"
            )
        if lost := len(block) - len(ids):
            log(f"{path}: cut short, {lost} of its {len(block)} trees are searched again")
            self.torn += lost
            self._missing[b] = block
            self._ended |= {tree.problem.id: self._line(tree) for tree in self._read_trees(path)}

    def _read_active(self) -> Iterator[Tree]:
        """Read the active trees of this process, each tree once. A process that works alone takes over the active trees
        of all processes."""
        paths = [self._active_path] if self._active_path.exists() else []
        if self._alone and self.folder.exists():
            paths += sorted(path for path in self.folder.glob("active-*.jsonl") if path != self._active_path)
        seen = set(self._ended)
        for path in paths:
            for tree in self._read_trees(path):
                if tree.problem.id in self._block_of and tree.problem.id not in seen:
                    seen.add(tree.problem.id)
                    yield tree

    def _read_trees(self, path: epath.Path) -> Iterator[Tree]:
        """Read the complete records of a file whose last line may be cut short. One tree is in memory at a time."""
        for record in storage.read_jsonl(path, allow_truncated=True):
            if (digest := record.get("config")) != self.digest:
                raise AstroError(
                    f"{path}: holds trees of another config ({digest} there, {self.digest} here); nothing was changed, "
                    "remove it or choose another out"
                )
            try:
                yield Tree.from_record(record)
            except (KeyError, TypeError, ValueError, IndexError) as e:
                raise AstroError(
                    f"{path}: holds a record that is no tree ({e!r}); remove it to search its problems again"
                ) from e
