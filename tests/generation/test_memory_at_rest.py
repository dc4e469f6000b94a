"""What of the allocator's memory is given back while nothing runs."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_serving.actors.generation.mlx_engine import loading


@pytest.mark.parametrize(("back_end", "expected"), [("cpu", 1), ("metal", 1), ("cuda", 0)])
def test_only_cuda_keeps_whatever_its_limit_allows(
    monkeypatch: pytest.MonkeyPatch, back_end: str, expected: int
) -> None:
    cleared: list[None] = []
    monkeypatch.setattr(loading, "back_end", lambda: back_end)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 8 << 30)
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(None))
    loading.return_memory()
    assert len(cleared) == expected
