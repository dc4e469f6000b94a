"""Greedy answers over HTTP, batched among strangers, against mlx_lm alone: token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from tools.bench import prompts
from tools.bench.peers import Server, ours
from tools.bench.precision import peer_folder
from tools.bench.spec import Outcome, Request
from tools.bench.worker import Worker

_NEIGHBOURS = (
    {"temperature": 1.3, "top_p": 0.9, "seed": 7},
    {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.2},
    {"temperature": 1.0, "min_p": 0.05, "presence_penalty": 0.5, "seed": 11},
    {"temperature": 0, "frequency_penalty": 0.7, "logit_bias": {"28": -100}},
)


@attrs.frozen
class Comparison:
    """One prompt. `difference` is the first place where the token strings part, None when they are equal.

    `margin` is how far the reference's best token stood above its second there (nat): nearly nothing means
    that rounding decided.
    """

    prompt: int
    prompt_tokens: int
    tokens: int
    equal: bool
    difference: int | None = None
    expected: str = ""
    found: str = ""
    margin: float | None = None


def equality(model: str, folder: Path, count: int, out: Path, seed: int = 0) -> dict[str, Any]:
    """`count` greedy prompts of mixed lengths, 8 at a time among sampled neighbours."""
    lengths = [24 + 8 * (index % 6) for index in range(count)]
    with Server(ours(model), out / "logs" / "equality.log") as server:
        plain = _answers(server, lengths, seed, logprobs=True)
        streamed = _answers(server, lengths, seed + 1, logprobs=False)
    with peer_folder(folder) as same, Worker(same) as worker:
        references = [worker.generate(prompts.mixed(i), tokens, margins=True) for i, tokens in enumerate(lengths)]
    compared = [judge(i, reference, plain[i]) for i, reference in enumerate(references)]
    texts = [reference["text"] == streamed[i].text for i, reference in enumerate(references)]
    return {
        "prompts": count,
        "equal": sum(each.equal for each in compared),
        "equal_streamed_texts": sum(texts),
        "comparisons": [attrs.asdict(each) for each in compared],
    }


def _answers(server: Server, lengths: Sequence[int], seed: int, logprobs: bool) -> dict[int, Outcome]:
    """Outcomes of the greedy requests by prompt; one sampled neighbour for each two of them, in a shuffled
    order."""
    greedy = [(index, _greedy(index, tokens, logprobs)) for index, tokens in enumerate(lengths)]
    neighbours = [(None, _neighbour(index)) for index in range(len(lengths) // 2)]
    both: list[tuple[int | None, Request]] = [*greedy, *neighbours]
    random.Random(seed).shuffle(both)
    outcomes = server.drive([request for _, request in both], clients=8)
    failed = [f"{outcome.error}: {outcome.detail}" for outcome in outcomes if outcome.error]
    if failed:
        raise RuntimeError(f"requests failed: {failed}")
    return {index: outcome for (index, _), outcome in zip(both, outcomes, strict=True) if index is not None}


def _greedy(index: int, tokens: int, logprobs: bool) -> Request:
    body: dict[str, Any] = {"messages": prompts.mixed(index), "max_tokens": tokens, "temperature": 0}
    if logprobs:
        return Request({**body, "logprobs": True})
    return Request({**body, "stream": True, "stream_options": {"include_usage": True}})


def _neighbour(index: int) -> Request:
    sampling = _NEIGHBOURS[index % len(_NEIGHBOURS)]
    body = {"messages": prompts.mixed(index + 3), "max_tokens": 12 + 10 * (index % 5), **sampling}
    return Request({**body, "stream": True, "stream_options": {"include_usage": True}})


def judge(prompt: int, reference: dict[str, Any], outcome: Outcome) -> Comparison:
    """Compare token strings, then texts; the end-of-sequence token, which shows no text, is left out of
    both."""
    expected = reference["tokens"][: -1 if reference["finish_reason"] == "stop" else None]
    found = [entry["token"] for entry in outcome.logprobs]
    found = found[: len(expected)] if outcome.finish_reason == reference["finish_reason"] == "stop" else found
    pairs = enumerate(zip(expected, found, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), None)
    if place is None and len(expected) != len(found):
        place = min(len(expected), len(found))
    common = {"prompt": prompt, "prompt_tokens": reference["prompt_tokens"], "tokens": len(expected)}
    if place is None:
        return Comparison(**common, equal=reference["text"] == outcome.text)
    return Comparison(
        **common,
        equal=False,
        difference=place,
        expected="".join(expected[place : place + 1]),
        found="".join(found[place : place + 1]),
        margin=reference["margins"][place] if place < len(reference["margins"]) else None,
    )
