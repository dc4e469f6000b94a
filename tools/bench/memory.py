"""Whether memory stays where it is over many mixed requests, some of which are left in the middle."""

from __future__ import annotations

import random
import time
from typing import Any

import attrs

from tools.bench.family import Member, members
from tools.bench.load import summarise
from tools.bench.peers import Server
from tools.bench.spec import COMPLETIONS, Request

_REST_SECONDS = 3.0
"""A replica returns freed memory between one and two seconds after its last step."""
_KINDS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"n": 2},
    {"stop": ["a"]},
    {"structured_outputs": {"regex": "[a-z ]{5,40}"}},
    {"response_format": {"type": "json_object"}},
)
_SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20},
    {"temperature": 0.7, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    {"temperature": 0, "logit_bias": {"100": -5}},
)
_WORDS = ("river", "stone", "under", "seven", "green", "and", "the", "slowly", "window", "goes")
_SHARED = _WORDS * 6


def memory(server: Server, requests: int, baseline: int, clients: int = 8, seed: int = 0) -> dict[str, Any]:
    """Sample each process before, after `baseline` requests and after every tenth of the rest."""
    draw = random.Random(seed)
    samples = [_sample(server, 0)]
    done, errors, cancelled = 0, 0, 0
    step = max(1, (requests - baseline) // 10)
    while done < requests:
        count = baseline if not done else min(step, requests - done)
        outcomes = server.drive([_mixed(draw, done + i) for i in range(count)], clients=clients)
        summary = summarise(outcomes)
        done, cancelled = done + count, cancelled + summary.cancelled
        errors += sum(summary.errors.values())
        samples.append(_sample(server, done))
    return {
        "requests": done,
        "cancelled": cancelled,
        "errors": errors,
        "samples": samples,
        "change": change(samples[1]["members"], samples[-1]["members"]),
    }


def _mixed(draw: random.Random, index: int) -> Request:
    """A prompt of 1 to 80 words, an answer of at most 2 to 25 tokens; one in four is left after 1 to 4 events."""
    options = {**draw.choice(_KINDS), **draw.choice(_SAMPLINGS)}
    words = " ".join([*_SHARED[: draw.choice((0, 0, 40, 60))], *draw.choices(_WORDS, k=draw.randrange(1, 20))])
    body = {
        "max_tokens": draw.randrange(2, 26),
        "seed": index,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    left = draw.randrange(1, 5) if draw.random() < 0.25 else None
    if draw.random() < 0.5:
        return Request({**body, "messages": [{"role": "user", "content": words}]}, cancel_after=left)
    return Request({**body, "prompt": words}, path=COMPLETIONS, cancel_after=left)


def _sample(server: Server, after: int) -> dict[str, Any]:
    """Once the server has come to rest: requests that were left may still be running."""
    time.sleep(_REST_SECONDS)
    return {"after": after, "members": [attrs.asdict(each) for each in members(server.process)]}


def change(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each process its growth as a share of what it had. RuntimeError when a process was replaced."""
    earlier = {Member(**each).pid: Member(**each) for each in before}
    later = [Member(**each) for each in after]
    if set(earlier) != {each.pid for each in later}:
        raise RuntimeError("the server's processes changed during the run")
    return [
        {
            "role": each.role,
            "rss": each.rss / earlier[each.pid].rss - 1,
            "uss": each.uss / earlier[each.pid].uss - 1,
            "rss_bytes": each.rss,
        }
        for each in later
    ]
