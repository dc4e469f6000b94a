from __future__ import annotations

from pathlib import Path

import pytest

from mlx_serving.actors.qos import audit
from mlx_serving.actors.qos.audit import AuditLog, audit_path, read_audit
from mlx_serving.actors.qos.policy import AuditEntry


def entry(measured: float) -> AuditEntry:
    return AuditEntry("shed", "queue", measured, 5.0, ("low",), "refusing low")


def test_entries_are_read_back_in_order(tmp_path: Path) -> None:
    log = AuditLog(audit_path(tmp_path))
    for measured in (1.0, 2.0, 3.0):
        log.append(entry(measured))
    last = read_audit(audit_path(tmp_path), 2)
    assert [each["measured"] for each in last] == [2.0, 3.0]
    assert last[0]["what"] == "shed"
    assert last[0]["shed"] == ["low"]
    assert last[0]["at"].endswith("+00:00")


def test_there_is_nothing_to_read_before_the_first_entry(tmp_path: Path) -> None:
    assert read_audit(audit_path(tmp_path), 10) == []


def test_the_file_stays_bounded_and_the_latest_entries_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 2000)
    path = audit_path(tmp_path)
    log = AuditLog(path)
    for measured in range(100):
        log.append(entry(float(measured)))
    files = list(path.parent.iterdir())
    assert len(files) == 2
    assert all(file.stat().st_size <= 2000 for file in files)
    assert [each["measured"] for each in read_audit(path, 3)] == [97.0, 98.0, 99.0]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = audit_path(tmp_path)
    AuditLog(path).append(entry(1.0))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"at": "2026')
    assert len(read_audit(path, 10)) == 1
