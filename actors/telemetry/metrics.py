"""The one table of metrics: names, kinds, labels, buckets and meaning, by the conventions of Prometheus.

Times are seconds, sizes bytes. A counter's name ends in `_total`, a measure's in its unit.
"""

from __future__ import annotations

from typing import Literal

import attrs

Kind = Literal["counter", "gauge", "histogram"]


@attrs.frozen
class Metric:
    """`buckets` are the upper bounds of a histogram, ascending, without the infinite one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_DRAFTS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"mlx_serving_{name}_total", "counter", meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"mlx_serving_{name}", "gauge", meaning, labels)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(f"mlx_serving_{name}", "histogram", meaning, labels, buckets)


ACCEPTED = _counter("requests_accepted", "Requests that admission let in.", "model", "priority")
REFUSED = _counter("requests_refused", "Requests that admission refused at once.", "priority")
REQUESTS = _counter(
    "requests",
    "Accepted requests that have ended; outcome is a finish reason or an error code.",
    "model",
    "priority",
    "outcome",
)
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of ended requests.", "model")
COMPLETION_TOKENS = _counter("completion_tokens", "Answer tokens of ended requests.", "model")
CACHED_TOKENS = _counter("cached_tokens", "Prompt tokens that came from a prefix cache.", "model")
FIRST_TOKEN = _histogram("time_to_first_token_seconds", "From arrival to the first token.", _LATENCY, "model")
INTER_TOKEN = _histogram(
    "inter_token_seconds", "Between two tokens of one row; every row of a step counts.", _TOKEN, "model"
)
QUEUE = _histogram("queue_seconds", "Waiting for a slot.", _LATENCY, "model", "priority")
DURATION = _histogram("request_seconds", "From arrival to the end.", _LATENCY, "model")

RUNNING = _gauge("running_sequences", "Sequences that hold a slot.")
WAITING = _gauge("waiting_sequences", "Sequences that wait for a slot.")
PAUSED = _gauge("paused_sequences", "Sequences whose consumer is behind.")
OLDEST_WAIT = _gauge("oldest_wait_seconds", "How long the oldest waiting sequence has waited.")
RESERVED_KV = _gauge("reserved_kv_bytes", "Cache that admitted sequences can grow to.")

STEPS = _histogram("step_seconds", "Duration of an engine step.", _TOKEN, "model")
ROWS = _histogram("batch_rows", "Rows decoded together in one step.", _ROWS, "model")
DECODED = _counter("decode_tokens", "Tokens generated, counted at every step.", "model")
PREFILLED = _counter("prefill_tokens", "Prompt tokens prefilled, counted at every step.", "model")
DRAFTED = _counter("draft_tokens", "Tokens that speculation proposed.", "model")
ACCEPTED_DRAFTS = _counter("accepted_draft_tokens", "Proposed tokens that the model then said itself.", "model")
ACCEPTANCE = _histogram(
    "accepted_drafts_per_step", "Proposed tokens accepted in one row in one step, where any were.", _DRAFTS, "model"
)
ACTIVE_MEMORY = _gauge("active_memory_bytes", "What MLX holds.", "replica", "model")
CACHE_MEMORY = _gauge("cache_memory_bytes", "What MLX's allocator keeps for reuse.", "replica", "model")

PREFIX_LOOKUPS = _counter("prefix_cache_lookups", "Prompts looked up in the prefix cache.", "model")
PREFIX_HITS = _counter("prefix_cache_hits", "Lookups that found a prefix.", "model")
PREFIX_TOKENS = _counter(
    "prefix_cache_hit_tokens", "Prompt tokens that lookups found; tier is where: memory or disk.", "model", "tier"
)
PREFIX_EVICTIONS = _counter("prefix_cache_evictions", "Entries that made room for others in memory.", "model")
PREFIX_DROPPED = _counter("prefix_cache_dropped_files", "Files of the disk tier that were damaged.", "model")
PREFIX_BYTES = _gauge("prefix_cache_bytes", "What the prefix cache holds in a tier.", "replica", "model", "tier")

RESIDENT = _gauge("resident_bytes", "What a loaded model is counted with: weights and the least cache.", "model")
MODEL_MEMORY = _gauge("model_memory_limit_bytes", "What all loaded models may take.")
LOADS = _counter("model_loads", "Times that a model was loaded.", "model")
LOAD_TIME = _histogram("model_load_seconds", "From the wish for a model until it serves.", _LATENCY, "model")
EVICTIONS = _counter(
    "model_unloads", "Times that a model was unloaded; reason is memory, idle, request or lost.", "model", "reason"
)

UP = _gauge("up", "Actors that are ready; for replicas, how many of the model.", "actor", "model")
RESTARTS = _counter("restarts", "Restarts of actors in the supervisor's table.", "actor", "model")
DRAINING = _gauge("draining", "1 while the runtime shuts down.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""Every metric, in the order of this file."""
