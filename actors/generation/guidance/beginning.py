"""The guide of a sequence: what its answer is held to, and where in the answer that holds."""

from __future__ import annotations

from concurrent.futures import Future

from mlx_serving.actors.generation.guidance.compiler import GuideCompiler
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.phased import PhasedGuide
from mlx_serving.actors.generation.guidance.phases import plan_of
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.models.tokenizer import TextTokenizer


def begin_guide(
    sequence: SequenceQueued, compiler: GuideCompiler, tokenizer: TextTokenizer, eos_ids: frozenset[int]
) -> Future[Guide] | None:
    """The sequence's guide once it is compiled; None if anything may be said."""
    form, guidance = sequence.format, sequence.guidance
    if form is None or (guidance is None and form.thinking_budget is None):
        return None if guidance is None else compiler.start(guidance)
    plan = plan_of(form, tokenizer, eos_ids, guidance is not None, guidance is not None and guidance.kind == "calls")
    phased: Future[Guide] = Future()
    if guidance is None:
        phased.set_result(PhasedGuide(plan, None))
        return phased

    def finish(compiled: Future[Guide]) -> None:
        error = compiled.exception()
        if error is not None:
            phased.set_exception(error)
        else:
            phased.set_result(PhasedGuide(plan, compiled.result()))

    compiler.start(guidance).add_done_callback(finish)
    return phased
