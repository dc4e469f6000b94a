"""The stream registry: requests, their sequences, and the credits of their consumers. Pure.

Credits: a sequence starts with its request's window. Every delivered token takes one, every token the consumer has
read gives one back. At none left the sequence is paused; with a quarter of the window back it goes on. What waits for
a consumer is therefore bounded by its window and what was in flight when the pause was sent.
"""

from __future__ import annotations

import attrs

from mlx_serving.actors.messages.admission import GenerationRequested, SequenceOutput
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import SequenceEnd, Timings, Usage, total_drafts

RequestKey = tuple[bytes, int]
"""A frontend's connection and the frontend's own number of the request."""


@attrs.define
class Sequence:
    """One choice of a request. `attempt` counts the replicas that it was queued for."""

    queued: SequenceQueued
    request: Request
    credit: int
    paused: bool = False
    produced: bool = False
    attempt: int = 1

    def spend(self, tokens: int) -> bool:
        """Take credits for delivered tokens; True when the sequence must now be paused."""
        self.credit -= tokens
        if self.credit > 0 or self.paused:
            return False
        self.paused = True
        return True

    def refill(self, tokens: int) -> bool:
        """Give credits back; True when the sequence must now be resumed."""
        self.credit += tokens
        if not self.paused or self.credit < max(1, self.queued.window // 4):
            return False
        self.paused = False
        return True


@attrs.define(eq=False)
class Request:
    """A request from its arrival until its one terminal message."""

    key: RequestKey
    asked: GenerationRequested
    arrived_at: float
    deadline: float
    trace_id: str = ""
    model: str = ""
    adapter: str = ""
    adapter_identity: str = ""
    awaits_model: bool = False
    """Its model is being loaded, perhaps after it has been unloaded."""
    prompt_tokens: int = 0
    sequences: dict[int, Sequence] = attrs.field(factory=dict)
    """Live ones, by choice index."""
    unfinished: int = 0
    unproduced: int = 0
    """Choices without a token yet, from arrival on."""
    first_token_at: float | None = None
    ends: list[SequenceEnd] = attrs.field(factory=list)

    @property
    def usage(self) -> Usage:
        cached = min((end.cached_tokens for end in self.ends), default=0)
        completion = sum(end.completion_tokens for end in self.ends)
        drafts = total_drafts(end.drafts for end in self.ends)
        reasoning = sum(end.reasoning_tokens for end in self.ends)
        return Usage(self.prompt_tokens, completion, cached, reasoning, drafts=drafts)

    def timings(self, now: float) -> Timings:
        """The longest of its choices counts."""
        first = (self.first_token_at or now) - self.arrived_at
        return Timings(
            queue=max((end.queue_seconds for end in self.ends), default=0.0),
            prefill=max((end.prefill_seconds for end in self.ends), default=0.0),
            first_token=first,
            decode=max((end.decode_seconds for end in self.ends), default=0.0),
            total=now - self.arrived_at,
        )


class Streams:
    """Every live request and sequence."""

    def __init__(self, first_id: int) -> None:
        self._requests: dict[RequestKey, Request] = {}
        self._sequences: dict[int, Sequence] = {}
        self._next_id = first_id

    def __len__(self) -> int:
        return len(self._requests)

    def open(self, request: Request) -> None:
        self._requests[request.key] = request

    def request(self, key: RequestKey) -> Request | None:
        return self._requests.get(key)

    def of_peer(self, peer: bytes) -> list[Request]:
        return [request for key, request in self._requests.items() if key[0] == peer]

    def of_model(self, model: str) -> list[Request]:
        """Requests that the model works for, or will; not those for which it has yet to be loaded."""
        return [each for each in self._requests.values() if each.model == model and not each.awaits_model]

    def uses(self, model: str) -> bool:
        """Whether any request wants the model."""
        return any(each.model == model for each in self._requests.values())

    def all(self) -> list[Request]:
        return list(self._requests.values())

    def expired(self, now: float) -> list[Request]:
        return [request for request in self._requests.values() if request.deadline <= now]

    def fresh_id(self) -> int:
        """An id that no sequence has had."""
        self._next_id += 1
        return self._next_id

    def add(self, request: Request, queued: SequenceQueued) -> Sequence:
        """Register one sequence of a request under a fresh id."""
        queued = attrs.evolve(queued, sequence_id=self.fresh_id())
        sequence = Sequence(queued, request, credit=queued.window)
        self._sequences[queued.sequence_id] = request.sequences[queued.index] = sequence
        return sequence

    def again(self, sequence: Sequence) -> Sequence:
        """The same sequence under a fresh id: what the old one may still send is for nobody."""
        self._sequences.pop(sequence.queued.sequence_id, None)
        renewed = self.add(sequence.request, sequence.queued)
        renewed.attempt = sequence.attempt + 1
        return renewed

    def sequence(self, sequence_id: int) -> Sequence | None:
        return self._sequences.get(sequence_id)

    def end(self, sequence: Sequence, output: SequenceOutput) -> bool:
        """A sequence has ended well; True when it was its request's last."""
        request = sequence.request
        self._sequences.pop(sequence.queued.sequence_id, None)
        request.sequences.pop(sequence.queued.index, None)
        if output.end is not None:
            request.ends.append(output.end)
        request.unfinished -= 1
        return request.unfinished <= 0

    def close(self, request: Request) -> list[int]:
        """Forget a request; the ids of its sequences that still run or wait."""
        self._requests.pop(request.key, None)
        live = [sequence.queued.sequence_id for sequence in request.sequences.values()]
        for sequence_id in live:
            self._sequences.pop(sequence_id, None)
        request.sequences.clear()
        return live
