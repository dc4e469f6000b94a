"""Driving an engine by hand: submit sequences, step it, collect what each of them was given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from mlx_serving.actors.errors import ErrorInfo
from mlx_serving.actors.generation.engine import Engine, StepReport
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import Sampling, SequenceEnd, Stopping, TokenLogprob, pack_ids

GREEDY = Sampling(temperature=0.0)
MOST_STEPS = 5000


@attrs.define
class Collected:
    """One sequence's outputs, put together."""

    text: str = ""
    ids: list[int] = attrs.field(factory=list)
    logprobs: list[TokenLogprob] = attrs.field(factory=list)
    end: SequenceEnd | None = None
    error: ErrorInfo | None = None
    outputs: int = 0

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.error is not None


@attrs.define
class Driver:
    """An engine with the outputs of everything submitted, by sequence id."""

    engine: Engine
    sequences: dict[int, Collected] = attrs.field(factory=dict)

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling = GREEDY,
        stopping: Stopping | None = None,
        index: int = 0,
        **fields: Any,
    ) -> int:
        """Returns the new sequence's id. Without `stopping`: 8 tokens, past any end of sequence.

        `fields` are further ones of `SequenceQueued`.
        """
        sequence_id = len(self.sequences)
        wanted = stopping if stopping is not None else Stopping(max_tokens=8, ignore_eos=True)
        self.sequences[sequence_id] = Collected()
        queued = SequenceQueued(sequence_id, "tiny", pack_ids(prompt), sampling, wanted, 0, 1.0, index, **fields)
        self.engine.submit(queued, 2.0)
        return sequence_id

    def step(self) -> StepReport:
        report = self.engine.step()
        ids = [output.sequence_id for output in report.outputs]
        assert len(ids) == len(set(ids)), "a sequence had two outputs in one step"
        for output in report.outputs:
            collected = self.sequences[output.sequence_id]
            assert not collected.is_over, "an output after the last one"
            collected.text += output.text
            collected.ids += output.token_ids
            collected.logprobs += output.logprobs
            collected.end, collected.error = output.end, output.error
            collected.outputs += 1
        return report

    def run(self) -> list[StepReport]:
        """Step until nothing is pending."""
        reports = []
        while self.engine.pending:
            reports.append(self.step())
            assert len(reports) < MOST_STEPS, "the engine does not come to an end"
        return reports

    def run_until(self, sequence_id: int, tokens: int) -> None:
        """Step until a sequence has said so many tokens."""
        for _ in range(MOST_STEPS):
            if len(self.sequences[sequence_id].ids) >= tokens:
                return
            self.step()
        raise AssertionError("the sequence does not get there")

    def ids(self, sequence_ids: Iterable[int]) -> list[list[int]]:
        return [self.sequences[each].ids for each in sequence_ids]


def replace_model(engine: Any, model: Any) -> None:
    """Let an `MlxEngine` that holds no rows run another model from now on."""
    engine._model = engine._prompts._model = model
    cache = engine._decoding.batch.cache
    setattr(*((cache.program, "model") if hasattr(cache, "program") else (cache, "_model")), model)
