"""Which models are kept dequantised on CUDA."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
import pytest

from mlx_serving.actors.generation.mlx_engine import loading
from mlx_serving.config.schema import Generation

nn: Any = mlx.nn


def _model(bits: int) -> Any:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    nn.quantize(model, 32, bits)
    model.set_dtype(mx.bfloat16)
    return model


@pytest.mark.parametrize(
    ("bits", "settings", "is_dense"),
    [
        pytest.param(4, Generation(), False, id="the kernels take it"),
        pytest.param(4, Generation(product_kernels=False), True, id="they are switched off"),
        pytest.param(8, Generation(), True, id="they do not take it"),
        pytest.param(8, Generation(dequantize="off"), False, id="dequantising is switched off"),
        pytest.param(4, Generation(dequantize="on"), True, id="dequantising is wanted"),
        pytest.param(8, Generation(memory_fraction=0.05), False, id="it would take too much"),
    ],
)
def test_what_the_kernels_do_not_take_is_dequantised(
    monkeypatch: pytest.MonkeyPatch, bits: int, settings: Generation, is_dense: bool
) -> None:
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"compute_capability_major": 9})
    monkeypatch.setattr(loading, "is_cpu", lambda: False)
    memory = 100_000 if settings.memory_fraction == 0.05 else 1 << 30
    monkeypatch.setattr(loading, "memory_bytes", lambda: memory)
    found = loading.dequantise(_model(bits), settings)
    assert isinstance(found.layers[0], nn.QuantizedLinear) is not is_dense
