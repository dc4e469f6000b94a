"""One body for both twins; the oracle is `tokenizers`, and with it Rust's `String::from_utf8_lossy`."""

from __future__ import annotations

import itertools
from types import ModuleType

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

REPLACEMENT = "\ufffd"


def written(text: str) -> str:
    """As a byte-level vocabulary writes it, a letter a byte."""
    return "".join(word for word, _ in BYTE_LEVEL.pre_tokenize_str(text))


def vocabulary() -> tokenizers.Tokenizer:
    """All bytes, whole words, the parts of characters, words that are not in the alphabet, added tokens."""
    whole = [written(text) for text in ("the", " the", "é", "日本", "\n\n", "a\x00b", "é€😀")]
    parts = [
        written(text)[begin:end] for text in ("é", "€b", "a😀") for begin in range(3) for end in range(begin + 1, 5)
    ]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys([*letters, *whole, *parts, "日", "two words"]))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
TOKENIZER = vocabulary()
SIZE = TOKENIZER.get_vocab_size()


def id_of(token: str) -> int:
    token_id = TOKENIZER.token_to_id(token)
    assert token_id is not None
    return token_id


END = id_of("<|end|>")


def pieces_of(twin: ModuleType, ids: list[int], hidden: frozenset[int] = frozenset([END])) -> list[str]:
    decoder = twin.ByteDecoder(twin.TokenTexts(TOKENIZER.id_to_token), hidden)
    return [*map(decoder.add, ids), decoder.flush()]


@given(st.lists(st.integers(0, SIZE + 3)))
def test_any_ids_come_out_as_decoded_at_once(twin: ModuleType, ids: list[int]) -> None:
    assert "".join(pieces_of(twin, ids)) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_bytes_at_every_border_of_utf_8_come_out_as_decoded_at_once(twin: ModuleType) -> None:
    leads = [0x41, 0x80, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEE, 0xF0, 0xF1, 0xF4, 0xF5]
    others = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC2]
    texts = twin.TokenTexts(TOKENIZER.id_to_token)
    contents = {token_id: texts.content(token_id) for token_id in range(256)}
    letters = {text.encode() if isinstance(text, str) else text: token_id for token_id, text in contents.items()}
    for values in itertools.product(leads, others, others, others[2:6]):
        ids = [letters[bytes([value])] for value in values]
        decoder = twin.ByteDecoder(texts, frozenset())
        assert "".join([*map(decoder.add, ids), decoder.flush()]) == TOKENIZER.decode(ids)


@given(st.text())
def test_each_character_comes_with_its_last_byte(twin: ModuleType, text: str) -> None:
    spelled = [written(char) for char in text]
    pieces = pieces_of(twin, [id_of(letter) for letters in spelled for letter in letters])
    expected = [
        piece for char, letters in zip(text, spelled, strict=True) for piece in [""] * (len(letters) - 1) + [char]
    ]
    assert pieces == [*expected, ""]


def test_special_tokens_show_nothing_even_within_a_character(twin: ModuleType) -> None:
    first, second = (id_of(letter) for letter in written("é"))
    assert pieces_of(twin, [first, END, second]) == ["", "", "é", ""]
    assert pieces_of(twin, [first, END, second], frozenset()) == ["", "\ufffd<|end|>", REPLACEMENT, ""]


def test_what_is_left_of_a_character_is_told_at_the_end(twin: ModuleType) -> None:
    first, *_ = (id_of(letter) for letter in written("😀"))
    assert pieces_of(twin, [first]) == ["", REPLACEMENT]


def test_after_a_flush_another_text_may_begin(twin: ModuleType) -> None:
    decoder = twin.ByteDecoder(twin.TokenTexts(TOKENIZER.id_to_token), frozenset())
    first, second = (id_of(letter) for letter in written("é"))
    assert (decoder.add(first), decoder.flush(), decoder.flush()) == ("", REPLACEMENT, "")
    assert decoder.add(second) == REPLACEMENT


def test_a_token_is_read_once_however_many_answers_there_are(twin: ModuleType) -> None:
    asked = []

    def token_of(token_id: int) -> str | None:
        asked.append(token_id)
        return TOKENIZER.id_to_token(token_id)

    texts = twin.TokenTexts(token_of)
    for _ in range(3):
        decoder = twin.ByteDecoder(texts, frozenset())
        for token_id in (5, 6, SIZE + 1):
            decoder.add(token_id)
    assert asked == [5, 6, SIZE + 1]
