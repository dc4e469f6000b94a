"""Which tokens may come next, for all rows at once: packed bits, least significant first, as llguidance fills them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.phased import PhasedGuide

if TYPE_CHECKING:
    import llguidance

Masks = NDArray[np.uint32]
"""[rows, words], one bit a token: bit i % 32 of word i // 32 is set if token i may come next."""

_ALL = 0xFFFFFFFF


def new_masks(rows: int, vocab_size: int) -> Masks:
    """A buffer for `fill_masks`. `vocab_size` is the width of the model's logits."""
    return np.full((rows, (vocab_size + 31) // 32), _ALL, dtype=np.uint32)


def fill_masks(guides: Sequence[Guide | None], masks: Masks, on_all_cores: bool = False) -> None:
    """Fill row i for guide i, without the GIL; rows of None let every token through.

    Other threads help where the cores are free. Where they compute the forward pass, waking a thread takes longer than
    most masks. A guide that cannot go on tells so by its `failure`, and its row then means nothing.
    """
    matchers = [None if each is None else each.matcher for each in guides]
    guided = [(matcher, row) for row, matcher in enumerate(matchers) if matcher is not None]
    for row, matcher in enumerate(matchers):
        if matcher is None:
            masks[row] = _ALL
    if guided:
        assert masks.flags["C_CONTIGUOUS"]
        address, size = masks.ctypes.data, masks.shape[1] * 4
        if on_all_cores:
            _executor().unsafe_compute_mask_ptr(guided, address, size, masks.shape[0])
        else:
            for matcher, row in guided:
                matcher.unsafe_compute_mask_ptr(address + row * size, size)
    for row, each in enumerate(guides):
        if each is not None:
            each.amend(masks[row])


def fill_draft_masks(guides: Sequence[Guide | None], drafts: Sequence[Sequence[int]], masks: Masks) -> None:
    """Masks [rows, width, words] for each row's next token and those after each token of its draft.

    A draft may be shorter than `width` - 1; masks after its end, or after a token that may not come, let everything
    through. The guides stay where they are.
    """
    assert masks.flags["C_CONTIGUOUS"]
    masks.fill(_ALL)
    rows, width, words = masks.shape
    drafted: list[tuple[int, Guide, list[int]]] = []
    for row, (guide, draft) in enumerate(zip(guides, drafts, strict=True)):
        if isinstance(guide, PhasedGuide):
            _fill_draft(guide, draft, masks[row])
        elif guide is not None and draft:
            drafted.append((row, guide, list(draft)))
        elif guide is not None:  # llguidance takes no draft that is empty
            fill_masks([guide], masks[row, :1])
    if drafted:
        asked = [(guide.matcher, row * width, draft) for row, guide, draft in drafted]
        _executor().unsafe_compute_mask_ptr_with_draft_token(asked, masks.ctypes.data, words * 4, rows * width)
    for row, guide, draft in drafted:
        _amend_draft(guide, draft, masks[row])


def _amend_draft(guide: Guide, draft: list[int], masks: Masks) -> None:
    taken = guide.fitting(draft)
    for position, mask in enumerate(masks[: taken + 1]):
        guide.amend(mask)
        if position < taken:
            guide.advance(draft[position])
    guide.rollback(taken)


def _fill_draft(guide: PhasedGuide, draft: Sequence[int], masks: Masks) -> None:
    """One row's masks, one by one: a token may take it into another phase."""
    taken = 0
    for position in range(len(masks)):
        fill_masks([guide], masks[position : position + 1])
        if position >= len(draft) or not guide.advance_if_allowed(draft[position]):
            break
        taken += 1
    guide.rollback(taken)


@cache
def _executor() -> llguidance.LLExecutor:
    import llguidance

    return llguidance.LLExecutor()
