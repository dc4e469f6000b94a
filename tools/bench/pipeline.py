"""Everything but the model: a scripted engine behind the whole runtime, measured over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.bench import load
from tools.bench.family import cpu_seconds
from tools.bench.load import summarise
from tools.bench.peers import Server, ours
from tools.bench.spec import Outcome, Request

_PACE = 0.002
"""Seconds a step takes where the engine is not to run ahead: then every token gets an event of its own."""
_TICK = 0.002
"""Seconds between two rounds of the generator under full load: on two cores its wake-ups would cost the
server."""


@contextmanager
def scripted_server(
    model: str, out: Path, step_seconds: float = 0.0, rows: int = 64, **settings: str
) -> Iterator[Server]:
    """This server with the scripted engine, which takes no more than the tokenizer from `model`."""
    environment = {
        "GENERATION__ENGINE": "scripted",
        "GENERATION__SCRIPTED_STEP_SECONDS": str(step_seconds),
        "GENERATION__MAX_ROWS": str(rows),
        "GENERATION__KV_BYTES": str(1 << 40),  # it keeps nothing: all rows fit
        **settings,
    }
    with Server(ours(model, environment), out / "logs" / "scripted.log") as server:
        yield server


def request(tokens: int, prompt: str = "Count.", **options: Any) -> Request:
    """A streamed chat request for exactly `tokens` tokens."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Request(body, **options)


def measure(model: str, out: Path, streams: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Throughput of `streams` streams, cost per token of one, and the time to first token of an idle
    server."""
    with scripted_server(model, out, rows=max(64, streams)) as server:
        server.drive([request(64)] * streams, clients=streams)
        many = [_under_load(server, streams, tokens) for _ in range(repetitions)]
        one = [_one_stream(server, tokens) for _ in range(repetitions)]
        idle = [server.drive([request(1)] * 50) for _ in range(repetitions)]
    with scripted_server(model, out, step_seconds=_PACE, rows=max(64, streams)) as server:
        paced = [_under_load(server, streams, tokens) for _ in range(repetitions)]
    return {
        "streams": streams,
        "tokens_per_stream": tokens,
        "many": many,
        "paced": paced,
        "one": one,
        "idle_first_token": [summarise(outcomes).json()["first_token"] for outcomes in idle],
    }


def _under_load(server: Server, streams: int, tokens: int) -> dict[str, Any]:
    """All streams at once; processor seconds of the server's processes and of the generator belong to this
    load."""
    before = cpu_seconds(server.process)
    process = load.start(server.load([request(tokens)] * streams, clients=streams, tick=_TICK))
    report = load.finish(process, 600.0)
    after = cpu_seconds(server.process)
    used = {role: after[role] - before[role] for role in before}
    result = _checked(report.outcomes, streams * tokens)
    return {**result, "cpu_seconds": {**used, "generator": report.cpu_seconds}}


def _one_stream(server: Server, tokens: int) -> dict[str, Any]:
    outcomes = server.drive([request(tokens)])
    result = _checked(outcomes, tokens)
    return {**result, "seconds_per_token": _seconds_per_token(outcomes[0])}


def _seconds_per_token(outcome: Outcome) -> float | None:
    if outcome.first is None or outcome.last is None or not outcome.tokens or outcome.tokens < 2:
        return None
    return (outcome.last - outcome.first) / (outcome.tokens - 1)


def _checked(outcomes: Sequence[Outcome], tokens: int) -> dict[str, Any]:
    """The summary; RuntimeError when not every token was counted and delivered, for then no figure means
    anything. The scripted engine says one word a token."""
    summary = summarise(outcomes)
    words = sum(len(outcome.text.split()) for outcome in outcomes)
    if summary.errors or summary.tokens != tokens or words != tokens:
        found = f"{summary.tokens} counted, {words} delivered, {summary.errors} {summary.details}"
        raise RuntimeError(f"expected {tokens} tokens without errors, got {found}")
    return summary.json()
