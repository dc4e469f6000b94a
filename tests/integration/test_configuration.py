"""Settings of a running server."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.server import Server
from support.wait import until

pytestmark = pytest.mark.integration


def test_a_live_setting_takes_hold_and_an_invalid_file_changes_nothing(serving_home: Path) -> None:
    file = serving_home / "runtime.yaml"
    file.write_text("telemetry:\n  log_level: info\n")
    with Server(serving_home, generation__engine="scripted") as server:
        file.write_text("telemetry:\n  log_level: loud\n")
        until(lambda: "refused" in server.log(), what="the refusal")
        file.write_text("telemetry:\n  log_level: error\nstdio:\n  max_line_bytes: 4096\n")
        until(lambda: "stdio.max_line_bytes" in server.log(), what="the change")
        said = server.log().count("[info")
        pid = server.replica_pid()
        os.kill(pid, signal.SIGKILL)
        until(
            lambda: server.get("/readyz")[0] == 200 and server.replica_pid() not in (0, pid),
            what="a new replica",
        )
        assert server.log().count("[info") == said
        assert "actor lost" in server.log()
