"""Log lines, read from a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import attrs, logging
from mlx_serving.actors.logs import configure_logging, get_logger
from mlx_serving.config.schema import Telemetry
log = get_logger("qos")
def lines(**settings):
    configure_logging(Telemetry(**settings))
    log.debug("hidden" if settings.get("log_level") != "debug" else "shown")
    log.info("hello", number=1)
    logging.getLogger("library").info("hidden")
    logging.getLogger("library").warning("careful %s", "now")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    # Without coverage in the child: it would write to the stderr that the script takes away.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )


def test_json_lines_go_to_stderr_and_nothing_to_stdout() -> None:
    done = run("lines(log_format='json')")
    assert done.stdout == ""
    hello, library, failed = [json.loads(line) for line in done.stderr.splitlines()]
    assert (hello["event"], hello["actor"], hello["level"], hello["number"]) == ("hello", "qos", "info", 1)
    assert hello["timestamp"].endswith("Z")
    assert (library["event"], library["logger"], library["level"]) == ("careful now", "library", "warning")
    assert "ZeroDivisionError" in failed["exception"]


def test_console_lines_are_plain_where_stderr_is_no_terminal() -> None:
    done = run("lines()")
    assert done.stdout == ""
    assert "\x1b[" not in done.stderr
    assert "hello" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "hidden" not in done.stderr


def test_a_logger_follows_a_change_of_the_level() -> None:
    done = run("lines(log_level='error', log_format='json')\nlines(log_level='debug', log_format='json')")
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["failed", "shown", "hello", "hidden", "careful now", "failed"]


@pytest.mark.parametrize(
    "ending",
    [
        "import sys; sys.stderr.close()",
        "import sys; sys.stderr = None",
        "import os; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 2)",
    ],
)
def test_a_stderr_that_is_gone_is_no_reason_to_fail(ending: str) -> None:
    # Python itself ends with status 120 when it cannot flush stderr at exit: leave before that.
    leave = "print('still here', flush=True); import os; os._exit(0)"
    assert run(f"{ending}; lines(); {leave}").stdout == "still here\n"
