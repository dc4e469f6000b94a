"""A request's prompt as its tokenizer made it."""

from __future__ import annotations

import attrs

from mlx_serving.actors.messages.values import AnswerFormat, Guidance


@attrs.frozen
class Prompt:
    """Token ids, and the offsets in them at which messages end, as far as they were asked for.

    `prediction` is text that the answer may repeat, in token ids; `format` tells what the answer is made of, and
    `guidance` what it is held to.
    """

    ids: list[int]
    segments: tuple[int, ...] = ()
    prediction: list[int] = attrs.field(factory=list)
    format: AnswerFormat | None = None
    guidance: Guidance | None = None
