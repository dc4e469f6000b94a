"""The door a command goes through: of the server that runs on this home, or of a runtime started for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from mlx_serving.actors.addresses import door_of
from mlx_serving.actors.errors import ActorUnavailable
from mlx_serving.config.load import DEFAULT, Loaded
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.cli.console import err, note
from mlx_serving.frontends.cli.session import Session
from mlx_serving.frontends.cli.sources import Sources


@contextmanager
def running(sources: Sources) -> Iterator[Session]:
    """A session with the running server; ActorUnavailable when none runs."""
    address = door_of(sources.home)
    if address is None:
        raise ActorUnavailable(f"no server runs on {sources.home}")
    with Session(address, sources.load().settings) as session:
        yield session


@contextmanager
def any_door(sources: Sources, model: str | None) -> Iterator[Session]:
    """A session with the running server, or else with an embedded runtime that serves `model`."""
    if door_of(sources.home) is not None:
        with running(sources) as session:
            yield session
        return
    with _embedded(sources, model) as session:
        yield session


@contextmanager
def _embedded(sources: Sources, model: str | None) -> Iterator[Session]:
    from mlx_serving.actors.logs import configure_logging
    from mlx_serving.actors.system import Runtime
    from mlx_serving.frontends.cli.fetching import ensure_stored

    settings = _quiet(sources.load_for(model))
    note(f"no server runs on {sources.home}: starting {settings.models.default} for this command alone")
    ensure_stored(settings, sources.home)
    configure_logging(settings.telemetry)
    runtime = Runtime(settings, sources.home, announce=False)
    try:
        with err.status(f"loading {settings.models.default}"):
            runtime.start(wait_for_model=True)
        with Session(runtime.door, settings) as session:
            yield session
    finally:
        runtime.stop()


def _quiet(loaded: Loaded) -> Settings:
    """Unless a log level was chosen, only what goes wrong is told: stderr belongs to the command."""
    settings = loaded.settings
    if loaded.origins["telemetry.log_level"] != DEFAULT:
        return settings
    return attrs.evolve(settings, telemetry=attrs.evolve(settings.telemetry, log_level="warning"))
