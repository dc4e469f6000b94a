"""Guidance holds where it should: after reasoning, within calls, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
import numpy as np
import pytest

from mlx_serving.actors.errors import GenerationFailed
from mlx_serving.actors.generation.guidance.beginning import begin_guide
from mlx_serving.actors.generation.guidance.compiler import GuideCompiler
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.masks import fill_draft_masks, fill_masks, new_masks
from mlx_serving.actors.generation.guidance.matchers import Matchers
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import AnswerFormat, Guidance, Sampling, Stopping, Tool
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.actors.parsing.grammar import calls_grammar

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (Tool("weather", json.dumps({**SCHEMA, "additionalProperties": False})),)
LAZY = AnswerFormat(calls="hermes", tools=TOOLS, lazy=True)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
YES_NO = Guidance("choice", '["yes", "no"]')


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelRecord) -> TextTokenizer:
    return TextTokenizer.load(smollm2.path)


@attrs.define
class Maker:
    """Guides over the vocabulary of SmolLM2."""

    tokenizer: TextTokenizer
    compiler: GuideCompiler

    def guide(self, form: AnswerFormat | None, guidance: Guidance | None) -> Guide:
        sequence = SequenceQueued(
            1, "m", b"", Sampling(), Stopping(), kv_bytes=0, queued_at=0.0, format=form, guidance=guidance
        )
        future = begin_guide(sequence, self.compiler, self.tokenizer, self.tokenizer.eos_token_ids)
        assert future is not None
        return future.result(30)

    def calls(self, form: AnswerFormat) -> Guide:
        source = calls_grammar(form.calls, TOOLS, lambda _: None, lazy=form.lazy, parallel=form.parallel)
        return self.guide(form, Guidance("calls", source, "tools"))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def allowed(self, guide: Guide) -> set[int]:
        masks = new_masks(1, self.tokenizer.vocab_size)
        fill_masks([guide], masks)
        bits = np.unpackbits(masks[0].view(np.uint8), bitorder="little")[: self.tokenizer.vocab_size]
        return set(np.flatnonzero(bits).tolist())

    def say(self, guide: Guide, text: str) -> None:
        """Every token must be allowed when it comes."""
        for token_id in self.ids(text):
            assert token_id in self.allowed(guide), self.tokenizer.decode([token_id])
            guide.advance(token_id)


@pytest.fixture(scope="module")
def maker(tokenizer: TextTokenizer) -> Iterator[Maker]:
    compiler = GuideCompiler(Matchers(tokenizer, tokenizer.eos_token_ids, tokenizer.vocab_size))
    yield Maker(tokenizer, compiler)
    compiler.close()


def test_text_is_free_until_a_call_is_opened_and_after_it_is_closed(maker: Maker) -> None:
    guide = maker.calls(LAZY)
    everything = len(maker.allowed(guide))
    assert everything == maker.tokenizer.vocab_size
    maker.say(guide, "Let me see.\n<tool_call>")
    assert len(maker.allowed(guide)) == 1
    guide.advance(maker.ids("\n")[0])
    guide.rollback(1)
    maker.say(guide, CALL.removeprefix("<tool_call>"))
    assert len(maker.allowed(guide)) == everything
    assert not guide.is_complete
    maker.say(guide, " And " + CALL)


def test_without_parallel_calls_the_answer_ends_with_the_first(maker: Maker) -> None:
    guide = maker.calls(attrs.evolve(LAZY, parallel=False))
    maker.say(guide, "Well. " + CALL)
    assert guide.is_complete
    assert maker.allowed(guide) == maker.tokenizer.eos_token_ids


def test_a_json_call_without_a_marker_counts_only_at_the_start(maker: Maker) -> None:
    form = attrs.evolve(LAZY, calls="llama3_json")
    guide = maker.calls(form)
    maker.say(guide, '{"name": "weather", "parameters": {"city": "Rome"}}')
    assert guide.is_complete
    guide = maker.calls(form)
    maker.say(guide, 'As in {"name": "other"}')
    assert not guide.restricts


def test_a_call_that_lacks_its_marker_is_held_to_its_schema_too(maker: Maker) -> None:
    guide = maker.calls(LAZY)
    maker.say(guide, ' {"name": "weather", "arguments": {"city')
    assert {maker.tokenizer.decode([each])[0] for each in maker.allowed(guide)} == {'"'}
    maker.say(guide, '": "Rome"}}')
    assert not guide.restricts
    maker.say(guide, CALL)
    guide = maker.calls(LAZY)
    maker.say(guide, '```json\n{\n  "name": "weather",\n  "arguments": {\n    "city": "Rome"\n  }\n}\n')
    assert guide.restricts
    maker.say(guide, "```")
    assert not guide.restricts


def test_a_required_call_is_all_that_may_be_said(maker: Maker) -> None:
    guide = maker.calls(attrs.evolve(LAZY, lazy=False))
    assert not maker.tokenizer.eos_token_ids & maker.allowed(guide)
    maker.say(guide, CALL + "\n" + CALL)
    assert maker.tokenizer.eos_token_ids <= maker.allowed(guide)


def test_what_the_answer_is_held_to_begins_after_the_reasoning(maker: Maker) -> None:
    guide = maker.guide(AnswerFormat(reasoning="think", is_thinking=True), YES_NO)
    assert not maker.tokenizer.eos_token_ids & maker.allowed(guide)
    maker.say(guide, "well, no or yes</think>")
    assert {maker.tokenizer.decode([each])[0] for each in maker.allowed(guide)} == {"y", "n"}
    maker.say(guide, "yes")
    assert guide.is_complete


def test_at_the_budget_the_end_of_the_reasoning_is_all_that_may_be_said(maker: Maker) -> None:
    form = AnswerFormat(reasoning="think", is_thinking=True, thinking_budget=3)
    for guidance in (None, YES_NO):
        guide = maker.guide(form, guidance)
        words = maker.ids("one two three four")
        for token_id in words[:3]:
            guide.advance(token_id)
        forced = guide.forced()
        assert maker.tokenizer.decode(forced) == "\n</think>\n\n"
        for token_id in forced:
            assert maker.allowed(guide) == {token_id}
            guide.advance(token_id)
        assert guide.restricts is (guidance is not None)
    guide = maker.guide(attrs.evolve(form, thinking_budget=0), None)
    with pytest.raises(GenerationFailed):
        guide.advance(words[0])


def test_tokens_taken_back_over_the_borders_of_phases_leave_no_trace(maker: Maker) -> None:
    text = maker.ids(f"so</think>Hm. {CALL} and {CALL}")
    form = attrs.evolve(LAZY, reasoning="think", is_thinking=True)
    guide, trace = maker.calls(form), []
    for token_id in text:
        trace.append(maker.allowed(guide))
        guide.advance(token_id)
    for count in (1, 5, 17, len(text) - 1):
        guide.rollback(count)
        assert maker.allowed(guide) == trace[len(text) - count]
        for token_id in text[len(text) - count :]:
            guide.advance(token_id)
    guide.rollback(3)
    copy = guide.copy()
    for token_id in text[len(text) - 3 :]:
        copy.advance(token_id)
    assert maker.allowed(guide) == trace[len(text) - 3]
    assert guide.fitting(text[len(text) - 3 :]) == 3
    assert guide.fitting(maker.ids(" nonsense")) == 0


def test_drafts_are_masked_over_the_borders_of_phases(maker: Maker) -> None:
    draft = maker.ids(f"Hm. {CALL} and")
    guide, width = maker.calls(LAZY), len(draft) + 1
    masks = new_masks(width, maker.tokenizer.vocab_size).reshape(1, width, -1)
    fill_draft_masks([guide], [draft], masks)
    for position, token_id in enumerate(draft):
        single = new_masks(1, maker.tokenizer.vocab_size)
        fill_masks([guide], single)
        assert (masks[0, position] == single[0]).all()
        guide.advance(token_id)
