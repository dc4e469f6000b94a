"""Tokens of a stream, as the chunks that hosts are told. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_serving.actors.messages.frontend import Delta

Token = dict[str, Any]
"""`token` (its text), `token_id`, and `logprob` where it was asked for."""

MOST_IN_CHUNK = 256
_ENVELOPE = 2400
"""Bytes that a chunk has besides its tokens, at most: the notification around it, its ids."""
_TOKEN = 80
"""Bytes that a token has besides its text, at most."""
_CHARACTER = 6
"""Bytes that one character has in JSON, at most."""
_LEAST_ROOM = 256


def tokens_of(delta: Delta, previous: int) -> list[Token]:
    """One entry a token. Text that several tokens made together stands with the last of them.

    A character is held back until all its bytes are there, and text while it could begin a stop string: then
    the first tokens have none. Text that comes without a token belongs to one told before, `previous`.
    """
    ids = delta.token_ids or ((previous,) if delta.text else ())
    tokens: list[Token] = [{"token": "", "token_id": token_id} for token_id in ids]
    if tokens:
        tokens[-1]["token"] = delta.text
    if len(delta.logprobs) == len(delta.token_ids):
        for token, logprob in zip(tokens, delta.logprobs, strict=False):
            token["logprob"] = logprob.logprob
    return tokens


def chunks(stream_id: str, tokens: list[Token], limit: int) -> Iterator[dict[str, Any]]:
    """`tokens` as parameters of `stream.chunk`, so many in each that they surely fit into `limit` bytes."""
    room = max(_LEAST_ROOM, limit - _ENVELOPE)
    batch: list[Token] = []
    spent = 0
    for token in _split(tokens, (room - _TOKEN) // _CHARACTER):
        cost = _TOKEN + _CHARACTER * len(token["token"])
        if batch and (spent + cost > room or len(batch) == MOST_IN_CHUNK):
            yield _chunk(stream_id, batch)
            batch, spent = [], 0
        batch.append(token)
        spent += cost
    if batch:
        yield _chunk(stream_id, batch)


def _split(tokens: list[Token], longest: int) -> Iterator[Token]:
    """The tokens, those with more than `longest` characters as several with the same id."""
    for token in tokens:
        text = token["token"]
        if len(text) <= longest:
            yield token
        else:
            yield from ({**token, "token": text[at : at + longest]} for at in range(0, len(text), longest))


def _chunk(stream_id: str, batch: list[Token]) -> dict[str, Any]:
    if len(batch) == 1:
        return {"stream_id": stream_id, **batch[0], "is_final": False}
    return {"stream_id": stream_id, "tokens": batch, "batch_size": len(batch), "is_batch": True}
