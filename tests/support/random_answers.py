"""Answers without a model: random walks over what a guide lets through."""

from __future__ import annotations

import random
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.masks import fill_masks, new_masks
from mlx_serving.actors.models.tokenizer import TextTokenizer

_CLOSING = frozenset('"}]')


@attrs.frozen
class Habit:
    """How a walk chooses: shares of steps that end strings and lists, or objects too, where they can; and the tokens
    after which it ends whatever it can."""

    ends_strings: float
    ends_objects: float
    patience: int


HABITS = (Habit(0.5, 0.05, 100), Habit(0.3, 0.0, 150), Habit(0.7, 0.1, 60), Habit(0.4, 0.3, 30))


@attrs.define(eq=False, slots=False)
class Walker:
    """Walks in one vocabulary. `width` is that of the masks, in tokens."""

    tokenizer: TextTokenizer
    eos_id: int
    width: int
    most_tokens: int = 600

    def answer(self, guide: Guide, seed: int) -> str | None:
        """A whole answer, or None if it did not come to an end. Raises what stops the guide."""
        draw, habit = random.Random(seed), HABITS[seed % len(HABITS)]
        masks = new_masks(1, self.width)
        ids: list[int] = []
        while len(ids) < self.most_tokens:
            fill_masks([guide], masks)
            if guide.failure is not None:
                raise guide.failure
            token = self._choose(draw, habit, _allowed(masks), len(ids))
            guide.advance(token)
            if token != self.eos_id:
                ids.append(token)
            if guide.is_complete:
                return self.tokenizer.decode(ids, skip_special_tokens=False)
        return None

    def _choose(self, draw: random.Random, habit: Habit, allowed: NDArray[np.intp], step: int) -> int:
        if step > habit.patience or draw.random() < habit.ends_objects:
            wanted = (self._closing, self._short)
        elif draw.random() < habit.ends_strings:
            wanted = (self._closing_inner, self._opening)
        else:
            wanted = (self._opening, self._short)
        for kind in wanted:
            liked = allowed[kind[allowed]]
            if len(liked):
                return int(draw.choice(liked))
        return int(draw.choice(allowed))

    @cached_property
    def _texts(self) -> list[str]:
        count = self.tokenizer.vocab_size
        return [self.tokenizer.decode([token], skip_special_tokens=False) for token in range(count)]

    @cached_property
    def _closing(self) -> NDArray[np.bool_]:
        closing = [bool(text) and set(text) <= _CLOSING for text in self._texts]
        closing[self.eos_id] = True
        return np.array(closing)

    @cached_property
    def _closing_inner(self) -> NDArray[np.bool_]:
        return np.array([bool(text) and set(text) <= _CLOSING and "}" not in text for text in self._texts])

    @cached_property
    def _short(self) -> NDArray[np.bool_]:
        return np.array([0 < len(text) < 4 and text.isascii() and text.isprintable() for text in self._texts])

    @cached_property
    def _opening(self) -> NDArray[np.bool_]:
        return self._short & ~self._closing


def _allowed(masks: NDArray[np.uint32]) -> NDArray[np.intp]:
    return np.flatnonzero(np.unpackbits(masks.view(np.uint8).ravel(), bitorder="little"))
