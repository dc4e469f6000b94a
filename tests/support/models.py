"""The real model of the tests, pulled once by the product itself and kept between runs."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from mlx_serving.actors.models.aliases import DEFAULT_MODEL
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.store import ModelStore


def home() -> Path:
    """MLX_SERVING_TEST_HOME, or a folder of the user's cache."""
    return Path(os.environ.get("MLX_SERVING_TEST_HOME") or Path.home() / ".cache" / "mlx-serving-test")


@functools.cache
def pulled_smollm2() -> ModelRecord:
    """SmolLM2-135M, downloaded by the first caller on this machine."""
    return ModelStore(home()).pull(DEFAULT_MODEL)
