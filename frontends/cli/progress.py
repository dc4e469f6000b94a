"""Progress of long work on stderr: bars at a terminal, one line for each phase elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from mlx_serving.actors.models.progress import Progress
from mlx_serving.frontends.cli.console import err, note


@contextmanager
def watched(title: str) -> Iterator[Progress]:
    """A callback for the model store that shows how far the work on `title` is."""
    if not err.is_terminal:
        yield _Lines(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Bars(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=err, transient=True) as bars:
        yield _Bars(title, bars)


class _Lines:
    """Says which phase has begun."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._phase = ""

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if phase != self._phase:
            self._phase = phase
            note(f"{self._title}: {phase}")


class _Bars:
    """One bar; a new phase starts it anew."""

    def __init__(self, title: str, bars: Bars) -> None:
        self._title = title
        self._bars = bars
        self._phase = ""
        self._task = bars.add_task(title, total=None)

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if phase != self._phase:
            self._phase = phase
            self._bars.reset(self._task, description=f"{self._title}: {phase}", total=total)
        self._bars.update(self._task, completed=done, total=total)
