"""Tries a compiled grammar out before an answer is held to it: some cannot be followed, or only too slowly."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.errors import GuidanceInvalid

if TYPE_CHECKING:
    import llguidance

_WALKS = 2
_STEPS = 12
_LONGEST_SECONDS = 0.25
"""CPU time that the masks of one walk may take: while they are computed, every row of the batch waits."""


def try_out(matcher: llguidance.LLMatcher, field: str, mask_words: int) -> None:
    """Raise GuidanceInvalid if nothing can be said, or following becomes too much within a few tokens.

    `mask_words` is the length of a mask. Walks over copies; what they compute stays known to the original.
    """
    for seed in range(_WALKS):
        _walk(matcher.deep_copy(), random.Random(seed), field, np.zeros(mask_words, dtype=np.uint32))


def _walk(matcher: llguidance.LLMatcher, draw: random.Random, field: str, mask: NDArray[np.uint32]) -> None:
    began = time.thread_time()
    for _ in range(_STEPS):
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if time.thread_time() - began > _LONGEST_SECONDS:
            _refuse(field, "this takes too long to follow: it would hold up every other answer")
        if matcher.is_error():
            _explain(matcher, field)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        matcher.consume_token(int(draw.choice(allowed)))
        if matcher.is_error():
            _explain(matcher, field)
        if matcher.is_stopped():
            return


def _explain(matcher: llguidance.LLMatcher, field: str) -> NoReturn:
    reason = matcher.get_error().partition("\n")[0]
    if reason.startswith("NoExtension"):
        _refuse(field, "no answer can satisfy this")
    _refuse(field, f"this is too complex to follow: {reason}")


def _refuse(field: str, problem: str) -> NoReturn:
    raise GuidanceInvalid(f"{field}: {problem}", field=field)
