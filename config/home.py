"""The home folder: models, state and runtime sockets of one user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlx_serving.actors.errors import ConfigurationInvalid

VARIABLE = "MLX_SERVING_HOME"


def serving_home(env: Mapping[str, str]) -> Path:
    """The absolute home folder, made for this user alone (0700) if missing; raises ConfigurationInvalid."""
    try:
        home = Path(env.get(VARIABLE) or "~/.mlx-serving").expanduser().absolute()
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        message = f"{VARIABLE} must be a folder that can be made and written: {error}"
        raise ConfigurationInvalid(message, field=VARIABLE) from error
    return home
