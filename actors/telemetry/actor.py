"""The telemetry actor: takes events, answers with metrics, and gives QoS its snapshots."""

from __future__ import annotations

from mlx_serving.actors.base import Actor, Node
from mlx_serving.actors.messages.admission import MetricsRequested
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.frontend import MetricsReported
from mlx_serving.actors.telemetry.aggregate import Aggregate
from mlx_serving.actors.telemetry.exporters import PrometheusExporter


class TelemetryActor(Actor):
    """Listens; no other actor waits for it."""

    name = "telemetry"

    def set_up(self, node: Node) -> None:
        self.node = node
        self.interval = node.settings.telemetry.snapshot_seconds
        self._aggregate = Aggregate(node.settings.telemetry.window_seconds)
        self._exporter = PrometheusExporter(self._aggregate.series.values())

    def handle(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, MetricsRequested):
            answer = MetricsReported(self._exporter.text())
            self.node.tell(envelope.sender, answer, correlation=envelope.correlation)
        elif not self._aggregate.observe(message, self.node.clock()):
            self.node.log.warning("unexpected message", message=type(message).__name__)

    def tick(self, now: float) -> None:
        self.node.tell("qos", self._aggregate.snapshot(now))
