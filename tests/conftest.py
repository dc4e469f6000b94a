"""Fixtures of the whole suite: the real model in a home folder that is kept between runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.native import blas

MODEL = "smollm2-135m"

# Before any test module imports MLX: after that it would be too late for the whole process.
blas.install()

# The same examples in every run, however slow the machine is; `--hypothesis-profile=random` looks for others.
_ANY_PACE = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", _ANY_PACE, derandomize=True)
hypothesis.settings.register_profile("random", _ANY_PACE)
hypothesis.settings.load_profile("same")

# A shell starts background jobs with SIGINT ignored, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def kept_home() -> Path:
    """Where the fetched model stays: MLX_SERVING_TEST_HOME, or a folder of the user's cache."""
    given = os.environ.get("MLX_SERVING_TEST_HOME")
    return Path(given) if given else Path.home() / ".cache" / "mlx-serving-test"


@pytest.fixture(scope="session")
def smollm2() -> ModelRecord:
    """SmolLM2-135M, pulled as a user would pull it (idempotent)."""
    return ModelStore(kept_home()).pull(MODEL)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home folder."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="module")
def serving_home(smollm2: ModelRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder of this test module's own, with the model in it."""
    folder = tmp_path_factory.mktemp("home", numbered=True)
    (folder / "models").mkdir(mode=0o700)
    (folder / "models" / MODEL).symlink_to(smollm2.path)
    return folder
