"""The QoS actor on a real bus: what admission is told, and what stands in the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.stage import Stage, staged

from mlx_serving.actors.messages.admission import ClassesShed
from mlx_serving.actors.messages.qos import Quantiles, TelemetrySnapshot
from mlx_serving.actors.qos.actor import SILENCE, QosActor
from mlx_serving.actors.qos.audit import audit_path, read_audit
from mlx_serving.config.schema import Qos, Settings, Slo

QOS = Qos(slo=Slo(queue_p95=2.0), violations_to_act=2, recoveries_to_stop=3, cooldown_seconds=0.0)
NOTHING = Quantiles(0, 0.0, 0.0, 0.0)


def snapshot(oldest_wait: float) -> TelemetrySnapshot:
    return TelemetrySnapshot(60.0, 0.0, NOTHING, NOTHING, NOTHING, oldest_wait, 0, 0.0)


@pytest.fixture
def stage(home: Path) -> Iterator[Stage]:
    with staged(QosActor(), Settings(qos=QOS), home, "admission") as stage:
        yield stage


def judge(stage: Stage, *oldest_waits: float) -> None:
    for oldest_wait in oldest_waits:
        stage.now += 1.0
        stage.handle(snapshot(oldest_wait))


def shed(stage: Stage) -> tuple[str, ...]:
    message = stage.told("admission").message
    assert isinstance(message, ClassesShed)
    return message.priorities


def test_admission_is_told_to_shed_and_to_stop(stage: Stage, home: Path) -> None:
    judge(stage, 9, 9, 1, 1, 1, 1)
    assert [shed(stage) for _ in range(5)] == [(), ("low",), ("low",), ("low",), ()]
    assert stage.told_nothing("admission")
    whats = [entry["what"] for entry in read_audit(audit_path(home), 10)]
    assert whats == ["violated", "shed", "effect", "recovered", "stopped"]


def test_a_fresh_actor_ends_what_its_predecessor_shed(stage: Stage) -> None:
    judge(stage, 0)
    assert shed(stage) == ()


def test_shedding_carries_a_reason_and_a_time_to_come_back(stage: Stage) -> None:
    judge(stage, 9, 9)
    shed(stage)
    message = stage.told("admission").message
    assert message == ClassesShed(("low",), "requests wait too long for a slot", 3.0)


def test_nothing_is_shed_once_telemetry_is_silent(stage: Stage) -> None:
    judge(stage, 9, 9)
    assert [shed(stage), shed(stage)] == [(), ("low",)]
    stage.actor.tick(stage.now + SILENCE)
    assert stage.told_nothing("admission")
    stage.actor.tick(stage.now + SILENCE + 0.1)
    assert shed(stage) == ()


def test_a_disabled_actor_sheds_nothing(home: Path) -> None:
    settings = Settings(qos=Qos(enabled=False, violations_to_act=1))
    with staged(QosActor(), settings, home, "admission") as stage:
        judge(stage, 99, 99, 99)
        assert shed(stage) == ()
        assert stage.told_nothing("admission")


def test_an_audit_log_that_cannot_be_written_stops_nothing(stage: Stage, home: Path) -> None:
    (home / "state").touch()
    with capture_logs() as lines:
        judge(stage, 9, 9)
    assert [shed(stage), shed(stage)] == [(), ("low",)]
    assert "audit entry not written" in [line["event"] for line in lines]
