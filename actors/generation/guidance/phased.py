"""A guide that holds in some phases of an answer only, and ends reasoning at its budget."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.errors import GenerationFailed, ServingError
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.phases import Phase, Plan

if TYPE_CHECKING:
    import llguidance

_MOST_TAKEN_BACK = 256


@attrs.define(eq=False)
class _Held:
    """Guidance that holds, and how many tokens it has taken."""

    guide: Guide
    taken: int = 0

    def advance(self, token_id: int) -> None:
        self.guide.advance(token_id)
        self.taken += 1


@attrs.frozen
class _State:
    """After some token. `tail`: the last characters; None where no marker is looked for any more."""

    phase: Phase
    tail: str | None = ""
    thought: int = 0
    """Tokens of reasoning so far."""
    closed: int = 0
    """Of the forced end of reasoning, tokens said."""
    leads: bool = True
    """What was said of the answer may still be the beginning of a call that has no marker; it is all in `tail`."""
    held: _Held | None = None
    taken: int = 0
    """Tokens that `held` had taken."""


class PhasedGuide(Guide):
    """`begin` is a guide at the start of what it holds to, and is never moved; None: there is none."""

    def __init__(self, plan: Plan, begin: Guide | None) -> None:
        self._plan = plan
        self._begin = begin
        self._states: deque[_State] = deque([self._entered(plan.first)], maxlen=_MOST_TAKEN_BACK + 1)

    @property
    def _state(self) -> _State:
        return self._states[-1]

    # --- what may follow --------------------------------------------------------------------------------------

    @property
    def matcher(self) -> llguidance.LLMatcher | None:  # type: ignore[override]
        """What fills the mask; None while everything may follow."""
        if self._state.held is not None:
            return self._state.held.guide.matcher
        if self._state.phase == "start" and self._plan.answering == "held" and self._begin is not None:
            return self._begin.matcher
        return None

    @property
    def restricts(self) -> bool:
        phase = self._state.phase
        is_free = phase == "free" or phase == "thinking" or (phase == "start" and self.matcher is None)
        return not is_free or self._plan.must_go_on

    def amend(self, mask: NDArray[np.uint32]) -> None:
        """Change one row of masks, filled by `matcher`: the token that opens reasoning, or the one that is forced."""
        phase = self._state.phase
        if phase == "start" and self._plan.open_id is not None:
            _allow(mask, self._plan.open_id)
        elif self._state.held is not None:
            self._state.held.guide.amend(mask)
        elif phase == "closing":
            mask[:] = 0
            _allow(mask, self._plan.end_ids[self._state.closed])
        elif phase in ("thinking", "free") and self._plan.must_go_on:
            for token_id in self._plan.eos_ids:
                mask[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)

    def forced(self) -> list[int]:
        if self._state.phase == "closing":
            return list(self._plan.end_ids[self._state.closed :])
        return self._state.held.guide.forced() if self._state.held is not None else []

    def fitting(self, token_ids: list[int]) -> int:
        """Takes them in, as far as they fit, and then back."""
        fitting = 0
        for token_id in token_ids[:_MOST_TAKEN_BACK]:
            if not self.advance_if_allowed(token_id):
                break
            fitting += 1
        self.rollback(fitting)
        return fitting

    def advance_if_allowed(self, token_id: int) -> bool:
        """`advance`, but nothing happens if the token may not come."""
        held = self._state.held
        if held is not None and not held.guide.fitting([token_id]):
            return False
        try:
            self.advance(token_id)
        except GenerationFailed:
            return False
        return True

    @property
    def is_complete(self) -> bool:
        held = self._state.held
        return held is not None and held.guide.is_complete

    @property
    def failure(self) -> ServingError | None:
        return None if self._state.held is None else self._state.held.guide.failure

    # --- moving -----------------------------------------------------------------------------------------------

    def advance(self, token_id: int) -> None:
        self._states.append(self._after(self._state, token_id))

    def rollback(self, count: int) -> None:
        if count >= len(self._states):
            raise GenerationFailed(f"{count} tokens cannot be taken back")
        for _ in range(count):
            self._states.pop()
        held = self._state.held
        if held is not None:
            held.guide.rollback(held.taken - self._state.taken)
            held.taken = self._state.taken

    def copy(self) -> PhasedGuide:
        """At the same place; what came before cannot be taken back in the copy."""
        copied = PhasedGuide(self._plan, self._begin)
        state = self._state
        if state.held is not None:
            state = attrs.evolve(state, held=_Held(state.held.guide.copy(), state.held.taken))
        copied._states[-1] = state
        return copied

    def _after(self, state: _State, token_id: int) -> _State:
        match state.phase:
            case "start":
                if token_id == self._plan.open_id:
                    return self._thinking(_State("thinking"))
                return self._after(self._entered(self._plan.answering), token_id)
            case "thinking":
                return self._thought(state, token_id)
            case "closing":
                return self._closing(state, token_id)
            case "free":
                return self._freely(state, token_id)
            case "held":
                return self._holding(state, token_id)

    def _entered(self, phase: Phase) -> _State:
        held = _Held(self._begin.copy()) if phase == "held" and self._begin is not None else None
        if phase == "thinking":
            return self._thinking(_State(phase))
        return _State(phase, "" if self._plan.watches else None, held=held)

    def _thinking(self, state: _State) -> _State:
        """The same, or its end if the budget is spent."""
        spent = self._plan.budget is not None and state.thought >= self._plan.budget
        return _State("closing") if spent and self._plan.end_ids else state

    def _thought(self, state: _State, token_id: int) -> _State:
        text = (state.tail or "") + self._plan.text_of(token_id)
        if self._plan.close in text:
            return self._entered(self._plan.answering)
        return self._thinking(_State("thinking", self._end(text), state.thought + 1))

    def _closing(self, state: _State, token_id: int) -> _State:
        if token_id != self._plan.end_ids[state.closed]:
            raise GenerationFailed(f"token {token_id} is not the end of the reasoning")
        if state.closed + 1 < len(self._plan.end_ids):
            return attrs.evolve(state, closed=state.closed + 1)
        return self._entered("held" if self._plan.is_guided and self._plan.entry else self._plan.answering)

    def _freely(self, state: _State, token_id: int) -> _State:
        if state.tail is None:
            return state
        text = state.tail + self._plan.text_of(token_id)
        if self._plan.entry and self._plan.is_guided and self._plan.entry in text:
            return self._entered("held")
        if self._plan.open and self._plan.open_id is None and self._plan.open in text:
            return self._thinking(_State("thinking"))
        found = [text.find(trigger) for trigger in self._plan.triggers if trigger in text]
        said = "".join(text.split()) if state.leads else ""
        if any(said.startswith(lead) for lead in self._plan.leads):
            found = [len(text) - len(text.lstrip())]
        if found and self._begin is not None:
            return self._triggered(text[min(found) :], token_id)
        leads = state.leads and any(lead.startswith(said) for lead in self._plan.leads)
        return _State("free", text if leads else self._end(text), leads=leads)

    def _triggered(self, text: str, token_id: int) -> _State:
        """A call has begun with `text`, whose last token is this one. If it cannot be one, it is let go on."""
        assert self._begin is not None
        held = _Held(self._begin.copy())
        ids = [token_id] if self._plan.text_of(token_id) == text else self._plan.encode(text)
        try:
            for each in ids:
                held.advance(each)
        except GenerationFailed:
            return _State("free", leads=False)
        return _State("held", held=held, taken=held.taken)

    def _holding(self, state: _State, token_id: int) -> _State:
        held = state.held
        if held is None:
            return state
        held.advance(token_id)
        if self._plan.lazy and self._plan.parallel and self._plan.triggers and held.guide.is_complete:
            return _State("free", leads=False)
        return attrs.evolve(state, taken=held.taken)

    def _end(self, text: str) -> str:
        return text[-(self._plan.longest - 1) :] if self._plan.longest > 1 else ""


def _allow(mask: NDArray[np.uint32], token_id: int) -> None:
    mask[token_id >> 5] |= np.uint32(1 << (token_id & 31))
