from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.frontends.stdio.chunks import Token, chunks

texts = st.text(max_size=30) | st.text(min_size=1000, max_size=3000) | st.sampled_from(["\0" * 5000, "🌍" * 5000])
ids = st.integers(0, 2**32 - 1)
calls = st.builds(
    lambda text: [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": text}}], texts
)
tokens = st.lists(
    st.fixed_dictionaries({"token": texts, "token_id": ids})
    | st.fixed_dictionaries({"token": st.just(""), "token_id": ids, "reasoning_content": texts})
    | st.fixed_dictionaries({"token": st.just(""), "token_id": ids, "tool_calls": calls}),
    min_size=1,
    max_size=300,
)
printable = st.text(min_size=1, max_size=128).filter(str.isprintable)


def said(told: list[Token]) -> tuple[str, str, str]:
    """All text, all reasoning, all arguments."""
    return (
        "".join(token["token"] for token in told),
        "".join(token.get("reasoning_content", "") for token in told),
        "".join(call["function"]["arguments"] for token in told for call in token.get("tool_calls", ())),
    )


@given(tokens, printable, st.integers(4096, 65_000))
def test_a_chunk_never_exceeds_a_line_and_nothing_is_lost(given_tokens: list[Token], name: str, limit: int) -> None:
    told: list[Token] = []
    for chunk in chunks(name, given_tokens, limit):
        line = orjson.dumps({"jsonrpc": "2.0", "method": "stream.chunk", "params": chunk}) + b"\n"
        assert len(line) <= limit
        told += chunk["tokens"] if "is_batch" in chunk else [chunk]
    assert said(told) == said(given_tokens)
    assert dict.fromkeys(token["token_id"] for token in told) == dict.fromkeys(
        token["token_id"] for token in given_tokens
    )
