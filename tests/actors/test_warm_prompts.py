"""The setting that names warm prompts, and what of a conversation is warmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_serving.actors.admission.conversation import chat_text
from mlx_serving.actors.admission.rendering import warm_ids
from mlx_serving.actors.admission.segments import message_ends
from mlx_serving.actors.admission.warm_prompts import WarmPrompt, read_warm_prompts
from mlx_serving.actors.errors import ConfigurationInvalid
from mlx_serving.actors.messages.values import ChatMessage
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer


def test_texts_and_files_are_read(home: Path) -> None:
    (home / "prompts").mkdir()
    (home / "prompts" / "coder.txt").write_text("You write code.\n", encoding="utf-8")
    other = home.parent / "other.txt"
    other.write_text("Ünï", encoding="utf-8")
    entries = ("support=Be kind = be brief.", "coder@qwen2.5:0.5b=@prompts/coder.txt", f"x=@{other}")
    assert read_warm_prompts(entries, home) == (
        WarmPrompt("support", None, "Be kind = be brief."),
        WarmPrompt("coder", "qwen2.5:0.5b", "You write code.\n"),
        WarmPrompt("x", None, "Ünï"),
    )


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (("support",), "NAME=TEXT"),
        (("support=",), "NAME=TEXT"),
        (("a b=text",), "NAME=TEXT"),
        (("a@=text",), "NAME=TEXT"),
        (("a=1", "a=2"), "twice"),
        (("a=@missing.txt",), "cannot be read"),
        (("a=@.",), "cannot be read"),
        (("a=@empty.txt",), "is empty"),
        (("a=@latin.txt",), "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(home: Path, entries: tuple[str, ...], reason: str) -> None:
    (home / "empty.txt").touch()
    (home / "latin.txt").write_bytes(b"\xfc")
    with pytest.raises(ConfigurationInvalid, match=reason) as caught:
        read_warm_prompts(entries, home)
    assert caught.value.field == "models.warm_prompts"


@pytest.mark.parametrize("user", ["Hello", "0", "a", " spaced", "\n", "🌍", "<|im_end|>"])
def test_what_is_warmed_is_what_conversations_with_the_prompt_begin_with(smollm2: ModelRecord, user: str) -> None:
    tokenizer = TextTokenizer.load(smollm2.path)
    system = "You answer for the support of a shop. Be kind."
    warmed = warm_ids(tokenizer, system)
    text = chat_text(tokenizer, (ChatMessage("system", system), ChatMessage("user", user)))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(warmed) > 10
    assert ids[: len(warmed) - 1] == warmed[:-1]


def test_segments_of_a_real_template_are_starts_of_longer_conversations(smollm2: ModelRecord) -> None:
    tokenizer = TextTokenizer.load(smollm2.path)
    turns = tuple(
        ChatMessage(role, f"{role} says {number}")
        for number, role in enumerate(["system", "user", "assistant", "user", "assistant", "user"])
    )
    ids, segments = _with_segments(tokenizer, turns[:4])
    later, _ = _with_segments(tokenizer, turns)
    assert len(segments) == 4
    for offset in segments:
        assert later[:offset] == ids[:offset]
    assert later == tokenizer.encode(chat_text(tokenizer, turns), add_special_tokens=False)


def _with_segments(tokenizer: TextTokenizer, turns: tuple[ChatMessage, ...]) -> tuple[list[int], tuple[int, ...]]:
    text = chat_text(tokenizer, turns)
    ends = message_ends(text, turns, lambda shown, asks: chat_text(tokenizer, shown, asks))
    return tokenizer.encode_with_offsets(text, ends)
