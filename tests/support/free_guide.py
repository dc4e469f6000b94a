"""A guide that lets every token through, for models whose tokens are no text."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.generation.guidance.compiler import GuideCompiler
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.messages.values import Guidance


class FreeGuide(Guide):
    """Its row of the masks is all ones."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(nothing, "nothing")

    def advance(self, token_id: int) -> None: ...

    def forced(self) -> list[int]:
        return []

    def amend(self, mask: NDArray[np.uint32]) -> None: ...

    @property
    def is_complete(self) -> bool:
        return False

    @property
    def failure(self) -> None:
        return None


@contextmanager
def only_free_guides() -> Iterator[None]:
    """Whatever is asked for, rows get such a guide."""

    def start(compiler: GuideCompiler, guidance: Guidance) -> Future[Guide]:
        future: Future[Guide] = Future()
        future.set_result(FreeGuide())
        return future

    with patch.object(GuideCompiler, "start", start):
        yield
