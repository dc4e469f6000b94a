"""The text, read back by the parser of the Prometheus client."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_serving.actors.messages.telemetry import RequestEnded
from mlx_serving.actors.telemetry.aggregate import Aggregate
from mlx_serving.actors.telemetry.exporters import PrometheusExporter
from mlx_serving.actors.telemetry.metrics import METRICS

MODEL = 'odd "name"\\ with\nbreaks'


def request(outcome: str, first_token: float | None) -> RequestEnded:
    return RequestEnded(MODEL, "high", outcome, False, 7, 3, 0, 0.02, first_token, 1.5)


@pytest.fixture
def samples() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    aggregate = Aggregate(60.0)
    aggregate.observe(request("stop", 0.3), 1.0)
    aggregate.observe(request("length", 99.0), 1.0)
    text = PrometheusExporter(aggregate.series.values()).text()
    families = list(text_string_to_metric_families(text))
    assert len(families) == len(METRICS)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def labelled(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_counters_carry_their_labels_unharmed(
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float],
) -> None:
    requests = "mlx_serving_requests_total"
    assert samples[labelled(requests, model=MODEL, priority="high", outcome="stop")] == 1
    assert samples[labelled("mlx_serving_prompt_tokens_total", model=MODEL)] == 14


def test_histograms_are_cumulative(samples: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
    name = "mlx_serving_time_to_first_token_seconds"
    assert samples[labelled(f"{name}_bucket", model=MODEL, le="0.25")] == 0
    assert samples[labelled(f"{name}_bucket", model=MODEL, le="0.5")] == 1
    assert samples[labelled(f"{name}_bucket", model=MODEL, le="120.0")] == 2
    assert samples[labelled(f"{name}_bucket", model=MODEL, le="+Inf")] == 2
    assert samples[labelled(f"{name}_count", model=MODEL)] == 2
    assert samples[labelled(f"{name}_sum", model=MODEL)] == pytest.approx(99.3)


def test_metrics_are_named_by_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("mlx_serving_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))
