"""Downloads one file over HTTP(S), going on where an earlier try stopped."""

from __future__ import annotations

import functools
import hashlib
import http.client
import importlib.util
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import stamina

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.progress import Progress
from mlx_serving.actors.models.storage import reserve

PIECE_BYTES = 1 << 20
STALL_SECONDS = 60.0
ATTEMPTS = 5
_TRANSIENT = (TimeoutError, ConnectionError, http.client.HTTPException)


class DownloadFailed(ModelLoadFailed):
    """The address cannot be read from here; another way to the same file may work."""


def fetch(
    url: str, target: Path, sha256: str | None, progress: Progress, headers: Mapping[str, str] | None = None
) -> None:
    """Writes `target` when complete and verified; until then `target`.part, which a next call continues."""
    part = target.with_name(target.name + ".part")
    if urllib.parse.urlsplit(url).scheme == "file":
        shutil.copyfile(urllib.request.url2pathname(urllib.parse.urlsplit(url).path), part)
    else:
        _download(url, headers or {}, part, progress)
    if sha256 is not None and file_sha256(part, progress) != sha256:
        part.unlink()
        raise DownloadFailed(f"{url} has not the SHA-256 {sha256}; what was downloaded is discarded")
    part.rename(target)


def file_sha256(path: Path, progress: Progress) -> str:
    """Hexadecimal digest; reports phase `verify`."""
    digest, total = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            progress("verify", file.tell(), total)
    return digest.hexdigest()


def _download(url: str, headers: Mapping[str, str], part: Path, progress: Progress) -> None:
    try:
        for attempt in stamina.retry_context(on=_TRANSIENT, attempts=ATTEMPTS, timeout=None):
            with attempt:
                _continue(url, headers, part, progress)
    except (urllib.error.URLError, *_TRANSIENT) as error:
        raise DownloadFailed(f"{url} cannot be downloaded: {error}; what is there is kept for a next try") from error


def _continue(url: str, headers: Mapping[str, str], part: Path, progress: Progress) -> None:
    """One connection: asks for the bytes after those in `part` and appends what comes."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is not for the host that is redirected to
    try:
        answer = urllib.request.urlopen(request, timeout=STALL_SECONDS, context=_certificates())
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        return  # every byte is there already; the digest decides
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        reserve(part.parent, int(length or 0))
        _append(answer, part, have, total, progress)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The system's authorities and those of certifi: some installations of Python come without any."""
    context = ssl.create_default_context()
    if importlib.util.find_spec("certifi") is not None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _append(answer: http.client.HTTPResponse, part: Path, have: int, total: int | None, progress: Progress) -> None:
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        while piece := answer.read(PIECE_BYTES):
            file.write(piece)
            have += len(piece)
            progress("download", have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")
