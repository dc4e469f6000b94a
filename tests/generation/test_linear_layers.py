"""Linear layers that choose how they multiply."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

from mlx_serving.actors.generation.mlx_engine import linear_layers, product_kernels
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


def _kinds(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which products are taken from now on."""
    taken: list[str] = []

    def noted(kind: str, outputs: int) -> Any:
        def product(x: mx.array, *_: Any) -> mx.array:
            taken.append(kind)
            return mx.zeros((*x.shape[:-1], outputs), dtype=x.dtype)

        return product

    monkeypatch.setattr(product_kernels, "quantized", noted("quantized", 128))
    monkeypatch.setattr(product_kernels, "dense", noted("dense", 128))
    inner = linear_layers.dequantised

    def dequantised(layer: Any) -> mx.array:
        taken.append("dequantised")
        return inner(layer)

    monkeypatch.setattr(linear_layers, "dequantised", dequantised)
    assert choose_products(model, linear_layers.on_tensor_cores)
    return taken


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (0, []),
        (1, ["quantized"]),
        (2, ["quantized", "quantized"]),
        (64, ["quantized", "quantized"]),
        (65, ["dequantised", "dequantised"]),
    ],
)
def test_a_few_rows_of_quantised_layers_go_to_the_kernel(
    rows: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One alone where a bias is added: the first layer has one, the second has none."""
    model = Model(4, 32)
    model.set_dtype(mx.bfloat16)
    taken = _kinds(model, monkeypatch)
    x = mx.zeros((1, rows, 64), dtype=mx.bfloat16)
    assert model.layer(x).shape == (1, rows, 128)
    assert model.embed.as_linear(x).dtype == mx.bfloat16
    assert taken == expected


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 32, 33])
def test_a_few_rows_of_dense_layers_go_to_the_kernel(
    rows: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ["dense"] if 2 - has_bias <= rows <= 32 else []
    model = Model(4, 32)
    model.layer = nn.Linear(64, 128, bias=has_bias)
    model.set_dtype(mx.bfloat16)
    taken = _kinds(model, monkeypatch)
    model.layer(mx.zeros((rows, 64), dtype=mx.bfloat16))
    assert taken == expected


def test_what_the_kernels_do_not_take_goes_to_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(8, 32)
    model.set_dtype(mx.bfloat16)
    model.dense = nn.Linear(64, 128)
    model.mixed = nn.Linear(64, 128)
    model.mixed.weight = model.mixed.weight.astype(mx.bfloat16)  # and the bias stays float32
    taken = _kinds(model, monkeypatch)
    x = mx.zeros((4, 64), dtype=mx.bfloat16)
    for found in (model.layer(x), model.dense(x), model.mixed(x), model.layer(x.astype(mx.float32))):
        assert found.shape == (4, 128)
    assert taken == []


def test_transposed_weights_are_laid_out() -> None:
    model = Model(4, 32)
    model.dense = nn.Linear(64, 128)
    weight = mx.random.normal((64, 128), key=mx.random.key(1))
    model.dense.weight = weight.T
    linear_layers.lay_out(model)
    np.testing.assert_array_equal(np.array(model.dense.weight), np.array(weight).T)
