"""Incremental text equals the text of all ids at once, and never splits a character."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.byte_level import FOLDERS
from support.tiny_models import EOS, byte_tokenizer
from tokenizers import decoders, models

from mlx_serving.actors.generation.text import REPLACEMENT, IncrementalDecoder, text_decoder
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.native import ByteDecoder

BYTES = byte_tokenizer()


def sentencepiece() -> tokenizers.Tokenizer:
    """A tokenizer of the other family: spaces are part of words, unknown characters fall back to bytes."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁hello",
        "▁world",
        "s",
    ]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


PIECES = sentencepiece()


def pieces_of(tokenizer: tokenizers.Tokenizer, ids: list[int], special: frozenset[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, special)
    return [*(decoder.add(each) for each in ids), decoder.flush()]


@given(st.text())
def test_any_text_comes_out_whole_in_whole_characters(text: str) -> None:
    pieces = pieces_of(BYTES, list(text.encode()), frozenset([EOS]))
    assert "".join(pieces) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@given(st.lists(st.integers(0, 256)))
def test_any_bytes_come_out_as_decoded_at_once(ids: list[int]) -> None:
    expected = BYTES.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(BYTES, ids, frozenset([EOS]))) == expected


@given(st.text(), st.lists(st.sampled_from([1, 2, 259, 260, 261, 262]), max_size=30))
def test_words_with_spaces_and_byte_fallback_come_out_as_decoded_at_once(text: str, words: list[int]) -> None:
    ids = words + [3 + byte for byte in text.encode()] + words
    expected = PIECES.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(PIECES, ids, frozenset([0, 1, 2]))) == expected


def test_text_comes_with_the_token_that_completes_it() -> None:
    pieces = pieces_of(BYTES, list("aé€".encode()), frozenset([EOS]))
    assert pieces == ["a", "", "é", "", "", "€", ""]


def test_special_tokens_show_nothing() -> None:
    assert pieces_of(BYTES, [EOS, 65, EOS, 66], frozenset([EOS])) == ["", "A", "", "B", ""]


def test_endless_broken_bytes_do_not_pile_up() -> None:
    decoder = IncrementalDecoder(BYTES, frozenset([EOS]))
    shown = "".join(decoder.add(0x80) for _ in range(1000)) + decoder.flush()
    assert shown == REPLACEMENT * 1000
    assert len(decoder._window) <= 64


@pytest.fixture(scope="module", params=["smollm2", *FOLDERS])
def real(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer.load(FOLDERS.get(request.param) or request.getfixturevalue("smollm2").path)


@pytest.mark.model
@given(st.lists(st.one_of(st.integers(0, 60_000), st.text(max_size=9)), max_size=40), st.booleans())
@settings(deadline=None)
def test_answers_of_real_vocabularies_come_out_as_decoded_at_once(
    real: TextTokenizer, parts: list[int | str], shows_special: bool
) -> None:
    ids = [each for part in parts for each in ([part] if isinstance(part, int) else real.encode(part, False))]
    decoder = text_decoder(real, frozenset() if shows_special else real.special_ids)
    assert isinstance(decoder, ByteDecoder)
    pieces = [*map(decoder.add, ids), decoder.flush()]
    assert "".join(pieces) == real.decode(ids, skip_special_tokens=not shows_special)
    for token_id in ids:
        assert real.text_of(token_id) == real.decode([token_id], skip_special_tokens=False)


def test_other_vocabularies_are_decoded_in_windows(tmp_path: Path) -> None:
    PIECES.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.load(tmp_path)
    decoder = text_decoder(tokenizer, tokenizer.special_ids)
    assert isinstance(decoder, IncrementalDecoder)
    assert "".join([*map(decoder.add, [1, 260, 261]), decoder.flush()]) == tokenizer.decode([1, 260, 261])
    assert tokenizer.text_of(261) == tokenizer.decode([261])
