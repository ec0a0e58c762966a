"""The tree store: finished trees in files that are written once, and beside them the trees under way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from astro_jax import distributed, storage
from astro_jax.errors import AstroError
from astro_jax.progress import log
from astro_jax.search.tree import Tree
from astro_jax.storage import Json, Shards
from astro_jax.types import Problem

Part = tuple[int, int]  # (i, n): the i-th of n processes


class Store:
    """The trees of a list of problems, in a folder.

    The problems are cut into blocks of `size`, in order. Block b is the file trees-0000b.jsonl, one tree a line: it is
    written whole once the last of its trees has ended, and its bytes are the same whoever writes it. Process i of n has
    the blocks b with b mod n = i, so no two write the same file. What it has besides, trees under way and trees that
    wait for the rest of their block, stands in underway-i-of-n.jsonl with all that it takes to go on.

    Args:
      digest: of the run's configuration, which each record names.

    Attributes:
      total: trees of this process.
      under_way: trees to go on with, in their order. waiting: problems without a tree yet.
      torn: trees that were found lost with the end of a file; they are grown again.

    Raises:
      AstroError: when a file holds trees of another configuration, of other problems, or what is no record.
    """

    def __init__(self, folder: epath.Path, problems: Sequence[Problem], size: int, digest: str, part: Part = (0, 1)):
        blocks = [problems[i : i + size] for i in range(0, len(problems), size)]
        if part[1] > len(blocks):
            raise AstroError(
                f"--shard {part[0]}/{part[1]}: search.shard_size={size} cuts the problems into {len(blocks)} parts"
            )
        self.folder, self.digest, self.torn = folder, digest, 0
        self.total = sum(map(len, blocks[part[0] :: part[1]]))
        self._alone = part[1] == 1
        self._shards = Shards(folder, "trees")
        self._mine = folder / f"underway-{part[0]}-of-{part[1]}.jsonl"
        self._missing: dict[int, Sequence[Problem]] = {}  # blocks without a file
        self._ended: dict[str, Tree] = {}  # trees that wait for their block
        for b in range(part[0], len(blocks), part[1]):
            self._find(b, blocks[b])
        self._block = {p.id: b for b, block in self._missing.items() for p in block}
        self.under_way: list[Tree] = []
        for tree in self._read_under_way():
            if tree.ended:
                self._ended[tree.problem.id] = tree
            else:
                self.under_way.append(tree)
        begun = self._ended.keys() | {tree.problem.id for tree in self.under_way}
        self.waiting = [p for block in self._missing.values() for p in block if p.id not in begun]
        distributed.assert_equal_across_processes("the trees so far", [sorted(begun), sorted(self._missing)])
        for b in list(self._missing):
            self._write(b)

    @property
    def left(self) -> int:
        """Trees that have not ended."""
        return len(self._block) - len(self._ended)

    def end(self, tree: Tree) -> None:
        """Take a tree that has ended, and write its block if it was the last."""
        self._ended[tree.problem.id] = tree
        self._write(self._block[tree.problem.id])

    def save(self, under_way: Iterable[Tree]) -> None:
        """Write the trees under way, after an iteration: a kill costs what comes after this."""
        trees = (*under_way, *self._ended.values())
        storage.write_jsonl(self._mine, (self._named(tree.record(whole=True)) for tree in trees))

    def close(self) -> None:
        """Remove what was under way: all trees of this process are in their blocks."""
        for path in list(self.folder.glob("underway-*.jsonl")):
            if distributed.is_main_process() and (self._alone or path == self._mine):
                path.unlink()

    def read(self) -> Iterator[Tree]:
        """The finished trees of all blocks."""
        return map(Tree.from_record, self._shards.read())

    def _named(self, record: Json) -> Json:
        return {"config": self.digest, **record}

    def _write(self, b: int) -> None:
        if all(p.id in self._ended for p in self._missing[b]):
            trees = [self._ended.pop(p.id) for p in self._missing.pop(b)]
            self._block = {i: block for i, block in self._block.items() if block != b}
            self._shards.write(b, (self._named(tree.record()) for tree in trees))

    def _find(self, b: int, block: Sequence[Problem]) -> None:
        """Check the file of a block; without one, or with a part of one, the block is missing."""
        path = self._shards.path(b)
        if not path.exists():
            self._missing[b] = block
            return
        trees = self._trees(path)
        if [tree.problem.id for tree in trees] != [p.id for p in block[: len(trees)]]:
            raise AstroError(
                f"{path}: holds trees of other problems; nothing was changed, remove it or choose another out"
            )
        if lost := len(block) - len(trees):
            log(f"{path}: cut short, {lost} of its {len(block)} trees are grown again")
            self.torn += lost
            self._missing[b] = block
            self._ended |= {tree.problem.id: tree for tree in trees}

    def _read_under_way(self) -> Iterator[Tree]:
        """What this process has left, and where it works alone, what others have, each tree once."""
        paths = [self._mine] if self._mine.exists() else []
        if self._alone and self.folder.exists():
            paths += sorted(path for path in self.folder.glob("underway-*.jsonl") if path != self._mine)
        seen = set(self._ended)
        for path in paths:
            for tree in self._trees(path):
                if tree.problem.id in self._block and tree.problem.id not in seen:
                    seen.add(tree.problem.id)
                    yield tree

    def _trees(self, path: epath.Path) -> list[Tree]:
        """The whole records of a file, which may be cut short."""
        records = list(storage.read_jsonl(path, allow_truncated=True))
        for record in records:
            if (theirs := record.get("config")) != self.digest:
                raise AstroError(
                    f"{path}: holds trees of another config ({theirs} there, {self.digest} here); nothing was changed, "
                    "remove it or choose another out"
                )
        try:
            return [Tree.from_record(record) for record in records]
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise AstroError(
                f"{path}: holds a record that is no tree ({e!r}); remove it to grow its trees again"
            ) from e
