"""Questions about prefix caches: asked of every replica, answered once, whatever becomes of the replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.stage import Stage, staged

from mlx_serving.actors.admission.caches import Caches
from mlx_serving.actors.admission.catalogue import Catalogue
from mlx_serving.actors.base import Actor
from mlx_serving.actors.errors import ErrorInfo, ModelNotFound
from mlx_serving.actors.messages.admission import CacheObserved, CacheStatsRequested, ReplicaUp
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.frontend import CacheReported, Refused
from mlx_serving.actors.messages.values import CacheStats, ModelInfo
from mlx_serving.config.schema import Settings

STATS = CacheStats(enabled=True, tokens=64)


class Asking(Actor):
    """Admission's part of it, alone: two models, one of them with two replicas."""

    name = "admission"

    def set_up(self, node: Any) -> None:
        catalogue = Catalogue()
        for model, replicas in (("one", ("replica-1", "replica-2")), ("other", ("replica-3",))):
            served = catalogue.expect(model)
            info = ModelInfo(model, "/m", "llama", 1, "float16", 100, 50, 10)
            served.replicas = {name: ReplicaUp(name, info, "", 1, 1, 1) for name in replicas}
        self.caches = Caches(node, catalogue)
        self.answers: list[Any] = []

    def ask(self, model: str | None = None) -> None:
        self.caches.ask(CacheStatsRequested(model), self.answers.append)

    def answered(self, replica: str, number: int, message: Any = None) -> None:
        answer = message or CacheObserved(replica, STATS)
        self.caches.answered(Envelope(answer, replica, number))


@pytest.fixture
def stage(home: Path) -> Iterator[Stage]:
    with staged(Asking(), Settings(), home, "replica-1", "replica-2", "replica-3") as made:
        yield made


@pytest.fixture
def asking(stage: Stage) -> Asking:
    assert isinstance(stage.actor, Asking)
    return stage.actor


def replicas(answer: Any) -> list[tuple[str, str]]:
    assert isinstance(answer, CacheReported)
    return [(each.model, each.replica) for each in answer.replicas]


def test_every_replica_is_asked_and_the_answer_waits_for_all(stage: Stage, asking: Asking) -> None:
    asking.ask()
    numbers = {peer: stage.told(peer).correlation for peer in ("replica-1", "replica-2", "replica-3")}
    for peer in ("replica-3", "replica-2", "replica-1"):
        assert asking.answers == []
        asking.answered(peer, numbers[peer])
        asking.answered(peer, numbers[peer])
    (answer,) = asking.answers
    assert replicas(answer) == [("one", "replica-1"), ("one", "replica-2"), ("other", "replica-3")]


def test_one_models_replicas_alone_are_asked(stage: Stage, asking: Asking) -> None:
    asking.ask("other")
    asking.answered("replica-3", stage.told("replica-3").correlation)
    assert replicas(asking.answers[0]) == [("other", "replica-3")]
    assert stage.told_nothing("replica-1")
    with pytest.raises(ModelNotFound):
        asking.ask("nobody")


def test_a_replica_that_dies_is_left_out(stage: Stage, asking: Asking) -> None:
    asking.ask("one")
    asking.answered("replica-1", stage.told("replica-1").correlation)
    asking.caches.replica_gone("replica-2")
    assert replicas(asking.answers[0]) == [("one", "replica-1")]


def test_a_refusal_and_silence_are_told(stage: Stage, asking: Asking) -> None:
    asking.ask("one")
    asking.answered("replica-1", stage.told("replica-1").correlation, Refused(ErrorInfo("internal_error", "broken")))
    asking.ask("one")
    asking.caches.expire(stage.now + Settings().transport.ask_timeout)
    asking.ask("one")
    asking.caches.refuse_all(ErrorInfo("actor_unavailable", "shutting down"))
    messages = [answer.error.message for answer in asking.answers]
    assert messages == ["broken", "no answer from replica-1, replica-2", "shutting down"]
