"""Drafts from the text so far and from a prediction of it."""

import random

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.generation.speculation.suffix_index import GRAM, LONGEST, Occurrence, SuffixIndex


def after(prompt: list[int], answer: list[int], prediction: list[int] | None = None) -> SuffixIndex:
    index = SuffixIndex(prompt, prediction or [])
    for token in answer:
        index.append(token)
    return index


def proposed(index: SuffixIndex, count: int) -> list[int]:
    found = index.find()
    return [] if found is None else index.following(found, count)


def test_what_followed_the_same_tokens_in_the_prompt_is_proposed() -> None:
    index = after([1, 2, 3, 4, 5, 6, 9, 9], [1, 2, 3])
    assert proposed(index, 3) == [4, 5, 6]
    assert index.find() == Occurrence(4, 3)


def test_fewer_equal_tokens_are_no_occurrence() -> None:
    assert after([1, 2, 3, 4, 5], [7, 2, 3]).find() is None


def test_the_occurrence_that_agrees_furthest_back_is_followed() -> None:
    index = after([8, 1, 2, 3, 4, 0, 7, 1, 2, 3, 5], [8, 1, 2, 3])
    assert proposed(index, 1) == [4]


def test_among_equals_the_latest_is_followed() -> None:
    assert proposed(after([1, 2, 3, 4, 0, 1, 2, 3, 5, 0], [1, 2, 3]), 1) == [5]


def test_the_answer_itself_is_searched_too() -> None:
    assert proposed(after([9], [1, 2, 3, 4, 5, 1, 2, 3]), 2) == [4, 5]


def test_an_occurrence_across_the_end_of_the_prompt_is_found() -> None:
    assert proposed(after([7, 1, 2], [3, 4, 5, 1, 2, 3]), 2) == [4, 5]


def test_a_text_that_repeats_itself_is_continued_past_its_end() -> None:
    assert proposed(after([0], [1, 2, 1, 2, 1, 2]), 6) == [1, 2, 1, 2, 1, 2]


def test_a_prediction_is_proposed_from_its_start() -> None:
    index = after([9, 9, 9], [], [4, 5, 6])
    assert proposed(index, 8) == [4, 5, 6]
    found = index.find()
    assert found is not None
    assert index.is_predicted(found)
    index.append(4)
    assert proposed(index, 8) == [5, 6]


def test_nothing_is_proposed_past_the_end_of_the_prediction() -> None:
    assert after([9, 9, 9], [4, 5, 6], [4, 5, 6]).find() is None


def test_after_an_edit_one_equal_token_close_by_is_enough() -> None:
    prediction = [10, 11, 12, 13, 14, 15, 16, 17]
    replaced = after([1], [10, 11, 99, 13], prediction)
    assert proposed(replaced, 2) == [14, 15]
    inserted = after([1], [10, 11, 98, 99, 12], prediction)
    assert proposed(inserted, 2) == [13, 14]
    removed = after([1], [10, 11, 15], prediction)
    assert proposed(removed, 2) == [16, 17]


def test_an_empty_text_has_no_occurrence() -> None:
    assert SuffixIndex([]).find() is None
    assert SuffixIndex([1]).find() is None


def test_a_long_agreement_is_not_measured_to_its_end() -> None:
    line = list(range(100))
    found = after([*line, 500], line[:80]).find()
    assert found == Occurrence(81, LONGEST)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_an_occurrence_is_always_a_real_one(prompt: list[int], answer: list[int]) -> None:
    index = SuffixIndex(prompt)
    text = list(prompt)
    for token in answer:
        found = index.find()
        if found is not None:
            position = found.position - 1  # the text of an index begins with a mark where the prediction ends
            assert 0 < position < len(text)
            assert text[position - found.agreement : position] == text[len(text) - found.agreement :]
            assert index.following(found, 1) == [text[position]]
        index.append(token)
        text.append(token)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), min_size=GRAM, max_size=40))
def test_whatever_occurred_before_is_found_unless_a_difference_close_by_came_first(
    prompt: list[int], answer: list[int]
) -> None:
    index = after(prompt, answer)
    text = prompt + answer
    grams = [tuple(text[start : start + GRAM]) for start in range(len(text) - GRAM)]
    if tuple(text[-GRAM:]) in grams:
        assert index.find() is not None


def test_a_token_costs_the_same_in_a_long_text() -> None:
    chance = random.Random(5)
    prompt = [chance.randrange(50_000) for _ in range(100_000)]
    index = SuffixIndex(prompt)
    for token in [*prompt[500:600], 3, *prompt[700:800]]:
        index.append(token)
        index.find()
    assert proposed(index, 4) == prompt[800:804]
