"""Have the model here before it is served."""

from __future__ import annotations

from pathlib import Path

from mlx_serving.actors.errors import ModelNotFound
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.cli.progress import watched


def ensure_stored(settings: Settings, home: Path) -> None:
    """Fetch the default model and its draft model if they are not here.

    ModelNotFound with near names if one cannot be fetched.
    """
    for name in (settings.models.default, settings.generation.speculation.draft_model):
        if name:
            _ensure_stored(name, settings, home)


def _ensure_stored(name: str, settings: Settings, home: Path) -> None:
    store = ModelStore(home)
    try:
        store.resolve(name, [Path(folder) for folder in settings.models.trusted_folders])
    except ModelNotFound:
        if name.startswith("/"):
            raise
        with watched(name) as progress:
            store.pull(name, progress)
