"""Following an answer: what may come, what must, and going back."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from support.guidance_sources import PERSON

from mlx_serving.actors.errors import GenerationFailed, GuidanceInvalid
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.masks import fill_draft_masks, fill_masks, new_masks
from mlx_serving.actors.models.tokenizer import TextTokenizer

Compile = Callable[..., Guide]
EOS, PADDED_VOCABULARY = 2, 49_280


def allowed(guide: Guide) -> set[int]:
    masks = new_masks(1, PADDED_VOCABULARY)
    fill_masks([guide], masks)
    return set(np.flatnonzero(np.unpackbits(masks.view(np.uint8).ravel(), bitorder="little")).tolist())


def say(guide: Guide, tokenizer: TextTokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    for token in ids:
        guide.advance(token)
    return ids


def test_only_what_fits_may_follow(compiled: Compile, tokenizer: TextTokenizer) -> None:
    guide = compiled("regex", "[0-9]{2}")
    assert {tokenizer.decode([token]) for token in allowed(guide)} <= {str(number) for number in range(100)}
    say(guide, tokenizer, "42")
    assert guide.is_complete
    assert allowed(guide) == {EOS}


def test_the_end_may_come_where_the_answer_could_end(compiled: Compile, tokenizer: TextTokenizer) -> None:
    guide = compiled("regex", "ab*")
    assert EOS not in allowed(guide)
    say(guide, tokenizer, "a")
    assert EOS in allowed(guide)
    assert not guide.is_complete
    guide.advance(EOS)
    assert guide.is_complete


def test_ids_beyond_the_vocabulary_and_special_tokens_never_come(compiled: Compile, tokenizer: TextTokenizer) -> None:
    tokens = allowed(compiled("regex", "(?s:.*)"))
    assert max(tokens) < tokenizer.vocab_size
    assert tokens & tokenizer.special_ids == {EOS}


def test_a_token_that_does_not_fit_is_an_error(compiled: Compile, tokenizer: TextTokenizer) -> None:
    guide = compiled("choice", '["yes"]')
    with pytest.raises(GenerationFailed):
        say(guide, tokenizer, "no")
    assert guide.failure is not None


def test_an_expression_that_outgrows_the_lexer_is_the_callers_fault(
    compiled: Compile, tokenizer: TextTokenizer
) -> None:
    guide = compiled("regex", "((a{1,100}){1,100}){1,100}")
    for _ in range(1000):
        say(guide, tokenizer, "a")
        allowed(guide)
        if guide.failure is not None:
            break
    assert isinstance(guide.failure, GuidanceInvalid)
    assert guide.failure.field == "asked"


def test_what_must_follow_is_told(compiled: Compile, tokenizer: TextTokenizer) -> None:
    guide = compiled("json_schema", json.dumps(PERSON))
    forced = guide.forced()
    assert tokenizer.decode(forced).startswith('{"name":')
    assert guide.fitting(forced) == len(forced)
    free = compiled("json_object")
    say(free, tokenizer, '{"a')
    assert free.forced() == []


def test_copies_go_their_own_ways(compiled: Compile, tokenizer: TextTokenizer) -> None:
    guide = compiled("regex", "a(b|c)")
    say(guide, tokenizer, "a")
    other = guide.copy()
    say(other, tokenizer, "b")
    assert other.is_complete
    assert not guide.is_complete
    say(guide, tokenizer, "c")
    assert guide.is_complete


def test_tokens_are_taken_back(compiled: Compile, tokenizer: TextTokenizer) -> None:
    guide = compiled("json_schema", json.dumps(PERSON))
    start = allowed(guide)
    ids = say(guide, tokenizer, '{"name": "Bob", "age": 7')
    before = allowed(guide)
    more = say(guide, tokenizer, "}")
    assert guide.is_complete
    guide.rollback(len(more))
    assert allowed(guide) == before
    guide.rollback(len(ids))
    assert allowed(guide) == start
    guide.rollback(0)


@pytest.mark.parametrize("on_all_cores", [False, True])
def test_rows_without_a_guide_may_say_anything(compiled: Compile, on_all_cores: bool) -> None:
    masks = new_masks(3, PADDED_VOCABULARY)
    masks.fill(0)
    guide = compiled("choice", '["yes", "no"]')
    fill_masks([None, guide, None], masks, on_all_cores)
    assert (masks[0] == 0xFFFFFFFF).all()
    assert (masks[2] == 0xFFFFFFFF).all()
    assert 0 < np.bitwise_count(masks[1]).sum() < 12


def test_masks_after_the_tokens_of_a_draft_are_those_after_saying_them(
    compiled: Compile, tokenizer: TextTokenizer
) -> None:
    guide = compiled("json_schema", json.dumps(PERSON))
    draft = tokenizer.encode('{"name": "', add_special_tokens=False)
    width = len(draft) + 2
    masks = new_masks(2 * width, PADDED_VOCABULARY).reshape(2, width, -1)
    fill_draft_masks([None, guide], [[1, 2], draft], masks)
    expected = []
    for token in draft:
        expected.append(new_masks(1, PADDED_VOCABULARY))
        fill_masks([guide], expected[-1])
        guide.advance(token)
    expected.append(new_masks(1, PADDED_VOCABULARY))
    fill_masks([guide], expected[-1])
    assert (masks[1, : width - 1] == np.concatenate(expected)).all()
    assert (masks[0] == 0xFFFFFFFF).all()
    assert (masks[1, width - 1] == 0xFFFFFFFF).all()


def test_a_guide_without_a_draft_is_masked_beside_one_with_a_draft(compiled: Compile, tokenizer: TextTokenizer) -> None:
    guides = [compiled("json_schema", json.dumps(PERSON)), compiled("choice", '["yes", "no"]')]
    draft = tokenizer.encode('{"name": "', add_special_tokens=False)
    width = len(draft) + 1
    masks, expected = (new_masks(2 * width, PADDED_VOCABULARY).reshape(2, width, -1) for _ in range(2))
    fill_draft_masks([guides[0], None], [draft, []], expected)
    fill_masks([guides[1]], expected[1, :1])
    fill_draft_masks(guides, [draft, []], masks)
    assert (masks == expected).all()
    assert 0 < np.bitwise_count(masks[1, 0]).sum() < 12
