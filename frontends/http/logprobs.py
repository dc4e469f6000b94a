"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_serving.actors.messages.values import TokenLogprob

_LEAST = -9999.0
"""Stands for minus infinity, which JSON has not."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`{"content": [{token, logprob, bytes, top_logprobs}]}`."""
    return {"content": [_chat_token(token) for token in tokens], "refusal": None}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    entry = _entry(token.token, token.logprob)
    entry["top_logprobs"] = [_entry(text, logprob) for _, text, logprob in token.top]
    return entry


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own; its bytes cannot be told from U+FFFD.
    raw = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": max(logprob, _LEAST), "bytes": raw}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """`{tokens, token_logprobs, top_logprobs, text_offset}`; the first token begins at character `offset`."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [max(token.logprob, _LEAST) for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": offsets,
    }


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and always the sampled one."""
    likeliest = {text: max(logprob, _LEAST) for _, text, logprob in token.top}
    return {**likeliest, token.token: max(token.logprob, _LEAST)}
