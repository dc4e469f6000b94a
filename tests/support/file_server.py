"""An HTTP server on loopback that serves bytes by path, knows ranges, and can drop connections on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Mapping
from http import HTTPStatus
from types import TracebackType

COMMIT = "c" * 40


class FileServer:
    """A context manager. `files` maps paths to bytes; `cuts` are lengths at which the next answers end."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.cuts: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range header of each GET."""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.block_on_close = True
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def ranges(self, path: str) -> list[str | None]:
        return [wanted for asked, wanted in self.requests if asked == path]

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._head(*self._found())

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.requests.append((path, self.headers["Range"]))
                status, data = self._found()
                self._head(status, data)
                self.wfile.write(data[: outer.cuts.pop(0)] if outer.cuts else data)

            def _found(self) -> tuple[HTTPStatus, bytes]:
                data = outer.files.get(self.path.partition("?")[0])
                if data is None:
                    return HTTPStatus.NOT_FOUND, b""
                if self.headers["Range"] is None:
                    return HTTPStatus.OK, data
                start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
                if start >= len(data):
                    return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b""
                self.start, self.size = start, len(data)
                return HTTPStatus.PARTIAL_CONTENT, data[start:]

            def _head(self, status: HTTPStatus, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("X-Repo-Commit", COMMIT)
                if status is HTTPStatus.NOT_FOUND:
                    self.send_header("X-Error-Code", "RepoNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
                if status is HTTPStatus.PARTIAL_CONTENT:
                    self.send_header("Content-Range", f"bytes {self.start}-{self.size - 1}/{self.size}")
                self.send_header("Content-Type", "text/html" if self.path.startswith("/simple") else "application/json")
                self.end_headers()

        return Handler


def hub_files(repository: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What a server must serve to look like the Hugging Face hub with one repository."""
    siblings = [_sibling(name, data) for name, data in files.items()]
    info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
    served = {f"/{repository}/resolve/{COMMIT}/{name}": data for name, data in files.items()}
    return {**served, f"/api/models/{repository}": json.dumps(info).encode()}


def _sibling(name: str, data: bytes) -> dict[str, object]:
    """Weights are in large file storage, which states their digest."""
    entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
