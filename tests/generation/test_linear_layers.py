"""Linear layers that choose how they multiply."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

from mlx_serving.actors.generation.mlx_engine import linear_layers
from mlx_serving.actors.generation.mlx_engine.linear_layers import choose_products, dense_from

nn: Any = mlx.nn


class Model(nn.Module):  # type: ignore[misc]
    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        self.embed = nn.QuantizedEmbedding(96, 64, group_size, bits)
        self.layer = nn.QuantizedLinear(64, 128, True, group_size, bits)


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("rows", [1, 3, 4, 33])
def test_dense_and_quantised_products_agree(bits: int, rows: int) -> None:
    mx.random.seed(bits)
    model = Model(bits, 32)
    x = mx.random.normal((1, rows, 64))
    expected = [np.array(model.layer(x)), np.array(model.embed.as_linear(x))]
    assert choose_products(model, dense_from(4)) == 2
    found = [np.array(model.layer(x)), np.array(model.embed.as_linear(x))]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_layers_in_half_precision_go_the_dense_way_once_they_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(4, 32)
    model.set_dtype(mx.float16)
    choose_products(model, dense_from(4))
    inner, dense = linear_layers.dequantised, []

    def noted(layer: Any) -> mx.array:
        dense.append(layer)
        return inner(layer)

    monkeypatch.setattr(linear_layers, "dequantised", noted)
    x = mx.random.normal((1, 4, 64), key=mx.random.key(1))
    mx.eval(model.layer(x.astype(mx.float16)), model.embed.as_linear(x.astype(mx.float16)))
    assert not dense
    model.set_dtype(mx.float32)
    mx.eval(model.layer(x), model.embed.as_linear(x))
    assert dense == [model.layer, model.embed]
