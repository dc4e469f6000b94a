"""Whether memory stays where it is over many short requests, some of which are left in the middle."""

from __future__ import annotations

import random
from typing import Any

import attrs

from tools.bench.family import Member, members
from tools.bench.load import summarise
from tools.bench.peers import Server
from tools.bench.spec import COMPLETIONS, Request

_WORDS = ("river", "stone", "under", "seven", "green", "and", "the", "slowly", "window", "goes")


def memory(server: Server, requests: int, baseline: int, clients: int = 8, seed: int = 0) -> dict[str, Any]:
    """Sample each process before, after `baseline` requests and after every tenth of the rest."""
    draw = random.Random(seed)
    samples = [_sample(server, 0)]
    done, errors, cancelled = 0, 0, 0
    step = max(1, (requests - baseline) // 10)
    while done < requests:
        count = baseline if not done else min(step, requests - done)
        outcomes = server.drive([_short(draw, done + i) for i in range(count)], clients=clients)
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


def _short(draw: random.Random, index: int) -> Request:
    """A prompt of 1 to 8 words, an answer of at most 2 to 9 tokens; one in four is left after 1 to 4 events."""
    body = {
        "prompt": " ".join(draw.choices(_WORDS, k=draw.randrange(1, 9))),
        "max_tokens": draw.randrange(2, 10),
        "temperature": draw.choice((0, 0.8)),
        "seed": index,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Request(body, path=COMPLETIONS, cancel_after=draw.randrange(1, 5) if draw.random() < 0.25 else None)


def _sample(server: Server, after: int) -> dict[str, Any]:
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
