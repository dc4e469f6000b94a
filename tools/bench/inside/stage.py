"""An engine driven by hand: sequences in, tokens with their arrival times out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from time import monotonic
from typing import Any

import attrs

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import Sampling, SequenceEnd, Stopping, pack_ids

GREEDY = Sampling(temperature=0.0)
MIXED = (
    GREEDY,
    Sampling(temperature=0.8, top_p=0.95),
    Sampling(temperature=1.0, top_k=40),
    Sampling(temperature=0.7, min_p=0.05),
    Sampling(temperature=0.9, top_p=0.9, top_k=50),
    Sampling(temperature=1.0, repetition_penalty=1.1),
    Sampling(temperature=0.6, top_p=0.9, frequency_penalty=0.3),
    Sampling(temperature=1.2, presence_penalty=0.2),
)
"""Settings of the clients of a busy server; they repeat beyond eight."""


def mixed(rows: int) -> list[Sampling]:
    """Sampling settings of so many rows, no two neighbours alike."""
    return [MIXED[row % len(MIXED)] for row in range(rows)]


@attrs.define(eq=False)
class Stream:
    """One sequence. `times` has the moment (monotonic seconds) each token came; several may come at once."""

    submitted: float
    ids: list[int] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    end: SequenceEnd | None = None

    @property
    def first(self) -> float:
        """Seconds until the first token."""
        return self.times[0] - self.submitted

    @property
    def rate(self) -> float:
        """Tokens a second after the first."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between tokens of which the later came within this span."""
        return [later - earlier for earlier, later in pairwise(self.times) if begin < later <= end]


@attrs.define(eq=False)
class Stage:
    """RuntimeError as soon as a sequence fails: then no figure means anything."""

    engine: MlxEngine
    _streams: dict[int, Stream] = attrs.field(factory=dict)
    _count: int = 0

    def submit(self, ids: Sequence[int], tokens: int, sampling: Sampling = GREEDY, **fields: Any) -> Stream:
        """Begin an answer of so many tokens, past any end of sequence."""
        self._count += 1
        now = monotonic()
        self._streams[self._count] = stream = Stream(now)
        stopping = fields.pop("stopping", Stopping(max_tokens=tokens, ignore_eos=True))
        queued = SequenceQueued(self._count, "bench", pack_ids(ids), sampling, stopping, 0, now, **fields)
        self.engine.submit(queued, now)
        return stream

    def step(self) -> None:
        """One step of the engine."""
        outputs = self.engine.step().outputs
        now = monotonic()
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(f"a sequence failed: {output.error.message}")
            stream = self._streams[output.sequence_id]
            stream.ids += output.token_ids
            stream.times += [now] * len(output.token_ids)
            stream.end = output.end
            if output.end is not None:
                del self._streams[output.sequence_id]

    def run(self) -> None:
        """Step until everything has ended."""
        while self._streams:
            self.step()

    def run_until_tokens(self, streams: Sequence[Stream], tokens: int) -> None:
        """Step until each stream has so many."""
        while any(len(stream.times) < tokens for stream in streams):
            self.step()

    def abandon(self) -> None:
        """Cancel whatever has not ended."""
        for sequence_id in list(self._streams):
            self.engine.cancel(sequence_id)
        self._streams.clear()


def joint_rate(times: Sequence[Sequence[float]]) -> float:
    """Tokens a second of several streams together while every one of them was decoding."""
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    count = sum(sum(begin < moment <= end for moment in each) for each in times)
    if end <= begin:
        raise RuntimeError("the streams never decoded side by side")
    return count / (end - begin)
