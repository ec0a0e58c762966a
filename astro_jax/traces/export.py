"""The SFT sets in the form that other trainers read: "messages", as Parquet and as JSONL, with the data card."""

from __future__ import annotations

import importlib
import itertools
import tempfile
from collections.abc import Iterable

from etils import epath

from astro_jax import storage
from astro_jax.errors import AstroError
from astro_jax.storage import Json
from astro_jax.traces import card

_ROWS = 1000  # of a Parquet file in memory at once


def check(*, out: bool, push: bool) -> None:
    """Raise an AstroError where what an option needs is not installed: before hours of work, not after."""
    needed = [("--out", "pyarrow")] * out + [("--push", "pyarrow"), ("--push", "huggingface_hub")] * push
    for option, module in needed:
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise AstroError(f"{option} needs the extra `hub`: pip install {module}") from e


def write(folder: epath.Path, destination: epath.Path) -> None:
    """Write NAME.parquet, NAME.jsonl, README.md and card.json of a finished traces folder; the folder appears whole.

    A record is {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}],
    "problem_id", "kind", "k"}.

    Raises:
      AstroError: when there is something at `destination`.
    """
    with storage.new_folder(destination) as part:
        for name in card.SETS:
            rows = [_row(example) for example in storage.read_jsonl(folder / f"{name}.jsonl")]
            storage.write_jsonl(part / f"{name}.jsonl", rows)
            _write_parquet(part / f"{name}.parquet", rows)
        data = storage.read_json(folder / card.DATA)
        storage.write_json(part / card.DATA, data)
        storage.write_text(part / card.TEXT, card.text(data, "parquet"))


def push(folder: epath.Path, repository: str) -> str:
    """Upload what `write` writes to the hub as a data set, private until its owner opens it.

    Returns:
      its address.

    Raises:
      AstroError: when the hub refuses or cannot be reached.
    """
    import huggingface_hub

    with tempfile.TemporaryDirectory() as scratch:
        made = epath.Path(scratch) / "traces"
        write(folder, made)
        try:
            hub = huggingface_hub.HfApi()
            hub.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
            return str(hub.upload_folder(repo_id=repository, repo_type="dataset", folder_path=str(made)))
        except Exception as e:  # those of the hub, of HTTP and of files have no class in common
            reason = str(e).strip().splitlines() or [type(e).__name__]
            raise AstroError(f"--push {repository}: the hub did not take it ({reason[0]}); is HF_TOKEN set?") from e


def _row(example: Json) -> Json:
    said = (("user", example["prompt"]), ("assistant", example["response"]))
    messages = [{"role": role, "content": content} for role, content in said]
    return {"messages": messages} | {key: example[key] for key in ("problem_id", "kind", "k")}


def _write_parquet(path: epath.Path, rows: Iterable[Json]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    fields = [("messages", pa.list_(message)), ("problem_id", pa.string()), ("kind", pa.string()), ("k", pa.int64())]
    schema, rows = pa.schema(fields), iter(rows)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
