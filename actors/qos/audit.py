"""The audit log: one JSON line for everything QoS judged or did, in a file of bounded size."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from mlx_serving.actors.qos.policy import AuditEntry

MAX_BYTES = 1 << 20
"""Size at which the file becomes the older one; there are at most two."""


def audit_path(home: Path) -> Path:
    """Where the log of a home folder stands."""
    return home / "state" / "qos-audit.jsonl"


class AuditLog:
    """Appends entries; errors of the disk (OSError) are the caller's to deal with."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, entry: AuditEntry) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **attrs.asdict(entry)})
        if self._path.exists() and self._path.stat().st_size + len(line) >= MAX_BYTES:
            self._path.replace(_older(self._path))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_audit(path: Path, limit: int) -> list[dict[str, Any]]:
    """The last `limit` entries, oldest first, with the time `at`; a line cut short by a crash is left out."""
    lines = [
        line
        for file in (_older(path), path)
        if file.exists()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return [entry for line in lines[-limit:] if (entry := _entry(line)) is not None]


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")
