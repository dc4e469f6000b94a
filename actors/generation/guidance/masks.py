"""Which tokens may come next, for all rows at once: packed bits, least significant first, as llguidance fills them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.generation.guidance.guide import Guide

if TYPE_CHECKING:
    import llguidance

Masks = NDArray[np.uint32]
"""[rows, words], one bit a token: bit i % 32 of word i // 32 is set if token i may come next."""

_ALL = 0xFFFFFFFF


def new_masks(rows: int, vocab_size: int) -> Masks:
    """A buffer for `fill_masks`. `vocab_size` is the width of the model's logits."""
    return np.full((rows, (vocab_size + 31) // 32), _ALL, dtype=np.uint32)


def fill_masks(guides: Sequence[Guide | None], masks: Masks) -> None:
    """Fill row i for guide i, in parallel and without the GIL; rows of None let every token through.

    A guide that cannot go on tells so by its `failure`, and its row then means nothing.
    """
    guided = [(each.matcher, row) for row, each in enumerate(guides) if each is not None]
    for row, each in enumerate(guides):
        if each is None:
            masks[row] = _ALL
    if guided:
        assert masks.flags["C_CONTIGUOUS"]
        _executor().unsafe_compute_mask_ptr(guided, masks.ctypes.data, masks.shape[1] * 4, masks.shape[0])


def fill_draft_masks(guides: Sequence[Guide | None], drafts: Sequence[Sequence[int]], masks: Masks) -> None:
    """Masks [rows, width, words] for each row's next token and those after each token of its draft.

    A draft may be shorter than `width` - 1; masks after its end, or after a token that may not come, let everything
    through. The guides stay where they are.
    """
    assert masks.flags["C_CONTIGUOUS"]
    masks.fill(_ALL)
    width = masks.shape[1]
    guided: list[Any] = [
        (guide.matcher, row * width, list(draft))
        for row, (guide, draft) in enumerate(zip(guides, drafts, strict=True))
        if guide is not None
    ]
    if guided:
        words, count = masks.shape[2], masks.shape[0] * width
        _executor().unsafe_compute_mask_ptr_with_draft_token(guided, masks.ctypes.data, words * 4, count)


@cache
def _executor() -> llguidance.LLExecutor:
    import llguidance

    return llguidance.LLExecutor()
