"""Where in an answer its guidance holds: not in reasoning, or only within tool calls. Pure.

An answer goes through phases, told by the text of its tokens:

- `start`: nothing was said; the model may begin to reason, or begin its answer.
- `thinking`: between the markers of reasoning. At the budget, the end of it is forced: `closing`.
- `free`: anything may be said, while a trigger of a call is looked for.
- `held`: guidance holds, from the start of the answer or from a trigger on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs

from mlx_serving.actors.messages.values import AnswerFormat, Tool
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.actors.parsing.formats import CALLS, REASONING

Phase = Literal["start", "thinking", "closing", "free", "held"]


@attrs.frozen
class Plan:
    """What decides over the phases of one answer.

    `open_id` is the token that opens reasoning, None where that is no single token. `end_ids` are forced at `budget`.
    With `lazy`, guidance holds from any of `triggers` on, and from any of `leads` at the start of the answer; without,
    from `entry` on, or where that is empty from the start of the answer.
    """

    text_of: Callable[[int], str]
    encode: Callable[[str], list[int]]
    is_thinking: bool = False
    open: str = ""
    open_id: int | None = None
    close: str = ""
    end_ids: tuple[int, ...] = ()
    budget: int | None = None
    is_guided: bool = False
    lazy: bool = False
    parallel: bool = True
    triggers: tuple[str, ...] = ()
    leads: tuple[str, ...] = ()
    entry: str = ""
    eos_ids: frozenset[int] = frozenset()

    @property
    def first(self) -> Phase:
        if self.is_thinking:
            return "thinking"
        return "start" if self.open_id is not None else self.answering

    @property
    def answering(self) -> Phase:
        """The phase that the answer begins in."""
        return "held" if self.is_guided and not self.lazy and not self.entry else "free"

    @property
    def watches(self) -> bool:
        """Whether anything that may come in the answer changes the phase."""
        return bool(self.triggers or self.leads or self.entry or (self.open and self.open_id is None))

    @property
    def must_go_on(self) -> bool:
        """The answer may not end before its guidance begins."""
        return self.is_guided and not self.lazy

    @property
    def longest(self) -> int:
        """Characters of text that must be remembered to see a marker in it."""
        return max(map(len, (self.open, self.close, self.entry, *self.triggers, *self.leads)))


def plan_of(
    form: AnswerFormat, tokenizer: TextTokenizer, eos_ids: frozenset[int], is_guided: bool, is_calls: bool
) -> Plan:
    """The plan of an answer. `is_calls`: its guidance is the grammar of its tool calls."""
    backend = tokenizer.backend

    def encode(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    calls = CALLS[form.calls] if form.calls else None
    plan = Plan(
        text_of=lambda token: backend.decode([token], skip_special_tokens=False),
        encode=encode,
        is_guided=is_guided,
        lazy=form.lazy,
        parallel=form.parallel,
        triggers=calls.triggers if calls is not None and form.lazy else (),
        leads=_leads(calls.leads, form.tools) if calls is not None and form.lazy else (),
        eos_ids=eos_ids,
    )
    if not form.reasoning:
        return plan
    span = REASONING[form.reasoning]
    plan = attrs.evolve(
        plan,
        is_thinking=form.is_thinking,
        open=span.open,
        close=span.close,
        end_ids=tuple(encode(span.forced)),
        budget=form.thinking_budget,
    )
    if form.reasoning == "harmony":
        # The grammar of its calls lets reasoning come first by itself.
        return attrs.evolve(plan, entry="" if is_calls else span.entry)
    return attrs.evolve(plan, open_id=backend.token_to_id(span.open))


def _leads(patterns: tuple[str, ...], tools: tuple[Tool, ...]) -> tuple[str, ...]:
    return tuple(pattern.replace("%s", tool.name) for pattern in patterns for tool in tools)
