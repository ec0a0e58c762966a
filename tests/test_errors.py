"""Which errors may go away by themselves: the exit code tells launchers whether to start a command again."""

import errno
import types

import pytest
from helpers import HttpError

from astro_jax.cli import main
from astro_jax.errors import AstroError, TransientError, is_transient, lacks_space


def caused(cause):
    """An AstroError as the code raises it: from the error of a library."""
    try:
        try:
            raise cause
        except BaseException as e:
            raise AstroError("cannot be read") from e
    except AstroError as e:
        return e


class RepositoryError(OSError):
    """As of requests and huggingface_hub: the answer holds the status."""

    def __init__(self, status):
        super().__init__("answer of the hub")
        self.response = types.SimpleNamespace(status_code=status)


class ServerDisconnectedError(Exception):
    """As of aiohttp."""


@pytest.mark.parametrize(
    "cause, expected",
    [
        (OSError(errno.EIO, "input/output error"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("metadata server"), True),
        (HttpError(503), True),
        (HttpError("429"), True),
        (RepositoryError(502), True),
        (ServerDisconnectedError(), True),
        (TransientError("x"), True),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError("damaged Parquet"), False),
        (OSError("Forbidden: gs://bucket"), False),
        (HttpError(403), False),
        (RepositoryError(404), False),
        (ValueError("bad value"), False),
    ],
)
def test_transient_errors_are_told_from_bad_input(cause, expected):
    assert is_transient(caused(cause)) is expected


@pytest.mark.parametrize("message", ["[Errno 28] No space left on device: 'x'", "UNKNOWN: write: Disk quota exceeded"])
def test_messages_of_a_full_disk_are_known_in_any_library(message):
    assert lacks_space(message) and not lacks_space("File too large")


@pytest.mark.parametrize("number, code", [(errno.EIO, 1), (errno.ENOENT, 2)])
def test_an_unreadable_file_ends_with_the_code_of_its_cause(number, code, monkeypatch, tmp_path, capsys):
    """A run whose config.json cannot be read, once because of the disk and once because it is missing."""
    from etils import epath

    def fail(self):
        raise OSError(number, "cannot")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(type(epath.Path(tmp_path)), "read_text", fail)
    assert main(["show", str(tmp_path)]) == code
    assert capsys.readouterr().err.startswith("astro: ")
