"""A server of Cloud Storage's JSON API in memory, so that processes share a bucket through the real clients.

gcsfs (which epath uses), TensorStore (which Orbax uses) and google-cloud-storage speak to it after `prepare`. It has
the methods that these call in a run. `fail` lets it refuse or delay all requests for a while.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
_OBJECT = rf"(?:/download)?/storage/v1/b/{BUCKET}/o/([^/]+)"


class BucketServer(ThreadingHTTPServer):
    """A bucket with the name BUCKET.

    Attributes:
      objects: name -> (content, generation).
      answered: how many requests, by status.
      delayed: how many requests.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), _Handler)
        self.url = f"http://localhost:{self.server_port}"
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}  # id -> name, content so far
        self.generations, self.changes = itertools.count(1), threading.Lock()
        self.answered: Counter[int] = Counter()
        self.delayed = 0
        self._fault = (0.0, 0, 0.0)

    def fail(self, seconds: float, status: int = 0, delay: float = 0.0) -> None:
        """For this time answer each request with a status (0: as usual), after a delay in seconds."""
        self._fault = (time.monotonic() + seconds, status, delay)

    def fault(self) -> tuple[int, float]:
        until, status, delay = self._fault
        return (status, delay) if time.monotonic() < until else (0, 0.0)

    def handle_error(self, request, client_address):
        """Say nothing of a client that has closed its connection, or was killed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def holds(self, name: str) -> bool:
        """Whether the bucket has an object, or objects below a folder."""
        return any(key == name or key.startswith(f"{name}/") for key in [*self.objects])

    def download(self, folder: Path) -> Path:
        """Write all objects below a folder of the disk, and return it."""
        for name, (content, _) in self.objects.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def prepare(self) -> Callable[[], None]:
        """A function that makes the clients of a process find the server, and need no account."""
        return functools.partial(_set_environment, self.url)


def _set_environment(url):
    os.environ |= {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # speaks gRPC
        "NO_GCE_CHECK": "true",
    }


@contextlib.contextmanager
def serve():
    """Yield a running server."""
    with BucketServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Methods that answer return (status, content: bytes or a value of JSON, headers)."""

    protocol_version = "HTTP/1.1"
    server: BucketServer

    def log_message(self, *args):
        """Say nothing."""

    def _handle(self):
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self._read()
        status, delay = self.server.fault()
        self.server.delayed += delay > 0
        time.sleep(delay)
        # The lock is not held while the answer is sent: the client may be stopped.
        self._send(*(_error(status, "refused by the test") if status else self._answer(url.path)))

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _read(self):
        """The body of the request: of a known length, or in chunks, each after a line with its length."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, path):
        for methods, pattern, handle in _ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, path)):
                with self.server.changes:
                    return handle(self, *map(unquote, match.groups()))
        return _error(501, f"{self.command} {self.path}")

    def _send(self, status, content, headers):
        self.server.answered[status] += 1
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def _resource(self, name):
        content, generation = self.server.objects[name]
        return {
            "kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(len(content)),
            "generation": str(generation), "metageneration": "1", "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def _is_stale(self, name, wanted):
        """Whether an object has another generation than a conditional request expects. 0: it must not exist."""
        generation = self.server.objects[name][1] if name in self.server.objects else 0
        return wanted is not None and int(wanted) != generation

    def _write(self, name, content):
        if self._is_stale(name, self.query.get("ifGenerationMatch")):
            return _error(412, "conditionNotMet")
        self.server.objects[name] = (content, next(self.server.generations))
        return 200, self._resource(name), {}

    def bucket(self):
        return 200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET, "location": "US"}, {}

    def list(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
        names, prefixes = [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                prefixes.add(prefix + head + delimiter)
            else:
                names.append(name)
        items = [self._resource(name) for name in names]
        return 200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}, {}

    def get(self, name):
        if name not in self.server.objects:
            return _error(404, "No such object")
        if self.query.get("alt") != "media":
            return 200, self._resource(name), {}
        content, generation = self.server.objects[name]
        if self.query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        size = len(content)
        headers = {"Content-Type": "application/octet-stream", "X-Goog-Generation": generation, "ETag": generation}
        if not (ranges := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            return 200, content, headers
        if not ranges[1]:  # the last bytes
            first, last = max(0, size - int(ranges[2])), size - 1
        else:
            first, last = int(ranges[1]), min(size - 1, int(ranges[2] or size - 1))
        if first > last:
            return 416, b"", {"Content-Range": f"bytes */{size}"}
        return 206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{size}", **headers}

    def delete(self, name):
        if self._is_stale(name, self.query.get("ifGenerationMatch")):
            return _error(412, "conditionNotMet")
        if self.server.objects.pop(name, None) is None:
            return _error(404, "No such object")
        return 204, b"", {}

    def copy(self, source, kind, target):
        if source not in self.server.objects:
            return _error(404, "No such object")
        self.server.objects[target] = (self.server.objects[source][0], next(self.server.generations))
        if kind == "moveTo":
            del self.server.objects[source]
        resource = self._resource(target)
        return 200, {"done": True, "resource": resource} if kind == "rewriteTo" else resource, {}

    def upload(self):
        """The content of an object, in one request or (resumable) in chunks of further requests."""
        if "upload_id" in self.query:
            return self._upload_chunk(*self.server.uploads[self.query["upload_id"]])
        kind = self.query["uploadType"]
        if kind == "media":
            return self._write(self.query["name"], self.body)
        if kind == "multipart":
            metadata, content = _parts(self.headers["Content-Type"], self.body)
            return self._write(json.loads(metadata)["name"], content)
        upload = str(next(self.server.generations))
        self.server.uploads[upload] = (self.query.get("name") or json.loads(self.body)["name"], bytearray())
        location = f"{self.server.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={upload}"
        return 200, {}, {"Location": location}

    def _upload_chunk(self, name, content):
        """A chunk says its place, and the size of the whole if it is the last one. "*" alone has no bytes."""
        chunk = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", ""))
        if chunk is None or chunk[1]:
            del content[int(chunk[1]) if chunk else 0 :]  # a chunk may be sent again
            content += self.body
        if chunk is not None and chunk[2] == "*":
            return 308, b"", {"Range": f"bytes=0-{len(content) - 1}"} if content else {}
        return self._write(name, bytes(content))

    def batch(self):
        """Several deletions in one request, as gcsfs sends them."""
        answers = []
        for part in _parts(self.headers["Content-Type"], self.body):
            name = unquote(re.search(rb"DELETE \S*/o/(\S+?)(?:\?\S*)? HTTP", part)[1].decode())
            status = "204 No Content" if self.server.objects.pop(name, None) else "404 Not Found"
            answers.append(f"--answers\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n")
        return 200, ("".join(answers) + "--answers--").encode(), {"Content-Type": "multipart/mixed; boundary=answers"}


def _error(status, message):
    return status, {"error": {"code": status, "message": message}}, {}


def _parts(content_type, body):
    """The payloads of a multipart message."""
    message = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    return [part.get_payload(decode=True) for part in message.get_payload()]


_ROUTES = (
    (("GET",), rf"/storage/v1/b/{BUCKET}", _Handler.bucket),
    (("GET",), rf"/storage/v1/b/{BUCKET}/o/?", _Handler.list),
    (("GET",), _OBJECT, _Handler.get),
    (("DELETE",), _OBJECT, _Handler.delete),
    (("POST",), rf"{_OBJECT}/(copyTo|rewriteTo|moveTo)(?:/b/{BUCKET})?/o/([^/]+)", _Handler.copy),
    (("POST", "PUT"), rf"/upload/storage/v1/b/{BUCKET}/o/?", _Handler.upload),
    (("POST",), "/batch/storage/v1", _Handler.batch),
)
