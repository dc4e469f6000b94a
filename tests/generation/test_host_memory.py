"""Memory for what is on its way to the device."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np

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


def test_threads_never_share_a_part() -> None:
    stage, wrong = HostStage(1 << 16), []

    def use(number: int) -> None:
        for _ in range(200):
            part = stage.take(1000)
            if part is not None:
                part[:] = bytes([number]) * 1000
                if bytes(part) != bytes([number]) * 1000:
                    wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert stage.take(1 << 16) is not None
