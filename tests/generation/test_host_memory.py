"""Memory for what is on its way to the device."""

from __future__ import annotations

import gc
import threading
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_serving.actors.generation.mlx_engine.host_memory import HostStage


def test_what_was_written_is_copied_and_its_memory_used_again() -> None:
    stage = HostStage(100)
    for number in range(5):
        first, second = stage.take(60), stage.take(40)
        assert first is not None
        assert second is not None
        assert stage.take(1) is None
        first[:], second[:] = bytes([number]) * 60, bytes([number + 100]) * 40
        copies = [stage.on_device(first[10:30]), stage.on_device(second)]
        mx.eval(copies)
        del first, second
        following = stage.take(100)
        assert following is not None
        following[:] = bytes(100)
        del following
        assert [np.array(each).tolist() for each in copies] == [[number] * 20, [number + 100] * 40]


def test_it_is_not_used_again_while_a_part_is_held() -> None:
    stage = HostStage(100)
    first, second = stage.take(50), stage.take(30)
    assert second is not None
    part = second[5:10]
    del first, second
    assert stage.take(50) is None
    del part
    assert stage.take(100) is not None


def test_other_memory_is_not_its_own() -> None:
    assert HostStage(100).on_device(memoryview(bytearray(10))) is None


class Collected(np.ndarray[Any, Any]):
    """An array that runs the garbage collector whenever a part of it is taken."""

    def __getitem__(self, key: Any) -> Any:
        gc.collect()
        return super().__getitem__(key)


def test_a_part_that_is_let_go_while_another_is_taken_does_not_free_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = HostStage(100)
    monkeypatch.setattr(stage, "_bytes", stage._bytes.view(Collected))
    gc.disable()
    try:
        circle: list[Any] = [stage.take(50)]
        circle.append(circle)
        del circle
        second, others = stage.take(30), []
        assert second is not None
        second[:] = bytes([1]) * 30
        while (other := stage.take(20)) is not None:
            other[:] = bytes([2]) * 20
            others.append(other)
        assert bytes(second) == bytes([1]) * 30
        del second, others
        assert stage.take(100) is not None
    finally:
        gc.enable()


def test_threads_never_share_a_part() -> None:
    stage = HostStage(1 << 16)
    wrong: list[int] = []
    everybody = threading.Barrier(8, timeout=60)

    def use(number: int) -> None:
        content = bytes([number]) * 1000
        for _ in range(100):
            parts = [part for part in (stage.take(1000) for _ in range(8)) if part is not None]
            for part in parts:
                part[:] = content
            everybody.wait()
            wrong.extend(number for part in parts if bytes(part) != content)
            if len(parts) < 8:
                wrong.append(number)
            del part, parts
            everybody.wait()

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert stage.take(1 << 16) is not None
