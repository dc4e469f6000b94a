"""`mlx-serving bench`: a closed loop of clients against the running server, or an embedded runtime."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import attrs
import rich_click as click

from mlx_serving import native
from mlx_serving.actors.clock import monotonic
from mlx_serving.actors.errors import ServingError
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.messages.values import ChatMessage, Sampling, Stopping
from mlx_serving.frontends.cli.console import err, note, out, print_json, table
from mlx_serving.frontends.cli.door import any_door
from mlx_serving.frontends.cli.figures import duration
from mlx_serving.frontends.cli.load_report import LoadReport, RequestRecord, summarize
from mlx_serving.frontends.cli.sources import Sources, configured, model_name
from mlx_serving.frontends.client import Client

_COUNT = click.IntRange(1, 1_000_000)
PROMPT = "Write a story about the number {}."
"""Each request gets its own number, so that no prompt is answered from another one's cache."""


@click.command(cls=click.RichCommand)
@click.option("--model", "-m", type=model_name, help="Model to measure; the default model if not given.")
@click.option("--clients", "-c", type=_COUNT, default=4, show_default=True, help="Requests in flight.")
@click.option("--requests", "-r", type=_COUNT, default=32, show_default=True, help="Requests in all.")
@click.option("--max-tokens", "-n", type=_COUNT, default=64, show_default=True, help="Tokens of each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurement as one JSON object.")
@configured
def bench(model: str | None, clients: int, requests: int, max_tokens: int, as_json: bool, sources: Sources) -> None:
    """Measure time to first token, inter-token latency and throughput.

    Every client sends its next request when the last one has ended. Answers are greedy and of fixed length.
    One request is sent beforehand and not counted.
    """
    with any_door(sources, model) as session:
        session.run(lambda client: _warm_up(client, _request(model, 0, max_tokens)))
        work = [_request(model, number, max_tokens) for number in range(1, requests + 1)]
        with err.status(f"{requests} requests from {clients} clients"):
            records = session.run(lambda client: _closed_loop(client, work, clients))
    report = summarize(records, clients)
    if as_json:
        print_json({"native": native.status(), **attrs.asdict(report)})
    else:
        _print(report)


def _request(model: str | None, number: int, max_tokens: int) -> GenerationRequested:
    return GenerationRequested(
        request_id=0,
        model=model,
        messages=(ChatMessage("user", PROMPT.format(number)),),
        sampling=Sampling(temperature=0.0),
        stopping=Stopping(max_tokens=max_tokens, ignore_eos=True),
    )


async def _warm_up(client: Client, request: GenerationRequested) -> None:
    """Raises what keeps the request from being answered: there would be nothing to measure."""
    async with client.submit(request) as stream:
        async for _ in stream:
            pass


async def _closed_loop(client: Client, requests: list[GenerationRequested], clients: int) -> list[RequestRecord]:
    waiting = iter(requests)
    rows = await asyncio.gather(*(_one_client(client, waiting) for _ in range(clients)))
    return list(itertools.chain.from_iterable(rows))


async def _one_client(client: Client, waiting: Iterator[GenerationRequested]) -> list[RequestRecord]:
    return [await _measured(client, request) for request in waiting]


async def _measured(client: Client, request: GenerationRequested) -> RequestRecord:
    started = monotonic()
    arrivals: list[tuple[float, int]] = []
    try:
        async with client.submit(request) as stream:
            async for deltas in stream:
                count = sum(len(delta.token_ids) for delta in deltas)
                if count:
                    arrivals.append((monotonic(), count))
            prompt_tokens = stream.result.usage.prompt_tokens
    except ServingError as error:
        return RequestRecord(started, monotonic(), tuple(arrivals), error=error.code)
    return RequestRecord(started, monotonic(), tuple(arrivals), prompt_tokens)


def _print(report: LoadReport) -> None:
    status = native.status()
    note(f"native code: {status.choice}; MLX {status.running_mlx}; BLAS: {status.blas}")
    made = table("", "", "p50", "p90", "p95", "p99", "max", right=("p50", "p90", "p95", "p99", "max"))
    rows = {"first token": report.first_token, "inter-token": report.inter_token, "request": report.total}
    for name, row in rows.items():
        made.add_row(name, *(duration(value) for value in (row.p50, row.p90, row.p95, row.p99, row.max)))
    out.print(made)
    out.print(
        f"{report.tokens_per_second:.1f} tokens/s, {report.requests_per_second:.2f} requests/s "
        f"from {report.clients} clients; {report.requests} requests, "
        f"{report.completion_tokens} tokens in {duration(report.seconds)}"
    )
    if report.errors:
        failed = ", ".join(f"{count} {code}" for code, count in report.errors.items())
        out.print(f"failed: {failed}", style="red")
