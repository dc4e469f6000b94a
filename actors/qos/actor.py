"""The QoS actor: judges each snapshot, tells admission what to shed, and writes down why."""

from __future__ import annotations

import attrs

from mlx_serving.actors.base import Actor, Node
from mlx_serving.actors.messages.admission import ClassesShed
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.qos import TelemetrySnapshot
from mlx_serving.actors.qos.audit import AuditLog, audit_path
from mlx_serving.actors.qos.policy import AuditEntry, Policy
from mlx_serving.actors.qos.slo import judge

SILENCE = 10
"""Snapshots that may fail to come before telemetry is taken for gone."""


class QosActor(Actor):
    """Judges and acts while `qos.enabled`; otherwise it only makes sure that nothing is shed."""

    name = "qos"

    def set_up(self, node: Node) -> None:
        self.node = node
        self.interval = node.settings.telemetry.snapshot_seconds
        self._policy = Policy()
        self._audit = AuditLog(audit_path(node.home))
        self._heard_at = node.clock()
        # Admission may still shed what a predecessor of this actor asked for.
        self._is_told = False

    def handle(self, envelope: Envelope) -> None:
        if not isinstance(envelope.message, TelemetrySnapshot):
            self.node.log.warning("unexpected message", message=type(envelope.message).__name__)
            return
        now, qos = self.node.clock(), self.node.settings.qos
        self._heard_at = now
        if qos.enabled:
            self._write(self._policy.decide(judge(envelope.message, qos.slo), qos, now))
        self._tell()

    def tick(self, now: float) -> None:
        if now - self._heard_at > SILENCE * self.node.settings.telemetry.snapshot_seconds:
            self._write(self._policy.fall_silent(now))
            self._tell()

    def _tell(self) -> None:
        """Said again with every snapshot while something is shed: admission may have been restarted."""
        shed, settings = self._policy.shed, self.node.settings
        if self._is_told and not shed:
            return
        retry_after = max(1.0, settings.qos.recoveries_to_stop * settings.telemetry.snapshot_seconds)
        message = ClassesShed(shed, "requests wait too long for a slot" if shed else "", retry_after)
        self._is_told = self.node.tell("admission", message) and not shed

    def _write(self, entries: list[AuditEntry]) -> None:
        for entry in entries:
            told = attrs.asdict(entry, filter=lambda field, _: field.name != "what")
            self.node.log.info(entry.what, **told)
            try:
                self._audit.append(entry)
            except OSError as error:
                self.node.log.warning("audit entry not written", reason=str(error))
