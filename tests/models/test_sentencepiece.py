"""A SentencePiece vocabulary gives the ids that SentencePiece itself gives."""

from __future__ import annotations

import io
from pathlib import Path

import attrs
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlx_serving.actors.models.gguf_fields import Fields
from mlx_serving.actors.models.gguf_tokenizer import build, read_vocabulary

SENTENCES = Path(__file__).read_text(encoding="utf-8").splitlines()
WORDS = [word for line in SENTENCES for word in line.split() if "<s>" not in word]


@attrs.frozen
class Pair:
    theirs: sentencepiece.SentencePieceProcessor
    ours: Tokenizer


@pytest.fixture(scope="module", params=[True, False], ids=["llama", "gemma"])
def pair(request: pytest.FixtureRequest) -> Pair:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=request.param,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    fields = Fields(fields_of(theirs, request.param), Path("trained.gguf"))
    return Pair(theirs, build(fields, read_vocabulary(fields)))


def fields_of(model: sentencepiece.SentencePieceProcessor, prefix: bool) -> dict[str, object]:
    ids = range(model.vocab_size())
    kinds = [2 if model.is_unknown(id) else 3 if model.is_control(id) else 6 if model.is_byte(id) else 1 for id in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": [model.get_score(id) for id in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


@given(words=st.lists(st.sampled_from([*WORDS, "", "é日", "😀", "\n", "42"]), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_ids_equal_those_of_sentencepiece(pair: Pair, words: list[str]) -> None:
    text = " ".join(words)
    if not text:
        return
    ids = pair.ours.encode(text, add_special_tokens=False).ids
    assert ids == pair.theirs.encode(text)
    assert pair.ours.decode(ids) == text


def test_a_text_begins_with_the_bos_token(pair: Pair) -> None:
    assert pair.ours.encode("x").tokens[0] == "<s>"
