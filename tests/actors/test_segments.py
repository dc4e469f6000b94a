"""Places in a prompt at which messages end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.admission.segments import common_length, message_ends
from mlx_serving.actors.errors import TokenizerFailed
from mlx_serving.actors.messages.values import ChatMessage

SYSTEM, ASK, SAY, AGAIN = (
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "0 or 1?"),
    ChatMessage("assistant", "1."),
    ChatMessage("user", "Sure?"),
)
TURNS = (SYSTEM, ASK, SAY, AGAIN)


def plain(turns: tuple[ChatMessage, ...], asks: bool) -> str:
    return "".join(f"<{turn.role}>{turn.content}</>" for turn in turns) + ("<assistant>" if asks else "")


def starts(turns: tuple[ChatMessage, ...]) -> list[str]:
    text = plain(turns, True)
    return [text[:end] for end in message_ends(text, turns, plain)]


def test_the_system_prompt_ends_where_the_user_begins_to_speak() -> None:
    assert starts((SYSTEM, ASK)) == ["<system>Be brief.</><user>", plain((SYSTEM, ASK), False)]


def test_each_of_the_last_messages_has_an_end() -> None:
    assert starts(TURNS) == [
        "<system>Be brief.</><user>",
        plain(TURNS[:2], False),
        plain(TURNS[:3], False),
        plain(TURNS, False),
    ]


def test_a_conversation_without_a_system_prompt_has_the_ends_of_its_messages() -> None:
    assert starts((ASK,)) == [plain((ASK,), False)]


def test_a_template_that_rewrites_earlier_turns_gives_only_what_stays() -> None:
    def rewriting(turns: tuple[ChatMessage, ...], asks: bool) -> str:
        shown = [f"<{turn.role}>{turn.content}" + ("!" if turn is turns[-1] else "") for turn in turns]
        return "".join(shown) + "?" * asks

    text = rewriting(TURNS, True)
    assert [text[:end] for end in message_ends(text, TURNS, rewriting)] == ["<system>Be brief.<user>", text[:-1]]


def test_a_template_that_refuses_a_part_of_the_conversation_gives_the_other_places() -> None:
    def strict(turns: tuple[ChatMessage, ...], asks: bool) -> str:
        if turns[-1].role != "user":
            raise TokenizerFailed("the last message must be the user's")
        return plain(turns, asks)

    text = plain(TURNS, True)
    assert len(message_ends(text, TURNS, strict)) == 3


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_the_common_start_of_two_texts_is_as_long_as_can_be(start: str, one: str, other: str) -> None:
    length = common_length(start + one, start + other)
    assert length >= len(start)
    assert (start + one)[:length] == (start + other)[:length]
    assert (start + one)[: length + 1] != (start + other)[: length + 1] or one == other
