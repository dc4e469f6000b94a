"""Holding rows to what they were asked for: their guides, from the request to the masks of each step.

A guide begins with the answer, after the reasoning if there is any. It takes in every token as soon as that is read, so
the masks of a step are made once the tokens before it are known, while the forward pass runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
from contextlib import suppress

import attrs
import mlx.core as mx

from mlx_serving.actors.errors import GenerationFailed, ServingError, describe
from mlx_serving.actors.generation.guidance.beginning import begin_guide
from mlx_serving.actors.generation.guidance.compiler import GuideCompiler
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.masks import fill_draft_masks, fill_masks, new_masks
from mlx_serving.actors.generation.guidance.matchers import Matchers
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.mask_buffer import MaskBuffer
from mlx_serving.actors.generation.mlx_engine.row import Followed, Reading, Row
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Guidance

_WAIT_SECONDS = 0.01


class Guiding:
    """Of one model. Its methods are called on the engine's thread."""

    def __init__(self, tokenizer: TextTokenizer, eos_ids: frozenset[int], vocab_size: int, settings: Guidance) -> None:
        """`vocab_size` is the width of the logits."""
        self._matchers = Matchers(tokenizer, eos_ids, vocab_size)
        self._compiler = GuideCompiler(self._matchers, settings.compile_seconds, settings.cached)
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._awaited: list[Row] = []
        self._masks = MaskBuffer(self._matchers.width)
        self._draft_masks = MaskBuffer(self._matchers.width)
        self._cores_are_free = not is_cpu()

    def load(self) -> None:
        """Read the vocabulary, on any thread: later it would hold every row up."""
        with suppress(Exception):  # the first guide will tell
            self._compiler.load()

    def begin(self, row: Row) -> None:
        """Have its guide made, if it wants one. Until then the row is prefilled but does not join the batch."""
        row.awaited_guide = begin_guide(row.sequence, self._compiler, self._tokenizer, self._eos_ids)
        if row.awaited_guide is not None:
            self._awaited.append(row)

    def arrived(self) -> list[tuple[Row, ServingError]]:
        """Give rows the guides that are ready; those rows that cannot have one, and why."""
        failed = []
        waiting, self._awaited = self._awaited, []
        for row in waiting:
            future = row.awaited_guide
            if row.is_gone or future is None:
                continue
            if not future.done():
                self._awaited.append(row)
                continue
            row.awaited_guide = None
            error = future.exception()
            if error is None:
                row.guide = future.result()
            else:
                failed.append((row, error if isinstance(error, ServingError) else ServingError(repr(error))))
        return failed

    def wait(self) -> None:
        """A moment, or until some guide is ready: when nothing else is to be done."""
        awaited = [row.awaited_guide for row in self._awaited if row.awaited_guide is not None]
        if awaited:
            futures.wait(awaited, _WAIT_SECONDS, futures.FIRST_COMPLETED)

    def masks(self, rows: Sequence[Row]) -> mx.array | None:
        """What each row may say next, [rows, words]; None if every row may say anything.

        A row whose guide cannot go on has its `failure` set, and may say anything.
        """
        guides = [active_guide(row) for row in rows]
        if not any(guide is not None and guide.restricts for guide in guides):
            return None
        fill_masks(guides, self._masks.of(len(rows)), on_all_cores=self._cores_are_free)
        return self._masks.on_device(len(rows))

    def lone_mask(self, row: Row) -> mx.array | None:
        """That of a row outside the batch, [1, words]: the batch may have a step on its way with its own masks."""
        guide = active_guide(row)
        if guide is None or not guide.restricts:
            return None
        words = new_masks(1, self._matchers.width)
        fill_masks([guide], words)
        return mx.array(words)

    def draft_masks(self, rows: Sequence[Row], drafts: Sequence[Sequence[int]], width: int) -> mx.array | None:
        """What each row may say next and after each token of its draft, [rows, width, words]."""
        guides = [active_guide(row) for row in rows]
        if not any(guides):
            return None
        fill_draft_masks(guides, drafts, self._draft_masks.of(len(rows) * width).reshape(len(rows), width, -1))
        return self._draft_masks.on_device(len(rows) * width).reshape(len(rows), width, -1)

    def close(self) -> None:
        self._awaited.clear()
        self._compiler.close()


def active_guide(row: Row) -> Guide | None:
    """The row's guide, if it has one and goes on."""
    return None if row.guide is None or row.is_gone or row.guide.is_complete else row.guide


def follow(row: Row, token_id: int) -> Followed:
    """Let the row's guide take in a token of the answer, if it has one that goes on."""
    failure = None if row.guide is None else row.guide.failure
    if failure is not None:  # told by the masks that the token was drawn with
        return Followed(error=failure)
    guide = active_guide(row)
    if guide is None:
        return Followed()
    try:
        guide.advance(token_id)
    except ServingError as error:
        return Followed(error=error)
    except Exception as error:  # this row's alone: other rows' guides have their tokens already
        return Followed(error=GenerationFailed(f"the guide of this answer failed: {describe(error)}"))
    return Followed(guide.is_complete)


def followed(row: Row, reading: Reading) -> Reading:
    """The same reading, which the row's guide has taken in: before it is handled, for what may come next hangs on it.

    Rows out of the batch follow when they return.
    """
    if row.guide is None or row.is_parked or reading.token_id < 0:
        return reading
    return attrs.evolve(reading, followed=follow(row, reading.token_id))
