"""How keys and values are kept."""

from __future__ import annotations

import pytest

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat


def test_groups_are_as_large_as_every_head_size_allows() -> None:
    assert KvFormat.of("8bit", {64, 128}) == KvFormat(8, 64)
    assert KvFormat.of("4bit", {64, 96}) == KvFormat(4, 32)
    assert KvFormat.of("model", {24}) == KvFormat()


def test_heads_that_cannot_be_quantised_are_an_error_that_names_the_setting() -> None:
    with pytest.raises(ModelLoadFailed, match=r"generation\.kv_type is 8bit.*24 numbers, no multiple of 32"):
        KvFormat.of("8bit", {24})
