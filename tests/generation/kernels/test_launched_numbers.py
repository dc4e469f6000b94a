"""Numbers that ride on a launch arrive as they are, or go the ordinary way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_serving.actors.generation.mlx_engine import cuda_programs, launched_numbers
from mlx_serving.actors.generation.mlx_engine.launched_numbers import floats, integers, table


class Device:
    """What a launch gives, of the last of which it keeps the number of words. `shift` is added to each."""

    def __init__(self) -> None:
        self.shift = 0
        self.words: int | None = None

    def launch(self, *, scalars: list[int], output_shapes: list[tuple[int, ...]], **_: Any) -> list[mx.array]:
        (size,) = output_shapes[0]
        assert len(scalars) == size
        self.words = size
        return [mx.array(scalars, dtype=mx.int32) + self.shift]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    found = Device()
    monkeypatch.setattr(cuda_programs, "architecture", lambda: "sm_90")
    monkeypatch.setattr(cuda_programs, "compiled", lambda source, architecture: source.encode())
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", found.launch)
    _forget()
    yield found
    _forget()


def _forget() -> None:
    launched_numbers._carries.cache_clear()
    launched_numbers._kernel.cache_clear()


@pytest.mark.parametrize("count", [3, 16, 17, 33, 64, 65, 160])
def test_integers_ride_on_the_launch_of_the_next_size(device: Device, count: int) -> None:
    values = [(-1) ** place * place * 97 for place in range(count)]
    found = integers(values)
    assert found.dtype == mx.int32
    assert found.tolist() == values
    assert device.words == next(size for size in (16, 64, 160) if size >= count)


def test_rows_of_a_table_are_filled_up_with_nothing(device: Device) -> None:
    found = table([[7, -8, 9], [], [10]], 4)
    assert device.words == 16
    assert found.dtype == mx.int32
    assert found.tolist() == [[7, -8, 9, 0], [0, 0, 0, 0], [10, 0, 0, 0]]


def test_floats_arrive_bit_by_bit(device: Device) -> None:
    values = np.array([[0.0, -0.0, 1.5], [np.inf, -np.inf, 1e-40]], dtype=np.float32)
    found = np.array(floats(values))
    assert device.words == 16
    assert found.shape == values.shape
    assert found.tobytes() == values.tobytes()


def test_what_is_changed_later_is_not_what_was_launched(device: Device) -> None:
    values = np.ones(20, dtype=np.float32)
    found = floats(values)
    values[:] = 2.0
    assert found.tolist() == [1.0] * 20


def test_few_and_many_go_the_ordinary_way(device: Device) -> None:
    launched_numbers.prepare()
    device.words = None
    assert integers([5, 6]).tolist() == [5, 6]
    assert integers(list(range(161))).tolist() == list(range(161))
    assert floats(np.zeros((41, 4), dtype=np.float32)).shape == (41, 4)
    assert device.words is None


def test_numbers_that_arrive_changed_go_the_ordinary_way(device: Device) -> None:
    device.shift = 1
    assert integers([1, 2, 3]).tolist() == [1, 2, 3]
    assert floats(np.array([0.5, 2.0, 3.0], dtype=np.float32)).tolist() == [0.5, 2.0, 3.0]


def test_without_cuda_they_go_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_programs, "architecture", lambda: None)
    _forget()
    try:
        assert integers([1, 2, 3]).tolist() == [1, 2, 3]
    finally:
        _forget()


@pytest.mark.parametrize("size", launched_numbers._SIZES)
def test_the_source_takes_as_many_numbers_as_it_writes(size: int) -> None:
    text = launched_numbers.source(size)
    assert text.count("int number_") == size
    assert f"place < {size};" in text
    try:
        code = cuda_programs.compiled(text, "sm_90")
    except OSError:
        pytest.skip("NVRTC is not installed")
    assert b"KERNEL_NAME" in code
