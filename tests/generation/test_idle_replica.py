"""A replica that has nothing to do for a while lets its engine give memory back, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from support.scripted import RECORD

from mlx_serving.actors.base import Node
from mlx_serving.actors.generation.actor import REST_SECONDS, GenerationActor
from mlx_serving.actors.generation.scripted import ScriptedEngine
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.generation import SequenceAssigned
from mlx_serving.actors.messages.values import Sampling, Stopping, pack_ids
from mlx_serving.config.schema import Generation, Models


def test_it_rests_once_after_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    rests: list[float] = []
    monkeypatch.setattr(ScriptedEngine, "rest", lambda self: rests.append(now))
    node = SimpleNamespace(
        settings=SimpleNamespace(models=Models()),
        clock=lambda: now,
        tell=lambda *_, **__: True,
        emit=lambda event: None,
    )
    actor = GenerationActor("replica", lambda: ScriptedEngine(RECORD, Generation()))
    actor.set_up(cast(Node, node))
    actor.tick(now)
    stopping = Stopping(max_tokens=2, ignore_eos=True)
    sequence = SequenceQueued(1, "tiny", pack_ids([1, 2]), Sampling(), stopping, 0, now)
    actor.handle(Envelope(SequenceAssigned(sequence, now), ""))
    while actor.pending:
        actor.work()
    actor.tick(now + REST_SECONDS / 2)
    assert not rests
    now += REST_SECONDS
    for _ in range(3):
        actor.tick(now)
    assert rests == [now]
