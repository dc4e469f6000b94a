"""Warm prompts: prefilled into the prefix cache of every replica they are for, when it comes up and when asked to.

A warm prompt is a sequence of no answer that only one replica may run. Batching and the engine treat it as any other
of low priority; it is in no request, so that it shows in no user's answer and in no metric of requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import attrs

from mlx_serving.actors.admission.caches import loaded
from mlx_serving.actors.admission.catalogue import Catalogue, Served
from mlx_serving.actors.admission.models import Answer
from mlx_serving.actors.admission.rendering import RenderingPool, warm_ids
from mlx_serving.actors.admission.streams import Streams
from mlx_serving.actors.admission.warm_prompts import FIELD, WarmPrompt, read_warm_prompts
from mlx_serving.actors.base import Node
from mlx_serving.actors.errors import (
    ActorUnavailable,
    ConfigurationInvalid,
    ContextOverflow,
    ErrorInfo,
    InvalidParameter,
    describe,
)
from mlx_serving.actors.messages.admission import CacheWarmRequested, SequenceOutput, SequencesLost, TokensGenerated
from mlx_serving.actors.messages.batching import SequenceAborted, SequenceQueued
from mlx_serving.actors.messages.frontend import CacheWarmed, Refused, WarmedPrompt
from mlx_serving.actors.messages.values import Sampling, Stopping, pack_ids


@attrs.define(eq=False)
class _Round:
    """Prompts that are warmed together, and whoever waits for them."""

    answer: Answer | None
    left: int
    done: list[WarmedPrompt] = attrs.field(factory=list)
    error: ErrorInfo | None = None


@attrs.define(eq=False)
class _Job:
    """One prompt on one replica."""

    prompt: WarmPrompt
    model: str
    replica: str
    round: _Round
    started_at: float


class Warming:
    """Raises ConfigurationInvalid when made with settings that cannot be meant."""

    def __init__(self, node: Node, catalogue: Catalogue, pool: RenderingPool, streams: Streams) -> None:
        self._node = node
        self._catalogue = catalogue
        self._pool = pool
        self._streams = streams
        self._prompts = read_warm_prompts(node.settings.models.warm_prompts, node.home)
        if self._prompts and node.settings.admission.cache_per_tenant:
            raise ConfigurationInvalid(
                f"{FIELD}: no tenant could use them while admission.cache_per_tenant is true", field=FIELD
            )
        self._known: set[str] = set()
        self._jobs: dict[int, _Job] = {}

    # --- in ---------------------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Warm the replicas that have begun to serve since the last call."""
        if not self._prompts:
            return
        for served in self._catalogue:
            if served.ready:
                new = [replica for replica in served.replicas if replica not in self._known]
                self._known.update(new)
                self._start([(prompt, served, replica) for prompt in self._of(served) for replica in new], None)

    def warm(self, asked: CacheWarmRequested, answer: Answer) -> None:
        """Warm what was asked for. Raises InvalidParameter for an unknown name, ModelNotFound for an unknown model."""
        prompts = [prompt for prompt in self._prompts if asked.prompt in (None, prompt.name)]
        if asked.prompt is not None and not prompts:
            known = ", ".join(prompt.name for prompt in self._prompts) or "none"
            raise InvalidParameter(f"no warm prompt is called {asked.prompt!r}; there is {known}", field="prompt")
        chosen = list(self._catalogue) if asked.model is None else [loaded(self._catalogue, asked.model)]
        wanted = [
            (prompt, served, replica)
            for served in chosen
            if served.ready
            for prompt in self._of(served)
            if prompt in prompts
            for replica in served.replicas
        ]
        self._start(wanted, answer)

    def _of(self, served: Served) -> list[WarmPrompt]:
        """The prompts that are for a model."""
        return [
            each for each in self._prompts if (served.is_default if each.model is None else each.model == served.name)
        ]

    def _start(self, wanted: list[tuple[WarmPrompt, Served, str]], answer: Answer | None) -> None:
        warming = _Round(answer, len(wanted))
        for prompt, served, replica in wanted:
            job = _Job(prompt, served.name, replica, warming, self._node.clock())
            assert served.tokenizer is not None  # it is ready
            self._pool.submit(partial(warm_ids, served.tokenizer, prompt.text), partial(self._rendered, job))
        if not wanted and answer is not None:
            answer(CacheWarmed(()))

    def _rendered(self, job: _Job, ids: list[int] | None, error: BaseException | None) -> None:
        served = self._catalogue.get(job.model)
        if error is not None or ids is None:
            self._failed(job, describe(error or RuntimeError("nothing was rendered")))
        elif served is None or served.info is None or job.replica not in served.replicas:
            self._failed(job, ErrorInfo(ActorUnavailable.code, f"{job.replica} is gone"))
        elif len(ids) >= served.info.context_length:
            text = f"warm prompt {job.prompt.name}: {len(ids)} tokens leave no room in {served.info.context_length}"
            self._failed(job, ErrorInfo(ContextOverflow.code, text, model=job.model))
        else:
            self._queue(job, ids, served.info.cache_bytes(len(ids)))

    def _queue(self, job: _Job, ids: list[int], kv_bytes: int) -> None:
        sequence = SequenceQueued(
            sequence_id=self._streams.fresh_id(),
            model=job.model,
            prompt_ids=pack_ids(ids),
            sampling=Sampling(),
            stopping=Stopping(max_tokens=0),
            kv_bytes=kv_bytes,
            queued_at=self._node.clock(),
            priority="low",
            replica=job.replica,
        )
        if self._node.tell("batching", sequence):
            self._jobs[sequence.sequence_id] = job
        else:
            self._failed(job, ErrorInfo(ActorUnavailable.code, "batching does not keep up", retry_after=1.0))

    # --- out --------------------------------------------------------------------------------------------------------

    def generated(self, frame: TokensGenerated) -> None:
        """Of a replica's frame, what belongs to warm prompts."""
        if self._jobs:
            for output in frame.outputs:
                job = self._jobs.get(output.sequence_id)
                if job is not None and (output.end is not None or output.error is not None):
                    del self._jobs[output.sequence_id]
                    self._ended(job, output)

    def _ended(self, job: _Job, output: SequenceOutput) -> None:
        if output.end is None:
            self._failed(job, output.error or ErrorInfo(ActorUnavailable.code, "it ended without a result"))
            return
        seconds = self._node.clock() - job.started_at
        end = output.end
        warmed = WarmedPrompt(job.prompt.name, job.model, job.replica, end.prompt_tokens, end.cached_tokens, seconds)
        self._node.log.info("prompt warmed", **attrs.asdict(attrs.evolve(warmed, seconds=round(seconds, 3))))
        job.round.done.append(warmed)
        self._settle(job.round)

    def lost(self, message: SequencesLost) -> None:
        self._fail_jobs(message.sequence_ids, message.reason)

    def replica_gone(self, replica: str) -> None:
        self._known.discard(replica)

    def expire(self, now: float) -> None:
        """Give up what takes longer than a request may."""
        limit = self._node.settings.admission.request_timeout
        late = [number for number, job in self._jobs.items() if now - job.started_at > limit]
        for number in late:
            self._node.tell("batching", SequenceAborted(number))
        self._fail_jobs(late, f"not done within {limit:g} s")

    def refuse_all(self, error: ErrorInfo) -> None:
        """Nobody will warm any more."""
        while self._jobs:
            _, job = self._jobs.popitem()
            self._failed(job, error)

    def _fail_jobs(self, numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            job = self._jobs.pop(number, None)
            if job is not None:
                self._failed(job, ErrorInfo(ActorUnavailable.code, f"{job.replica}: {reason}", model=job.model))

    def _failed(self, job: _Job, error: ErrorInfo) -> None:
        self._node.log.warning("prompt not warmed", prompt=job.prompt.name, replica=job.replica, reason=error.message)
        job.round.error = job.round.error or error
        self._settle(job.round)

    def _settle(self, warming: _Round) -> None:
        warming.left -= 1
        if not warming.left and warming.answer is not None:
            error, done = warming.error, sorted(warming.done, key=lambda each: (each.name, each.model, each.replica))
            warming.answer(Refused(error) if error is not None else CacheWarmed(tuple(done)))
