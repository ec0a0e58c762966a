"""Export of the SFT sets for other trainers: records of "messages", as Parquet and as JSONL, with the data card."""

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

_BATCH_ROWS = 1000  # rows of a Parquet file that are in memory at once


def check(*, out: bool, push: bool) -> None:
    """Check that the libraries of an export are installed, before the stage runs for hours.

    Raises:
      AstroError: when a library is missing.
    """
    for option in ["--out"] * out + ["--push"] * push:
        try:
            importlib.import_module("pyarrow")
        except ImportError as e:
            raise AstroError(f"{option} needs the extra `hub`: pip install pyarrow") from e


def write(folder: epath.Path, destination: epath.Path) -> None:
    """Write NAME.parquet, NAME.jsonl, README.md and card.json of a finished traces folder. `destination` appears only
    when all files are complete.

    A record is {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}],
    "problem_id", "kind", "k"}.

    Raises:
      AstroError: when `destination` exists.
    """
    with storage.new_folder(destination) as new:
        for name in card.SETS:
            rows = [_row(example) for example in storage.read_jsonl(folder / f"{name}.jsonl")]
            storage.write_jsonl(new / f"{name}.jsonl", rows)
            _write_parquet(new / f"{name}.parquet", rows)
        data = storage.read_json(folder / card.JSON_FILE)
        storage.write_json(new / card.JSON_FILE, data)
        storage.write_text(new / card.MARKDOWN_FILE, card.text(data, "parquet"))


def push(folder: epath.Path, repository: str) -> str:
    """Upload an export to the hub as a private data set.

    Returns:
      the address of the upload.

    Raises:
      AstroError: when the hub refuses or cannot be reached.
    """
    import huggingface_hub

    with tempfile.TemporaryDirectory() as scratch:
        export = epath.Path(scratch) / "traces"
        write(folder, export)
        try:
            hub = huggingface_hub.HfApi()
            hub.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
            return str(hub.upload_folder(repo_id=repository, repo_type="dataset", folder_path=str(export)))
        except Exception as e:  # the errors of the hub, of HTTP and of files have no common class
            reason = str(e).strip().splitlines() or [type(e).__name__]
            raise AstroError(f"--push {repository}: the hub did not take it ({reason[0]}); is HF_TOKEN set?") from e


def _row(example: Json) -> Json:
    turns = (("user", example["prompt"]), ("assistant", example["response"]))
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages} | {key: example[key] for key in ("problem_id", "kind", "k")}


def _write_parquet(path: epath.Path, rows: Iterable[Json]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    fields = [("messages", pa.list_(message)), ("problem_id", pa.string()), ("kind", pa.string()), ("k", pa.int64())]
    schema, rows = pa.schema(fields), iter(rows)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(rows, _BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
