"""When an answer ends, and what it shows of the token that ended it."""

from __future__ import annotations

from support.tiny_models import EOS, byte_tokenizer

from mlx_serving.actors.generation.answer import Answer, Piece
from mlx_serving.actors.generation.text import IncrementalDecoder
from mlx_serving.actors.messages.values import Stopping

TOKENIZER = byte_tokenizer()


def pieces(text: str, stopping: Stopping, limit: int = 100, ending: tuple[int, ...] = (EOS,)) -> list[Piece]:
    """The pieces up to the end of an answer of these bytes."""
    answer = Answer(stopping, limit, frozenset([EOS]), IncrementalDecoder(TOKENIZER, frozenset([EOS])))
    given = []
    for token_id in [*text.encode(), *ending]:
        given.append(answer.add(token_id))
        if given[-1].reason is not None:
            break
    return given


def shown(given: list[Piece]) -> str:
    return "".join(piece.text for piece in given)


def test_end_of_sequence_ends_and_shows_nothing() -> None:
    given = pieces("ab", Stopping())
    assert shown(given) == "ab"
    assert given[-1] == Piece("", (), "stop")


def test_end_of_sequence_can_be_ignored() -> None:
    given = pieces("ab", Stopping(ignore_eos=True), limit=4, ending=(EOS, 99))
    assert shown(given) == "abc"
    assert given[-1].reason == "length"


def test_a_stop_token_is_named_and_not_shown() -> None:
    given = pieces("abc", Stopping(stop_token_ids=(98,)))
    assert shown(given) == "a"
    assert given[-1] == Piece("", (), "stop", 98)


def test_a_stop_string_over_token_borders_is_cut() -> None:
    given = pieces("hello world", Stopping(stop=("o w",)))
    assert shown(given) == "hell"
    assert given[-1].matched == "o w"
    assert len(given) == 7


def test_text_held_for_a_stop_string_is_shown_at_the_end() -> None:
    given = pieces("hello", Stopping(stop=("lost",)))
    assert shown(given) == "hello"
    assert given[-1].matched is None


def test_the_limit_shows_everything_held_back() -> None:
    given = pieces("a€", Stopping(), limit=3)
    assert shown(given) == "a\ufffd"
    assert given[-1].reason == "length"


def test_a_stop_string_at_the_limit_is_a_stop() -> None:
    given = pieces("abcd", Stopping(stop=("cd", "cde")), limit=4)
    assert shown(given) == "ab"
    assert (given[-1].reason, given[-1].matched) == ("stop", "cd")
