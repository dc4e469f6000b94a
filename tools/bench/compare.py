"""This server against mlx_lm on one model in one run: decode speed as ratios.

The contestants take turns within each repetition, so that a drift of the machine hits all of them. Sampling
is greedy and only prompts whose answer is at least as long as asked are used: everybody decodes the same
number of tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from tools.bench import prompts
from tools.bench.load import steady_rate, summarise, whole_rate
from tools.bench.peers import Recipe, Server, mlx_lm_server, ours
from tools.bench.precision import peer_folder
from tools.bench.quantiles import Spread
from tools.bench.spec import Outcome, Request
from tools.bench.worker import Worker

Messages = list[dict[str, str]]
_SAMPLINGS: tuple[dict[str, float], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 0.7, "min_p": 0.05},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 50},
    {"temperature": 1.0, "repetition_penalty": 1.1},
    {"temperature": 0.6, "top_p": 0.9, "frequency_penalty": 0.3},
    {"temperature": 1.1, "presence_penalty": 0.2},
)


@attrs.frozen
class Plan:
    """How much is measured. `tokens` is the answer length of every request."""

    tokens: int = 64
    repetitions: int = 5
    clients: int = 8
    mixed_clients: tuple[int, ...] = (8, 32)
    """Numbers of clients that sample, each in another way."""
    both_blas: bool = True
    """Also mlx_lm's server with OpenBLAS, and mlx_lm in process without it."""


def compare(model: str, folder: Path, plan: Plan, out: Path, further: Sequence[Recipe] = ()) -> dict[str, Any]:
    """Rates of every contestant in every repetition, and ratios of ours to each other one.

    Peers read `folder`, in float32 where this server computes in it.
    """
    with ExitStack() as stack:
        same = stack.enter_context(peer_folder(folder))
        workers = {name: stack.enter_context(worker) for name, worker in _workers(same, plan).items()}
        recipes = [ours(model), *_peers(same, plan), *further]
        logs = [out / "logs" / f"compare-{number}.log" for number in range(len(recipes))]
        servers = [stack.enter_context(Server(recipe, log)) for recipe, log in zip(recipes, logs, strict=True)]
        chats = long_answers(next(iter(workers.values())), plan, max(plan.clients, *plan.mixed_clients))
        for server in servers:
            _over_http(server, chats[:1], plan)
        single, batched = _measure(servers, workers, chats, plan)
        mixed = {str(clients): _measure_mixed(servers, chats[:clients], plan) for clients in plan.mixed_clients}
    return {
        "plan": attrs.asdict(plan),
        "model": model,
        "peers_in_float32": same != folder,
        "one_client": judge(single, "mlx-serving"),
        "many_clients": judge(batched, "mlx-serving"),
        "mixed_clients": {clients: judge(rates, "mlx-serving") for clients, rates in mixed.items()},
    }


def _workers(folder: Path, plan: Plan) -> dict[str, Worker]:
    workers = {"in process with OpenBLAS": Worker(folder, blas=True)}
    return {**workers, "in process": Worker(folder, blas=False)} if plan.both_blas else workers


def _peers(folder: Path, plan: Plan) -> list[Recipe]:
    plain = mlx_lm_server(folder)
    return [plain, mlx_lm_server(folder, blas=True)] if plan.both_blas else [plain]


def long_answers(worker: Worker, plan: Plan, count: int) -> list[Messages]:
    """The first prompts, so many, whose greedy answer reaches the wanted length."""
    found: list[Messages] = []
    for index in range(4 * prompts.COUNT):
        if len(found) == count:
            break
        answer = worker.generate(prompts.chat(index), plan.tokens)
        if answer["finish_reason"] == "length":
            found.append(prompts.chat(index))
    return found


def _measure(
    servers: Sequence[Server], workers: dict[str, Worker], chats: list[Messages], plan: Plan
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    single: dict[str, list[float]] = defaultdict(list)
    batched: dict[str, list[float]] = defaultdict(list)
    for repetition in range(plan.repetitions):
        chat = chats[repetition % len(chats)]
        for server in servers:
            single[server.recipe.name].append(_over_http(server, [chat], plan))
        for name, worker in workers.items():
            single[name].append(_in_process(worker, chat, plan))
        for server in servers:
            batched[server.recipe.name].append(_over_http(server, chats[: plan.clients], plan))
    return single, batched


def _measure_mixed(servers: Sequence[Server], chats: list[Messages], plan: Plan) -> dict[str, list[float]]:
    """Rates while all decode, of those who decode so many at once; answers that are sampled may end early."""
    rates: dict[str, list[float]] = defaultdict(list)
    servers = [server for server in servers if server.recipe.slots >= len(chats)]
    requests = [_request(chat, plan.tokens, _SAMPLINGS[i % len(_SAMPLINGS)]) for i, chat in enumerate(chats)]
    for _ in range(plan.repetitions):
        for server in servers:
            outcomes = server.drive(requests, clients=len(chats), keep_times=True)
            summary = summarise(outcomes)
            if summary.errors:
                raise RuntimeError(f"{server.recipe.name}: no rate: {summary.errors} {summary.details}")
            rates[server.recipe.name].append(_rate(server, outcomes))
    return rates


def _in_process(worker: Worker, chat: Messages, plan: Plan) -> float:
    answer = worker.generate(chat, plan.tokens)
    if len(answer["ids"]) != plan.tokens:
        raise RuntimeError(f"in process: {len(answer['ids'])} tokens instead of {plan.tokens}")
    return (plan.tokens - 1) / float(answer["decode"])


def _over_http(server: Server, chats: Sequence[Messages], plan: Plan) -> float:
    """Decode rate in tokens a second of one request per chat, all at once."""
    outcomes = server.drive([_request(chat, plan.tokens) for chat in chats], clients=len(chats), keep_times=True)
    _check(server.recipe.name, outcomes, plan.tokens)
    return _rate(server, outcomes)


def _rate(server: Server, outcomes: Sequence[Outcome]) -> float:
    """While all decode. Of this server, where its first stream has ended before its last begins, the whole rate, which
    is less; no peer's rate is lessened so."""
    rate = steady_rate(outcomes)
    if rate is None and server.recipe.name == "mlx-serving":
        return whole_rate(outcomes)
    if rate is None:
        raise RuntimeError(f"{server.recipe.name}: the streams never decoded side by side")
    return rate


def _request(messages: Messages, tokens: int, sampling: dict[str, float] | None = None) -> Request:
    body = {"messages": messages, "max_tokens": tokens, **(sampling or {"temperature": 0}), "stream": True}
    return Request({**body, "stream_options": {"include_usage": True}})


def _check(name: str, outcomes: Sequence[Outcome], tokens: int) -> None:
    """Only equal work is compared."""
    summary = summarise(outcomes)
    if summary.errors:
        raise RuntimeError(f"{name}: {summary.errors} {summary.details}")
    counts = sorted({outcome.tokens for outcome in outcomes if outcome.tokens is not None})
    if counts != [tokens]:
        raise RuntimeError(f"{name}: answers of {counts} tokens instead of {tokens}")


def judge(rates: dict[str, list[float]], subject: str) -> dict[str, Any]:
    """Rates of each contestant, and what the subject reached in units of each other, repetition by
    repetition."""
    own = rates[subject]
    return {
        name: {
            "rates": values,
            "rate": _json(Spread.of(values)),
            "ratio": None if name == subject else _json(Spread.of(a / b for a, b in zip(own, values, strict=True))),
        }
        for name, values in rates.items()
    }


def _json(spread: Spread | None) -> dict[str, Any] | None:
    return spread.json() if spread is not None else None
