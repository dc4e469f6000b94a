"""The telemetry actor on a real bus."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs
from support.stage import staged

from mlx_serving.actors.messages.admission import MetricsRequested
from mlx_serving.actors.messages.frontend import MetricsReported
from mlx_serving.actors.messages.qos import TelemetrySnapshot
from mlx_serving.actors.messages.telemetry import RequestEnded
from mlx_serving.actors.telemetry.actor import TelemetryActor
from mlx_serving.config.schema import Settings, Telemetry

ENDED = RequestEnded("m", "normal", "stop", True, 10, 5, 0, 0.1, 0.2, 0.5)


def test_events_come_back_as_metrics_to_whoever_asked(home: Path) -> None:
    with staged(TelemetryActor(), Settings(), home, "admission") as stage:
        stage.handle(ENDED)
        stage.handle(MetricsRequested(), sender="admission", correlation=42)
        answer = stage.told("admission")
    assert answer.correlation == 42
    assert isinstance(answer.message, MetricsReported)
    assert 'mlx_serving_completion_tokens_total{model="m"} 5.0' in answer.message.text.splitlines()


def test_every_tick_gives_qos_a_snapshot_of_the_window(home: Path) -> None:
    settings = Settings(telemetry=Telemetry(snapshot_seconds=0.5, window_seconds=10.0))
    with staged(TelemetryActor(), settings, home, "qos") as stage:
        assert stage.actor.interval == 0.5
        stage.handle(ENDED)
        stage.actor.tick(stage.now)
        first = stage.told("qos").message
        stage.actor.tick(stage.now + 11.0)
        second = stage.told("qos").message
    assert isinstance(first, TelemetrySnapshot)
    assert (first.requests, first.error_rate, first.window) == (1, 1.0, 10.0)
    assert second.requests == 0


def test_a_message_that_is_no_event_is_logged_and_changes_nothing(home: Path) -> None:
    with staged(TelemetryActor(), Settings(), home) as stage, capture_logs() as lines:
        stage.handle(MetricsReported(""))
    assert [(line["event"], line["message"]) for line in lines] == [("unexpected message", "MetricsReported")]
