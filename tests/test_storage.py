"""Atomic writes, JSON and JSONL files, shards and manifests, on a disk and in a bucket."""

import gzip
import importlib.metadata
import json
import random
import threading

import fsspec
import pytest
from etils import epath
from helpers import Bucket, HttpError, bucket

import astro_jax
from astro_jax import storage
from astro_jax.errors import AstroError, TransientError
from astro_jax.storage import Shards


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, monkeypatch):
    """A folder on a disk, and one in a bucket."""
    if request.param == "disk":
        return epath.Path(tmp_path)
    return bucket(monkeypatch)


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_write_text_replaces_the_file_and_leaves_no_temporary_file(folder):
    path = folder / "deep" / "a.txt"
    for text in ("one", "two"):
        storage.write_text(path, text)
        assert path.read_text() == text and names(folder / "deep") == ["a.txt"]


def test_new_folder_is_complete_or_absent(folder):
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), storage.new_folder(folder / "deep" / "new") as partial:
            (partial / "a").write_text("incomplete")
            raise error
        assert names(folder / "deep") == []
    (folder / "deep" / "new.part").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / "new.part" / "old").write_text("of a process that was killed")
    with storage.new_folder(folder / "deep" / "new") as partial:
        (partial / "a").write_text("complete")
        assert not (folder / "deep" / "new").exists()
    assert names(folder / "deep") == ["new"] and names(folder / "deep" / "new") == ["a"]
    with pytest.raises(AstroError, match="exists; nothing was written"), storage.new_folder(folder / "deep" / "new"):
        pytest.fail("entered")


def test_failed_write_keeps_the_old_file(folder, monkeypatch):
    path = folder / "a.json"
    storage.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        storage.write_json(path, {"x": object()})
    with pytest.raises(ZeroDivisionError):
        storage.write_jsonl(path, ({"x": 1 / (1 - i)} for i in range(3)))

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(path), "replace", killed)
        storage.write_jsonl(path, [{"x": 2}])
    assert storage.read_json(path) == {"x": 1}
    if storage.is_remote(folder):
        Bucket.refuse("write", HttpError(503))
        with pytest.raises(HttpError):
            storage.write_json(path, {"x": 2})
        assert storage.read_json(path) == {"x": 1}
    storage.write_jsonl(path, [{"x": 3}])  # over the temporary file of the killed write
    assert storage.read_json(path) == {"x": 3} and names(folder) == ["a.json"]


@pytest.mark.parametrize("text", ["", "{", '{"x": 1', "\x00", "[1]"])
def test_read_json_names_a_damaged_file(folder, text):
    (folder / "a.json").write_text(text)
    with pytest.raises(AstroError, match=r"a\.json: not valid JSON"):
        storage.read_json(folder / "a.json")


def test_readers_name_a_missing_file(folder):
    for read in (storage.read_json, lambda path: list(storage.read_jsonl(path))):
        with pytest.raises(AstroError, match=r"a\.json: cannot be read"):
            read(folder / "a.json")


def test_jsonl_round_trips_any_text(folder):
    records = [{"text": "a\nb\u2028c\x85d\r\n", "n": 0.1}, {"text": "日本 😀 \x00"}, {}]
    storage.write_jsonl(folder / "a.jsonl", records)
    assert list(storage.read_jsonl(folder / "a.jsonl")) == records
    assert len((folder / "a.jsonl").read_text().split("\n")) == 4


def test_read_jsonl_names_a_damaged_line_by_its_number_and_skips_blank_lines(folder):
    (folder / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n \n')
    assert list(storage.read_jsonl(folder / "a.jsonl")) == [{"x": 1}, {"x": 2}]
    (folder / "a.jsonl").write_text('{"x": 1}\n{"x": \n')
    with pytest.raises(AstroError, match=r"a\.jsonl, line 2: not valid JSON"):
        list(storage.read_jsonl(folder / "a.jsonl"))


def test_read_jsonl_skips_a_truncated_last_line_only_when_allowed(folder):
    path = folder / "a.jsonl"
    path.write_text('{"x": 1}\n{"x": 2}')  # without its line break a last line may be incomplete
    assert list(storage.read_jsonl(path, allow_truncated=True)) == [{"x": 1}]
    assert list(storage.read_jsonl(path)) == [{"x": 1}, {"x": 2}]
    path.write_text('{"x": 1}\n{"x": \n{')
    with pytest.raises(AstroError, match="line 2"):
        list(storage.read_jsonl(path, allow_truncated=True))


def test_a_gzip_file_of_records_is_read_back_and_its_bytes_depend_on_the_records_alone(folder):
    records = [{"i": i, "text": "é\u2028" * 100} for i in range(200)]
    for name in ("a.jsonl.gz", "b.jsonl.gz", "a.jsonl"):
        storage.write_jsonl(folder / name, iter(records))
        assert list(storage.read_jsonl(folder / name)) == records
    a, b, plain = ((folder / name).read_bytes() for name in ("a.jsonl.gz", "b.jsonl.gz", "a.jsonl"))
    assert a == b and gzip.decompress(a) == plain and len(a) < len(plain) / 10


@pytest.mark.parametrize("kept", [0.6, 0.95, -1])
def test_a_gzip_file_cut_short_gives_the_records_before_the_cut_only_when_allowed(folder, kept):
    path, draw = folder / "a.jsonl.gz", random.Random(0)
    records = [{"x": draw.random()} for _ in range(2000)]
    storage.write_jsonl(path, records)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept > 0 else kept])
    read = list(storage.read_jsonl(path, allow_truncated=True))
    assert read == records[: len(read)] and 0.5 * len(records) < len(read) < len(records)
    with pytest.raises(AstroError, match=r"a\.jsonl\.gz: cut short or damaged"):
        list(storage.read_jsonl(path))


