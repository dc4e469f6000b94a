"""Lines that change at every turn are left out, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.actors.admission.volatile import VolatileLines
from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.actors.messages.values import ChatMessage
from mlx_serving.config.schema import Admission

LINES = VolatileLines(Admission().volatile_lines)
HEADER = "x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch=eb6c6;"
USER = ChatMessage("user", "Hello")


def system(text: str) -> tuple[ChatMessage, ...]:
    return (ChatMessage("system", text), USER)


@pytest.mark.parametrize("between", ["", "\n", "\n\n", "  \r\n"])
def test_two_turns_of_a_coding_agent_begin_alike(between: str) -> None:
    other = "x-anthropic-billing-header: cc_version=2.1.100.0aa; cc_entrypoint=sdk-cli; cch=00000; cc_workload=cron;"
    one = LINES.strip(system(f"{HEADER}{between}You are a coding agent."))
    assert one == LINES.strip(system(f"{other}{between}You are a coding agent."))
    assert one == system("You are a coding agent.")


def test_a_system_message_that_was_nothing_else_goes() -> None:
    assert LINES.strip(system(HEADER)) == (USER,)


@pytest.mark.parametrize(
    "text",
    [
        f"Explain this line: {HEADER}",
        f"You are helpful.\n{HEADER}",
        " " + HEADER,
        "x-anthropic-billing-header:",
        "x-anthropic-billing-header: what is it?",
        "X-Anthropic-Billing-Header: cch=12345;",
        "cch=12345;",
    ],
)
def test_ordinary_system_prompts_stay_as_they_are(text: str) -> None:
    messages = system(text)
    assert LINES.strip(messages) is messages


def test_only_a_system_message_at_the_start_is_looked_at() -> None:
    for messages in ((ChatMessage("user", HEADER),), (USER, ChatMessage("system", HEADER)), ()):
        assert LINES.strip(messages) is messages


@given(st.text())
def test_an_empty_list_switches_it_off(text: str) -> None:
    messages = system(HEADER + text)
    assert VolatileLines(()).strip(messages) is messages


def test_several_patterns_take_off_several_lines() -> None:
    lines = VolatileLines((r"date: [^\n]*", r"turn: \d+"))
    assert lines.strip(system("turn: 7\ndate: today\nturn: 8\nBe brief.")) == system("Be brief.")


def test_a_pattern_that_matches_nothing_ends() -> None:
    messages = system("text")
    assert VolatileLines(("x*",)).strip(messages) is messages


def test_a_pattern_that_is_none_is_refused_by_its_setting() -> None:
    with pytest.raises(ConfigurationInvalid, match="volatile_lines") as caught:
        VolatileLines(("(",))
    assert caught.value.field == "admission.volatile_lines"
