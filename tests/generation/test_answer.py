"""When an answer ends, and what it shows of the token that ended it."""

from __future__ import annotations

from support.tiny_models import EOS, byte_tokenizer

from mlx_serving.actors.generation.answer import Answer, Piece
from mlx_serving.actors.generation.text import IncrementalDecoder
from mlx_serving.actors.messages.values import AnswerFormat, Stopping, Tool, ToolCallPart

TOKENIZER = byte_tokenizer()


def pieces(
    text: str,
    stopping: Stopping,
    limit: int = 1000,
    ending: tuple[int, ...] = (EOS,),
    form: AnswerFormat | None = None,
) -> list[Piece]:
    """The pieces up to the end of an answer of these bytes."""
    answer = Answer(stopping, limit, frozenset([EOS]), IncrementalDecoder(TOKENIZER, frozenset([EOS])), form)
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


BOTH = AnswerFormat(reasoning="think", calls="hermes", tools=(Tool("f", "{}"),))
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "stop"}}\n</tool_call>'


def reasoned(given: list[Piece]) -> str:
    return "".join(piece.reasoning for piece in given)


def called(given: list[Piece]) -> list[ToolCallPart]:
    """The calls with their arguments put together, without their ids."""
    parts = [part for piece in given for part in piece.tool_calls]
    heads = [part for part in parts if part.name is not None]
    return [
        ToolCallPart(head.index, "".join(part.arguments for part in parts if part.index == head.index), name=head.name)
        for head in heads
    ]


def test_reasoning_and_calls_stand_apart_and_calls_are_the_reason() -> None:
    given = pieces(f"<think>\nso\n</think>\n\nWell.\n{CALL}\n{CALL}", Stopping(), form=BOTH)
    assert (reasoned(given), shown(given)) == ("so", "Well.\n")
    assert called(given) == [ToolCallPart(0, '{"x": "stop"}', name="f"), ToolCallPart(1, '{"x": "stop"}', name="f")]
    ids = [part.id for piece in given for part in piece.tool_calls if part.id is not None]
    assert len(set(ids)) == 2
    assert all(each.startswith("call_") for each in ids)
    assert given[-1].reason == "tool_calls"


def test_stop_strings_count_in_content_alone() -> None:
    given = pieces(f"<think>stop</think>a{CALL}b stop c", Stopping(stop=("stop",)), form=BOTH)
    assert (reasoned(given), shown(given), len(called(given))) == ("stop", "ab ", 1)
    assert (given[-1].reason, given[-1].matched) == ("stop", "stop")


def test_a_stop_string_is_not_found_across_a_call() -> None:
    given = pieces(f"st{CALL}op", Stopping(stop=("stop",)), form=BOTH)
    assert (shown(given), given[-1].matched) == ("stop", None)


def test_a_call_cut_by_the_limit_is_a_length() -> None:
    given = pieces(CALL, Stopping(), limit=45, form=BOTH)
    assert called(given) == [ToolCallPart(0, '{"x": ', name="f")]
    assert given[-1].reason == "length"


def test_tokens_of_reasoning_are_counted_with_their_markers() -> None:
    answer = Answer(Stopping(), 100, frozenset([EOS]), IncrementalDecoder(TOKENIZER, frozenset([EOS])), BOTH)
    for byte in b"<think>abc</think>yes":
        answer.add(byte)
    assert answer.reasoning_tokens == len("abc</think>") + 1


def test_ids_are_such_as_the_familys_template_takes_back() -> None:
    form = AnswerFormat(calls="mistral", tools=(Tool("f", "{}"),))
    given = pieces('[TOOL_CALLS][{"name": "f", "arguments": {}}]', Stopping(), form=form)
    [call_id] = [part.id for piece in given for part in piece.tool_calls if part.id is not None]
    assert len(call_id) == 9
    assert call_id.isalnum()