def test_records_are_written_and_read_one_at_a_time(folder):
    """A file of search trees does not fit into memory."""
    made, read = 0, 0

    def records():
        nonlocal made
        for i in range(3):
            made += 1
            yield {"i": i}

    with pytest.raises(ZeroDivisionError):
        storage.write_jsonl(folder / "a.jsonl.gz", ({"i": 1 / (2 - i)} for i in range(3)))
    assert names(folder) == []  # neither the file nor a part of it
    storage.write_jsonl(folder / "a.jsonl.gz", records())
    for record in storage.read_jsonl(folder / "a.jsonl.gz"):
        read += 1
        if record["i"] == 1:
            break
    assert (made, read) == (3, 2)


def test_compressed_shards_stand_beside_those_of_an_older_version(folder):
    Shards(folder, "trees").write(1, [{"old": 1}])
    shards = Shards(folder, "trees", compressed=True)
    shards.write(0, [{"new": 1}])
    assert names(folder) == ["trees-00000.jsonl.gz", "trees-00001.jsonl"] and shards.has(1) and not shards.has(2)
    assert list(shards.read()) == [{"new": 1}, {"old": 1}] == [json.loads(line) for line in shards.read_lines()]
    shards.write(1, [{"newer": 1}])  # it replaces the old file, and is no second one
    assert list(shards.read()) == [{"new": 1}, {"newer": 1}]


def test_shards_are_read_by_number_in_any_order_of_writing(folder):
    shards = Shards(folder, "trees")
    for i in (100_000, 10, 2, 0, 1):
        assert not shards.has(i)
        shards.write(i, [{"i": i, "j": j} for j in range(2)])
        assert shards.has(i)
    assert [(r["i"], r["j"]) for r in shards.read()] == [(i, j) for i in (0, 1, 2, 10, 100_000) for j in (0, 1)]
    assert names(folder)[0] == "trees-00000.jsonl"


def test_shards_ignore_temporary_files_and_other_stores(folder):
    Shards(folder, "trees").write(0, [{"a": 1}])
    Shards(folder, "traces").write(0, [{"b": 1}])
    (folder / "trees-00001.jsonl.part").write_text('{"a": ')
    assert list(Shards(folder, "trees").read()) == [{"a": 1}]
    assert not Shards(folder, "trees").has(1)


def test_fingerprint_depends_on_names_and_contents_alone(folder):
    def fingerprint(**files):
        (folder / "model").rmtree(missing_ok=True)
        for name, text in files.items():
            storage.write_text(folder / "model" / name.replace("_", "/"), text)
        return storage.fingerprint(folder / "model")

    variants = ({"a": "1", "b_c": "2"}, {"a": "1", "b_d": "2"}, {"a": "1", "b_c": "3"}, {"a": "1", "b_c": "2", "e": ""})
    assert len({fingerprint(**files) for files in variants}) == len(variants)
    assert fingerprint(b_c="2", a="1") == fingerprint(**variants[0])


def test_fingerprint_of_a_large_file_reads_blocks_of_all_of_it(folder):
    content = bytearray(2**26 + 2**20)
    (folder / "large").write_bytes(bytes(content))
    before = storage.fingerprint(folder / "large")
    middle = len(content) // 2
    content[middle : middle + 2**16] = b"1" * 2**16
    (folder / "large").write_bytes(bytes(content))
    assert storage.fingerprint(folder / "large") != before


def test_move_makes_the_folders_above_the_target(folder):
    storage.write_text(folder / "stage" / "deep" / "a", "1")
    storage.move(folder / "stage", folder / "previous" / "stage-1")
    assert names(folder) == ["previous"] and (folder / "previous" / "stage-1" / "deep" / "a").read_text() == "1"


# ---- A bucket that refuses


@pytest.mark.parametrize("operation", ["write", "read", "delete"])
def test_a_refusal_of_the_bucket_names_the_roles(monkeypatch, operation):
    folder = bucket(monkeypatch)
    assert storage.bucket_refusal(folder) == "" and not folder.parent.exists()
    Bucket.refuse(operation, HttpError(403))
    assert "Storage Legacy Bucket Reader" in storage.bucket_refusal(folder)
    Bucket.refuse(operation, HttpError(503))
    with pytest.raises(TransientError, match="does not answer"):
        storage.bucket_refusal(folder)


def test_an_account_that_may_not_get_the_bucket_is_refused(monkeypatch):
    """Orbax asks for the bucket itself: Storage Object Admin alone is not enough."""

    folder = bucket(monkeypatch)
    Bucket.refuse("get", HttpError(403))
    assert "status 403" in storage.bucket_refusal(folder)


def test_a_bucket_is_opened_without_a_cache_of_listings(monkeypatch):
    options = []
    bucket(monkeypatch)
    monkeypatch.setattr(Bucket, "__init__", lambda self, **kwargs: options.append(kwargs))
    fsspec.filesystem("gcs", skip_instance_cache=True)
    assert options[0]["use_listings_cache"] is False


@pytest.mark.parametrize("error", [ConnectionResetError(), HttpError(503)], ids=["of the system", "of gcsfs"])
def test_a_renewal_that_fails_does_not_end_the_renewals(error):
    """A lock would grow stale while its holder is at work."""
    renewals, again = [], threading.Event()

    def renew():
        renewals.append(len(renewals))
        if len(renewals) == 1:
            raise error
        again.set()

    with storage.renewing(0.01, renew):
        assert again.wait(10)


def test_versions_of_a_clone_that_is_not_installed(monkeypatch):
    """A run from such a clone ended with a traceback at the end of its first stage."""
    version = importlib.metadata.version

    def of_others(name):
        if name == "astro_jax":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_others)
    assert storage.versions()["astro_jax"] == astro_jax.__version__
