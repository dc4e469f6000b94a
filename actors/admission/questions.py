"""What frontends ask besides generation: tokenising, models, status, metrics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import metadata
from typing import Any

import psutil

from mlx_serving.actors.admission.catalogue import Catalogue, Served
from mlx_serving.actors.admission.conversation import chat_text
from mlx_serving.actors.admission.models import Answer, Models
from mlx_serving.actors.admission.policy import Gate
from mlx_serving.actors.admission.rendering import RenderingPool, give_back
from mlx_serving.actors.admission.requests import Requests
from mlx_serving.actors.base import Node
from mlx_serving.actors.errors import InvalidParameter, ServingError, describe
from mlx_serving.actors.messages.admission import (
    DetokenizeRequested,
    MetricsRequested,
    ModelsRequested,
    QueueObserved,
    StatusRequested,
    SystemObserved,
    TokenizeRequested,
)
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.frontend import Detokenized, ModelsListed, Refused, StatusReported, Tokenized
from mlx_serving.actors.messages.values import pack_ids, unpack_ids

METRICS_WAITING_LIMIT = 64


class Questions:
    """Answers from what admission knows; what takes long runs in the pool."""

    def __init__(
        self,
        node: Node,
        catalogue: Catalogue,
        gate: Gate,
        pool: RenderingPool,
        requests: Requests,
        models: Models,
    ) -> None:
        self._node = node
        self._catalogue = catalogue
        self._gate = gate
        self._pool = pool
        self._requests = requests
        self._models = models
        self._started = node.clock()
        self._process = psutil.Process()
        self._version = metadata.version("mlx-serving")
        self._numbers = itertools.count(1)
        self._metrics: dict[int, Answer] = {}
        self.system = SystemObserved(())
        self.queue = QueueObserved(0, 0, 0, 0.0, 0)

    def tokenize(self, asked: TokenizeRequested, answer: Answer) -> None:
        self._models.reach(asked.model, answer, lambda served: self._tokenize(served, asked, answer))

    def _tokenize(self, served: Served, asked: TokenizeRequested, answer: Answer) -> None:
        tokenizer, info = served.tokenizer, served.info
        assert tokenizer is not None
        assert info is not None

        def job() -> Tokenized:
            if (asked.text is None) == (asked.messages is None):
                raise InvalidParameter("give exactly one of text and messages", field="text")
            messages = None if asked.messages is None else self._requests.volatile.strip(asked.messages)
            text = asked.text if messages is None else chat_text(tokenizer, messages)
            ids = tokenizer.encode(text or "", asked.add_special_tokens and asked.messages is None)
            give_back(len(ids))
            return Tokenized(info.name, pack_ids(ids), tuple(tokenizer.token_strings(ids)), info.context_length)

        self._run(job, answer)

    def detokenize(self, asked: DetokenizeRequested, answer: Answer) -> None:
        self._models.reach(asked.model, answer, lambda served: self._detokenize(served, asked, answer))

    def _detokenize(self, served: Served, asked: DetokenizeRequested, answer: Answer) -> None:
        tokenizer, info = served.tokenizer, served.info
        assert tokenizer is not None
        assert info is not None

        def job() -> Detokenized:
            ids = unpack_ids(asked.token_ids)
            if any(each >= info.vocab_size for each in ids):
                raise InvalidParameter(f"token ids must be below {info.vocab_size}", field="tokens")
            return Detokenized(info.name, tokenizer.decode(ids, skip_special_tokens=False))

        self._run(job, answer)

    def models(self, _: ModelsRequested, answer: Answer) -> None:
        def listed() -> None:
            served = self._models.listed()
            names = {each.info.name for each in served}
            stored = tuple(name for name in self._requests.stored if name not in names)
            answer(ModelsListed(served, stored, self._models.available()))

        self._models.refresh_stored(listed)

    def status(self, _: StatusRequested, answer: Answer) -> None:
        ready, reason = self._catalogue.readiness()
        if self._gate.draining:
            ready, reason = False, "shutting down"
        answer(
            StatusReported(
                version=self._version,
                ready=ready,
                reason=reason,
                draining=self._gate.draining,
                uptime=self._node.clock() - self._started,
                actors=self.system.actors,
                models=self._models.listed(),
                queue=self.queue,
                active_streams=len(self._requests.streams),
                shedding=self._gate.shed,
                memory_rss=self._process.memory_info().rss,
                restarts=sum(actor.restarts for actor in self.system.actors),
            )
        )

    def metrics(self, asked: MetricsRequested, answer: Answer) -> None:
        """Ask telemetry and pass its answer on."""
        if len(self._metrics) >= METRICS_WAITING_LIMIT:
            self._metrics.pop(next(iter(self._metrics)))
        number = next(self._numbers)
        self._metrics[number] = answer
        self._node.tell("telemetry", asked, correlation=number)

    def metrics_reported(self, envelope: Envelope) -> None:
        answer = self._metrics.pop(envelope.correlation, None)
        if answer is not None:
            answer(envelope.message)

    def _run(self, job: Callable[[], Any], answer: Answer) -> None:
        def landed(result: Any, error: BaseException | None) -> None:
            if error is not None and not isinstance(error, ServingError):
                self._node.log.error("question failed", error=repr(error))
            answer(result if error is None else Refused(describe(error)))

        self._pool.submit(job, landed)
