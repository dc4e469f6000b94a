"""The native modules are optional where they cannot be built, and nowhere else: their tests would just be skipped."""

from __future__ import annotations

import os
import shutil

import pytest

from mlx_serving import native


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")
@pytest.mark.skipif(os.environ.get("MLX_SERVING_NATIVE") == "pure", reason="the pure twins were asked for")
def test_they_are_there_where_a_compiler_is() -> None:
    status = native.status()
    assert (status.choice, status.kernels) == ("native", "native"), (status.reason, status.kernels_reason)
