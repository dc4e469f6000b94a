"""One body for both twins; the oracle tries every position and every pattern."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st


def first_match(text: str, patterns: Sequence[str]) -> tuple[str, str | None]:
    for start in range(len(text)):
        here = [pattern for pattern in patterns if text.startswith(pattern, start)]
        if here:
            return text[:start], max(here, key=len)
    return text, None


def run(twin: ModuleType, patterns: Sequence[str], pieces: Sequence[str]) -> tuple[str, str | None]:
    matcher = twin.StopMatcher(patterns)
    shown = "".join(matcher.feed(piece)[0] for piece in pieces) + matcher.flush()
    return shown, matcher.matched


letters = st.text(alphabet="ab\n\u00e9\U0001f600", max_size=12)


@given(st.lists(letters.filter(bool), max_size=5), st.lists(letters, max_size=8))
def test_any_text_in_any_pieces_gives_what_the_oracle_gives(
    twin: ModuleType, patterns: list[str], pieces: list[str]
) -> None:
    assert run(twin, patterns, pieces) == first_match("".join(pieces), patterns)


@given(st.lists(letters.filter(bool), max_size=5), st.lists(letters, max_size=8))
def test_no_more_is_held_back_than_a_pattern_could_still_claim(
    twin: ModuleType, patterns: list[str], pieces: list[str]
) -> None:
    matcher = twin.StopMatcher(patterns)
    shown = fed = ""
    for piece in pieces:
        emit, matched = matcher.feed(piece)
        shown, fed = shown + emit, fed + piece
        held = fed[len(shown) :]
        if matched is None and held:
            assert any(held.startswith(pattern) or pattern.startswith(held) for pattern in patterns)


def test_without_patterns_all_text_passes(twin: ModuleType) -> None:
    matcher = twin.StopMatcher([])
    assert matcher.feed("any text") == ("any text", None)
    assert matcher.flush() == ""
    assert matcher.matched is None


def test_a_stop_string_over_two_pieces_is_found_and_not_shown(twin: ModuleType) -> None:
    matcher = twin.StopMatcher(["STOP"])
    assert matcher.feed("one ST") == ("one ", None)
    assert matcher.feed("OP two") == ("", "STOP")


def test_a_beginning_that_comes_to_nothing_is_shown(twin: ModuleType) -> None:
    matcher = twin.StopMatcher(["STOP"])
    assert matcher.feed("one ST") == ("one ", None)
    assert matcher.feed("ART") == ("START", None)


def test_the_match_that_starts_first_wins_over_the_one_that_ends_first(twin: ModuleType) -> None:
    matcher = twin.StopMatcher(["abcd", "b"])
    assert matcher.feed("xab") == ("x", None)
    assert matcher.feed("cd") == ("", "abcd")


def test_a_match_that_waited_for_an_earlier_one_in_vain_is_taken(twin: ModuleType) -> None:
    matcher = twin.StopMatcher(["abcd", "b"])
    assert matcher.feed("xab") == ("x", None)
    assert matcher.feed("z") == ("a", "b")


def test_of_two_matches_that_start_together_the_longer_wins(twin: ModuleType) -> None:
    assert run(twin, ["\n", "\n\n"], ["line", "\n", "\n", "more"]) == ("line", "\n\n")


def test_a_match_that_waited_is_settled_by_the_end_of_the_text(twin: ModuleType) -> None:
    matcher = twin.StopMatcher(["\n", "\n\n"])
    assert matcher.feed("line\n") == ("line", None)
    assert matcher.flush() == ""
    assert matcher.matched == "\n"


def test_text_after_the_match_is_never_shown(twin: ModuleType) -> None:
    matcher = twin.StopMatcher(["."])
    assert matcher.feed("end. more") == ("end", ".")
    assert matcher.feed("again") == ("", ".")
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused_by_its_index(twin: ModuleType) -> None:
    with pytest.raises(ValueError, match="stop string 1 is empty"):
        twin.StopMatcher(["a", ""])


@pytest.mark.parametrize("wrong", [None, b"bytes", 3])
def test_a_piece_that_is_not_text_is_a_type_error(twin: ModuleType, wrong: object) -> None:
    with pytest.raises(TypeError):
        twin.StopMatcher(["a"]).feed(wrong)
