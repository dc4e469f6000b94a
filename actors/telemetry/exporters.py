"""What telemetry knows, as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mlx_serving.actors.telemetry.series import Distribution, Series

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class PrometheusExporter:
    """Renders series through a registry of its own; nothing global is touched."""

    def __init__(self, series: Iterable[Series]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_SeriesCollector(tuple(series)))

    def text(self) -> str:
        """Text format 0.0.4 of every series as it stands."""
        return generate_latest(self._registry).decode()


class _SeriesCollector(Collector):
    def __init__(self, series: tuple[Series, ...]) -> None:
        self._series = series

    def collect(self) -> Iterator[Family]:
        return map(_family, self._series)

    def describe(self) -> list[Family]:
        """Nothing to compare with: the registry holds this one collector."""
        return []


def _family(series: Series) -> Family:
    metric = series.metric
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, distribution in series.distributions():
            histogram.add_metric(labels, _cumulated(metric.buckets, distribution), distribution.total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in series.numbers():
        family.add_metric(labels, value)
    return family


def _cumulated(buckets: tuple[float, ...], distribution: Distribution) -> list[tuple[str, float]]:
    bounds = [*map(floatToGoString, buckets), "+Inf"]
    return list(zip(bounds, accumulate(distribution.counts), strict=True))
