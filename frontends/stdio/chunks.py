"""Tokens of a stream, as the chunks that hosts are told. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_serving.actors.messages.frontend import Delta
from mlx_serving.frontends import tool_calls

Token = dict[str, Any]
"""`token` (its text), `token_id`, `logprob` where it was asked for, `reasoning_content` and `tool_calls` if any."""

MOST_IN_CHUNK = 256
_ENVELOPE = 2400
"""Bytes that a chunk has besides its tokens, at most: the notification around it, its ids."""
_TOKEN = 80
"""Bytes that a token has besides its text, at most."""
_CALL = 200
"""Bytes that a tool call has besides its name and arguments, at most."""
_LONGEST_HEAD = 100
"""Characters that make up for a call's name and its other members, roughly."""
_CHARACTER = 6
"""Bytes that one character has in JSON, at most."""
_LEAST_ROOM = 256


def tokens_of(delta: Delta, previous: int) -> list[Token]:
    """One entry a token. Text that several tokens made together stands with the last of them.

    A character is held back until all its bytes are there, and text while it could begin a stop string: then
    the first tokens have none. Text that comes without a token belongs to one told before, `previous`. Reasoning and
    calls stand in the place of text; several of these are told in further entries of the same token.
    """
    said = _said(delta)
    ids = delta.token_ids or ((previous,) if said else ())
    tokens: list[Token] = [{"token": "", "token_id": token_id} for token_id in ids]
    if tokens and said:
        tokens[-1] |= said[0]
        tokens += [{"token": "", "token_id": ids[-1], **each} for each in said[1:]]
    if len(delta.logprobs) == len(delta.token_ids):
        for token, logprob in zip(tokens, delta.logprobs, strict=False):
            token["logprob"] = logprob.logprob
    return tokens


def _said(delta: Delta) -> list[Token]:
    said: list[Token] = [{"reasoning_content": delta.reasoning}] if delta.reasoning else []
    if delta.text:
        said.append({"token": delta.text})
    return said + [{"tool_calls": [call]} for call in tool_calls.told(delta.tool_calls)]


def chunks(stream_id: str, tokens: list[Token], limit: int) -> Iterator[dict[str, Any]]:
    """`tokens` as parameters of `stream.chunk`, so many in each that they surely fit into `limit` bytes."""
    room = max(_LEAST_ROOM, limit - _ENVELOPE)
    batch: list[Token] = []
    spent = 0
    for token in _split(tokens, (room - _TOKEN) // _CHARACTER):
        cost = _cost(token)
        if batch and (spent + cost > room or len(batch) == MOST_IN_CHUNK):
            yield _chunk(stream_id, batch)
            batch, spent = [], 0
        batch.append(token)
        spent += cost
    if batch:
        yield _chunk(stream_id, batch)


def _cost(token: Token) -> int:
    """Bytes of a token in JSON, at most."""
    text = len(token["token"]) + len(token.get("reasoning_content", ""))
    calls = token.get("tool_calls", ())
    text += sum(len(call["function"]["arguments"]) + len(call["function"].get("name", "")) for call in calls)
    return _TOKEN + _CHARACTER * text + _CALL * len(calls)


def _split(tokens: list[Token], longest: int) -> Iterator[Token]:
    """The tokens, those with more than `longest` characters as several with the same id."""
    for token in tokens:
        if _cost(token) <= _TOKEN + _CHARACTER * longest:
            yield token
        elif "tool_calls" in token:
            yield from _split_call(token, longest)
        else:
            key = "reasoning_content" if "reasoning_content" in token else "token"
            text = token[key]
            yield from ({**token, key: text[at : at + longest]} for at in range(0, len(text), longest))


def _split_call(token: Token, longest: int) -> Iterator[Token]:
    """Its name with the first piece of its arguments alone. Names and ids are short, as the runtime makes them."""
    [call] = token["tool_calls"]
    text, size = call["function"]["arguments"], max(1, longest - _LONGEST_HEAD)
    for at in range(0, len(text), size):
        yield {**token, "tool_calls": [{**call, "function": {**call["function"], "arguments": text[at : at + size]}}]}
        call = {"index": call["index"], "function": {}}


def _chunk(stream_id: str, batch: list[Token]) -> dict[str, Any]:
    if len(batch) == 1:
        return {"stream_id": stream_id, **batch[0], "is_final": False}
    return {"stream_id": stream_id, "tokens": batch, "batch_size": len(batch), "is_batch": True}
