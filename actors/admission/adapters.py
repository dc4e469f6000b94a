"""What frontends ask about LoRA adapters: listing, adding, removing. All of it touches the disk, beside the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_serving.actors.admission.models import Answer, Models
from mlx_serving.actors.admission.rendering import RenderingPool
from mlx_serving.actors.errors import describe
from mlx_serving.actors.messages.admission import AdapterAddRequested, AdapterRemoveRequested, AdaptersRequested
from mlx_serving.actors.messages.frontend import AdaptersListed, DamagedAdapter, Done, Refused


class Adapters:
    """Replicas look into the same store when a request names an adapter: nothing has to be told to them."""

    def __init__(self, pool: RenderingPool, models: Models) -> None:
        self._pool = pool
        self._models = models
        self._library = models.library

    def list(self, _: AdaptersRequested, answer: Answer) -> None:
        def job() -> AdaptersListed:
            store = self._library.adapters
            damaged = tuple(DamagedAdapter(name, reason) for name, reason in store.problems().items())
            return AdaptersListed(tuple(each.info() for each in store.list()), damaged)

        self._run(job, answer)

    def add(self, asked: AdapterAddRequested, answer: Answer) -> None:
        def job() -> AdaptersListed:
            added = self._library.add_adapter(asked.folder, asked.base, asked.name)
            return AdaptersListed((added.info(),))

        self._run(job, answer)

    def remove(self, asked: AdapterRemoveRequested, answer: Answer) -> None:
        def job() -> Done:
            self._library.remove_adapter(asked.adapter)
            return Done()

        self._run(job, answer)

    def _run(self, job: Callable[[], Any], answer: Answer) -> None:
        """Answer with the job's outcome, once the list of models knows about it."""

        def landed(result: Any, error: BaseException | None) -> None:
            outcome = result if error is None else Refused(describe(error))
            self._models.refresh_stored(lambda: answer(outcome))

        self._pool.submit(job, landed)
