"""Writes down what a Python process does once: modules imported, code compiled; for `support.first_calls`.

Python imports this module at its start where the folder is on its path, in child processes too.
"""

import os
import sys
from typing import Any


def _watch(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import":
            os.write(log, f"{os.getpid()} imports {arguments[0]}\n".encode())
        elif event == "compile":
            os.write(log, f"{os.getpid()} compiles {arguments[1]}\n".encode())

    sys.addaudithook(note)


if "FIRST_CALLS_LOG" in os.environ:
    _watch(os.environ["FIRST_CALLS_LOG"])
