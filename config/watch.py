"""Hot reload: when the settings file changes and is valid, a running server takes over its `live` settings.

Other settings that changed keep their running value and are reported as needing a restart. An invalid file is
logged and changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import structlog
import watchfiles

from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.config.fields import build, fields, flatten
from mlx_serving.config.load import Loaded
from mlx_serving.config.schema import Settings


@attrs.frozen
class Change:
    """The settings to go on with, the dotted keys taken over, and those that wait for a restart."""

    settings: Settings
    applied: tuple[str, ...]
    restart: tuple[str, ...]


def merge(running: Settings, fresh: Settings) -> Change:
    """`running` with the live settings of `fresh`."""
    old, new = flatten(running), flatten(fresh)
    changed = [key for key in fields() if old[key] != new[key]]
    applied = tuple(key for key in changed if fields()[key].live)
    restart = tuple(key for key in changed if not fields()[key].live)
    return Change(build({**old, **{key: new[key] for key in applied}}), applied, restart)


class SettingsWatcher:
    """Watches the folder of the settings file: editors and configuration managers replace files."""

    def __init__(self, running: Settings, load: Callable[[], Loaded], folder: Path) -> None:
        """`load` reads every layer again; it may raise ConfigurationInvalid."""
        self._running = running
        self._load = load
        self._folder = folder
        self._restart: tuple[str, ...] = ()
        self._refusal = ""
        self._log = structlog.get_logger(actor="config")

    def changes(self, stop: threading.Event) -> Iterator[Change]:
        """Blocks; one Change for each edit that matters, until `stop` is set."""
        # Also at every timeout: an edit may precede the watch, and some file systems tell nothing.
        events = watchfiles.watch(
            self._folder, stop_event=stop, recursive=False, raise_interrupt=False, yield_on_timeout=True
        )
        for _ in events:
            change = self.check()
            if change is not None:
                yield change

    def check(self) -> Change | None:
        """Read the layers now; None when nothing is new or something is invalid."""
        try:
            change = merge(self._running, self._load().settings)
        except ConfigurationInvalid as error:
            self._refuse(error.message)
            return None
        self._refusal = ""
        if not change.applied and change.restart == self._restart:
            return None
        self._running, self._restart = change.settings, change.restart
        self._log.info("settings changed", applied=change.applied, need_a_restart=change.restart)
        return change

    def _refuse(self, message: str) -> None:
        if message != self._refusal:
            self._log.error("settings file refused, the old settings stay", reason=message)
        self._refusal = message
