"""The life of a request in admission: let in, render, queue, deliver, end. Exactly one terminal message ends each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs

from mlx_serving.actors.admission.answer_format import ParserChoice, check_parsers
from mlx_serving.actors.admission.catalogue import Catalogue, Route, Served
from mlx_serving.actors.admission.policy import Gate, admit, sequences
from mlx_serving.actors.admission.prompt import Prompt
from mlx_serving.actors.admission.rendering import RenderingPool, rendered
from mlx_serving.actors.admission.streams import Request, RequestKey, Sequence, Streams
from mlx_serving.actors.admission.volatile import VolatileLines
from mlx_serving.actors.base import Node
from mlx_serving.actors.errors import (
    ActorUnavailable,
    Cancelled,
    DeadlineExceeded,
    ErrorInfo,
    InvalidParameter,
    ReplicaLost,
    ServingError,
    describe,
)
from mlx_serving.actors.messages.admission import (
    CreditsReturned,
    GenerationRequested,
    SequenceOutput,
    SequencesLost,
    TokensGenerated,
)
from mlx_serving.actors.messages.batching import SequenceAborted, SequencePaused, SequenceResumed
from mlx_serving.actors.messages.frontend import (
    Delta,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    TokensDelivered,
)
from mlx_serving.actors.messages.telemetry import RequestEnded, RequestReceived

Deliver = Callable[[bytes, Any], bool]
"""Sends a message to a frontend; False when it is gone."""


class ModelSource(Protocol):
    """Where requests get their models from; `models.Models` says what each of these does."""

    def route(self, name: str | None) -> Route: ...

    def at_hand(self, name: str) -> Served | None: ...

    def bring(self, name: str, reached: Callable[[Served | None, ErrorInfo | None], None]) -> None: ...

    def adapter_identity(self, base: str, adapter: str) -> str: ...

    def used(self, name: str) -> None: ...


class Requests:
    """Every live request: the only place that opens and closes streams. `models` is set before the first one."""

    models: ModelSource

    def __init__(
        self,
        node: Node,
        catalogue: Catalogue,
        gate: Gate,
        pool: RenderingPool,
        deliver: Deliver,
        first_id: int,
    ) -> None:
        self._node = node
        self._catalogue = catalogue
        self._gate = gate
        self._pool = pool
        self._deliver = deliver
        self._limits = node.settings.admission
        self.streams = Streams(first_id)
        self.volatile = VolatileLines(self._limits.volatile_lines)
        check_parsers(node.settings.models)
        self.stored: tuple[str, ...] = ()

    # --- in ---------------------------------------------------------------------------------------------------------

    def requested(self, peer: bytes, asked: GenerationRequested, trace_id: str) -> None:
        """Let a request in and have its prompt rendered, or answer why not."""
        now = self._node.clock()
        asked = self._without_volatile(asked)
        key = (peer, asked.request_id)
        try:
            if self.streams.request(key) is not None:
                raise InvalidParameter("this request_id is in use", field="request_id")
            admit(asked, self._gate, self._limits)
            route = self.models.route(asked.model)
            served = self.models.at_hand(route.model)
        except ServingError as error:
            self._node.emit(RequestReceived(asked.model or "", asked.priority, False))
            self._deliver(peer, RequestFailed(asked.request_id, describe(error)))
            return
        longest = self._limits.request_timeout if asked.timeout is None else asked.timeout
        request = Request(key, asked, now, now + longest, trace_id, route.model, route.adapter)
        self.streams.open(request)
        request.unproduced = asked.n
        self._gate.waiting += asked.n
        self._node.emit(RequestReceived(route.model, asked.priority, True))
        self.models.used(route.model)
        if route.adapter:
            self._find_adapter(request)
        elif served is not None:
            self._render(request, served)
        else:
            self._await_model(request)

    def _find_adapter(self, request: Request) -> None:
        def found(identity: str, error: BaseException | None) -> None:
            if error is not None:
                self._reached(request, None, describe(error))
            elif self.streams.request(request.key) is request:
                request.adapter_identity = identity
                self._await_model(request)

        self._pool.submit(lambda: self.models.adapter_identity(request.model, request.adapter), found)

    def _await_model(self, request: Request) -> None:
        """Have the request's prompt rendered once its model serves, at once if it does."""
        request.awaits_model = True
        self.models.bring(request.model, lambda served, error: self._reached(request, served, error))

    def _reached(self, request: Request, served: Served | None, error: ErrorInfo | None) -> None:
        if self.streams.request(request.key) is not request:
            return  # cancelled meanwhile
        request.awaits_model = False
        if served is not None:
            self._render(request, served)
        else:
            self.fail(request, error or describe(ActorUnavailable("its model is gone", model=request.model)))

    def _render(self, request: Request, served: Served) -> None:
        asked, tokenizer = request.asked, served.tokenizer
        assert tokenizer is not None  # only such models are reached
        with_segments = served.info is not None and not served.info.is_trimmable
        parsers = ParserChoice.of(tokenizer, request.model, self._node.settings.models)
        self._pool.submit(
            lambda: rendered(tokenizer, asked, parsers, with_segments=with_segments),
            lambda prompt, error: self._rendered(request, prompt, error),
        )

    def _without_volatile(self, asked: GenerationRequested) -> GenerationRequested:
        messages = None if asked.messages is None else self.volatile.strip(asked.messages)
        return asked if messages is asked.messages else attrs.evolve(asked, messages=messages)

    def _rendered(self, request: Request, prompt: Prompt | None, error: BaseException | None) -> None:
        if self.streams.request(request.key) is not request:
            return  # cancelled meanwhile
        served = self._catalogue.get(request.model)
        try:
            if error is not None:
                raise error
            if served is None or served.info is None:
                raise ActorUnavailable(f"model {request.model!r} was unloaded", model=request.model)
            self._enqueue(request, served, prompt or Prompt([]))
        except Exception as failure:
            if not isinstance(failure, ServingError):
                self._node.log.error("rendering failed", error=repr(failure))
            self.fail(request, describe(failure))

    def _enqueue(self, request: Request, served: Served, prompt: Prompt) -> None:
        assert served.info is not None
        now, limits = self._node.clock(), self._limits
        queued = sequences(request.asked, prompt, served.info, served.kv_budget, limits, now, request.deadline)
        request.prompt_tokens, request.unfinished = len(prompt.ids), len(queued)
        name = Route(served.name, request.adapter).name
        self._deliver(request.key[0], RequestAccepted(request.key[1], name, len(prompt.ids)))
        for each in queued:
            self._tell_batching(
                request, self.streams.add(request, attrs.evolve(each, adapter=request.adapter_identity)).queued
            )

    def _tell_batching(self, request: Request, message: Any) -> None:
        if not self._node.tell("batching", message, trace_id=request.trace_id):
            raise ActorUnavailable("batching does not keep up", retry_after=1.0)

    # --- through ----------------------------------------------------------------------------------------------------

    def generated(self, frame: TokensGenerated) -> None:
        """Forward one step's tokens: one frame to each frontend that has a stream in it."""
        deltas: dict[bytes, list[Delta]] = {}
        over: list[tuple[Sequence, SequenceOutput]] = []
        for output in frame.outputs:
            sequence = self.streams.sequence(output.sequence_id)
            if sequence is None:
                continue  # cancelled, or queued anew
            if output.error is not None:
                over.append((sequence, output))
                continue
            deltas.setdefault(sequence.request.key[0], []).append(self._delta(sequence, output))
            if output.end is not None:
                over.append((sequence, output))
            elif sequence.spend(len(output.token_ids)):
                self._node.tell("batching", SequencePaused(output.sequence_id))
        for peer, theirs in deltas.items():
            if not self._deliver(peer, TokensDelivered(tuple(theirs))):
                self.peer_gone(peer)
        for sequence, output in over:
            self._sequence_over(sequence, output)

    def _delta(self, sequence: Sequence, output: SequenceOutput) -> Delta:
        request = sequence.request
        if not sequence.produced:
            sequence.produced = True
            request.unproduced -= 1
            self._gate.waiting -= 1
            if request.first_token_at is None:
                request.first_token_at = self._node.clock()
        return Delta(
            request.key[1],
            sequence.queued.index,
            output.text,
            output.token_ids,
            output.logprobs,
            output.end,
            output.reasoning,
            output.tool_calls,
        )

    def returned(self, peer: bytes, credits: CreditsReturned) -> None:
        request = self.streams.request((peer, credits.request_id))
        sequence = request.sequences.get(credits.index) if request else None
        if sequence is not None and sequence.refill(max(0, credits.tokens)):
            self._node.tell("batching", SequenceResumed(sequence.queued.sequence_id))

    # --- out --------------------------------------------------------------------------------------------------------

    def _sequence_over(self, sequence: Sequence, output: SequenceOutput) -> None:
        request = sequence.request
        if self.streams.request(request.key) is not request:
            return
        if output.error is not None:
            self.fail(request, output.error)
        elif self.streams.end(sequence, output):
            self._finish(request)

    def _finish(self, request: Request) -> None:
        self._close(request)
        now = self._node.clock()
        self._deliver(request.key[0], RequestFinished(request.key[1], request.usage, request.timings(now)))
        reasons = {end.reason for end in request.ends}
        self._ended(request, next(each for each in ("length", "tool_calls", "stop") if each in reasons), False)

    def fail(self, request: Request, error: ErrorInfo) -> None:
        """End a request with an error, and its sequences wherever they are."""
        self._drop(request)
        self._deliver(request.key[0], RequestFailed(request.key[1], error))
        self._ended(request, error.code, error.kind.http_status >= 500)

    def cancelled(self, key: RequestKey) -> None:
        """The consumer does not want the rest: nothing more is sent."""
        request = self.streams.request(key)
        if request is not None:
            self._drop(request)
            self._ended(request, Cancelled.code, False)

    def peer_gone(self, peer: bytes) -> None:
        """A frontend is silent or does not read: cancel for it, and tell it so in case that it wakes up."""
        error = ErrorInfo(ActorUnavailable.code, "the frontend was silent for too long and was taken for gone")
        for request in self.streams.of_peer(peer):
            self.cancelled(request.key)
            self._deliver(peer, RequestFailed(request.key[1], error))

    def lost(self, message: SequencesLost) -> None:
        """A replica is gone: queue again what has no token yet, fail the rest."""
        for sequence_id in message.sequence_ids:
            sequence = self.streams.sequence(sequence_id)
            if sequence is not None:
                self._lost(sequence, message)

    def _lost(self, sequence: Sequence, message: SequencesLost) -> None:
        served = self._catalogue.get(sequence.request.model)
        can_retry = served is not None and bool(served.restarting or served.replicas)
        if not sequence.produced and can_retry and sequence.attempt < self._limits.max_attempts:
            try:
                self._tell_batching(sequence.request, self.streams.again(sequence).queued)
            except ServingError as error:
                self.fail(sequence.request, describe(error))
            return
        text = f"the process that generated this answer is gone ({message.reason})"
        self.fail(sequence.request, ErrorInfo(ReplicaLost.code, text, retry_after=1.0, model=sequence.request.model))

    def expire(self, now: float) -> None:
        for request in self.streams.expired(now):
            seconds = round(request.deadline - request.arrived_at, 3)
            self.fail(request, ErrorInfo(DeadlineExceeded.code, f"not finished within {seconds} s", field="timeout"))

    def fail_all(self, requests: list[Request], error: ServingError) -> None:
        for request in requests:
            self.fail(request, describe(error))

    def _drop(self, request: Request) -> None:
        for sequence_id in self._close(request):
            self._node.tell("batching", SequenceAborted(sequence_id))

    def _close(self, request: Request) -> list[int]:
        self._gate.waiting -= request.unproduced
        request.unproduced = 0
        return self.streams.close(request)

    def _ended(self, request: Request, outcome: str, fault: bool) -> None:
        self.models.used(request.model)
        now = self._node.clock()
        timings = request.timings(now)
        self._node.emit(
            RequestEnded(
                model=request.model,
                priority=request.asked.priority,
                outcome=outcome,
                fault=fault,
                prompt_tokens=request.prompt_tokens,
                completion_tokens=request.usage.completion_tokens,
                cached_tokens=request.usage.cached_tokens,
                queue_seconds=timings.queue,
                first_token_seconds=None if request.first_token_at is None else timings.first_token,
                total_seconds=timings.total,
            )
        )
