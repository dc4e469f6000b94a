"""Pieces of a cut text have the ids of the whole, and no tokenizer is cut of which that is not known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.byte_level import ADDED, FOLDERS, SPECIAL, WAYS, trained
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from mlx_serving.actors.errors import TokenizerFailed
from mlx_serving.actors.models import seams, tokenizer
from mlx_serving.actors.models.chat_template import ChatTemplate
from mlx_serving.actors.models.seams import Seams, find_seams
from mlx_serving.actors.models.tokenizer import TextTokenizer

AWKWARD = [
    *(
        "a",
        "Word",
        "don't",
        "'s",
        "'LL",
        "12",
        "2024",
        "٣",
        "½",
        "e\u0301",
        "\u0301",
        "Å",
        "\u212b",
        "日本",
        "한",
        "ᄒ",
        "ᅡ",
        "😀",
    ),
    *(" ", "  ", "\n", "\r\n", "\n\n ", "\t", "\u00a0", "\u3000", "\u2028", "\x1c", "\x85", "\u200b"),
    *(".", "...", "!?", "/", "<", "|", "_", "\x00", SPECIAL, ADDED, SPECIAL[:-1], ADDED[1:]),
]
PARTS = st.lists(st.one_of(st.sampled_from(AWKWARD), st.just(" "), st.text(max_size=4)), max_size=40)
SEAM = re.compile("[!-~](?= )")


@pytest.fixture(scope="module", params=["smollm2", *FOLDERS, *WAYS])
def backend(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    if request.param in WAYS:
        return trained(request.param)
    folder = FOLDERS.get(request.param) or request.getfixturevalue("smollm2").path
    return TextTokenizer.load(folder).backend


def whole(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


@given(parts=PARTS)
@settings(max_examples=300, deadline=None)
def test_a_text_may_be_cut_at_every_seam(backend: tokenizers.Tokenizer, parts: list[str]) -> None:
    assert find_seams(backend) == Seams()
    text, ids, start = "".join(parts), [], 0
    expected = whole(backend, text)
    for seam in SEAM.finditer(text):
        assert whole(backend, text[: seam.end()]) + whole(backend, text[seam.end() :]) == expected
        ids += whole(backend, text[start : seam.end()])
        start = seam.end()
    assert ids + whole(backend, text[start:]) == expected


@given(parts=PARTS, ends=st.lists(st.integers(0, 200), max_size=6), special=st.booleans())
@settings(max_examples=200, deadline=None)
def test_cut_texts_have_the_ids_and_offsets_of_whole_ones(
    backend: tokenizers.Tokenizer, parts: list[str], ends: list[int], special: bool
) -> None:
    texts = ["".join(parts), "".join(parts[::-1]), "", "a b"]
    cutting, plain = text_tokenizer(backend, _Everywhere()), text_tokenizer(backend, None)
    assert cutting.encode_batch(texts, special) == [plain.encode(text, special) for text in texts]
    assert [cutting.encode(text, special) for text in texts] == [plain.encode(text, special) for text in texts]
    for text in texts:
        expected = backend.encode(text, add_special_tokens=False)
        offsets = {expected.char_to_token(end) for end in ends}
        assert cutting.encode_with_offsets(text, ends) == (expected.ids, tuple(sorted(filter(None, offsets))))


@attrs.frozen
class _Everywhere(Seams):
    """Cuts at every seam."""

    def cut(self, text: str, most: int, shortest: int = 1) -> list[str]:
        return super().cut(text, len(text), 1)


def text_tokenizer(backend: tokenizers.Tokenizer, found: Seams | None) -> TextTokenizer:
    nobody: frozenset[int] = frozenset()
    return TextTokenizer(backend, ChatTemplate({}, {}), {}, nobody, nobody, found, parallel=found is not None)


def test_pieces_are_about_as_long_as_each_other_and_none_too_short() -> None:
    text = "Some words, and more of them. " * 2000
    pieces = Seams().cut(text, 8)
    assert "".join(pieces) == text
    assert len(pieces) == 8
    assert max(map(len, pieces)) - min(map(len, pieces)) < 100
    assert len(Seams().cut(text[: 3 * seams.SHORTEST_PIECE], 8)) == 3
    assert Seams().cut(text[: 2 * seams.SHORTEST_PIECE - 1], 8) == [text[: 2 * seams.SHORTEST_PIECE - 1]]
    assert Seams().cut("", 8) == [""]


@pytest.mark.parametrize("text", ["x" * 100_000, "\n" * 100_000, " " * 100_000, "日本 " * 40_000])
def test_a_text_without_seams_stays_whole(text: str) -> None:
    assert Seams().cut(text, 8) == [text]


def test_special_tokens_stand_around_a_cut_text_once() -> None:
    backend = trained("llama 3")
    begin = backend.token_to_id(SPECIAL)
    assert begin is not None
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=False, trim_offsets=True),
            processors.TemplateProcessing(single=f"{SPECIAL} $A {SPECIAL}", special_tokens=[(SPECIAL, begin)]),
        ]
    )
    found = find_seams(backend)
    assert found == Seams((begin,), (begin,))
    text = "Words and words, " * 3000
    for special in (True, False):
        expected = backend.encode(text, add_special_tokens=special).ids
        assert text_tokenizer(backend, found).encode(text, special) == expected


def _normalised(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def _prefixed(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _unknown_expression(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+ \w+|\s+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _spaces_within_words(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


def _bytes_first(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex(r"\p{N}|\s+"), "isolated"),
        ]
    )


def _split_at_a_text(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("a b", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _chance(backend: tokenizers.Tokenizer) -> None:
    backend.model.dropout = 0.1


def _greedy_token(backend: tokenizers.Tokenizer) -> None:
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True, normalized=False)])


def _token_with_a_seam(backend: tokenizers.Tokenizer) -> None:
    backend.add_tokens([AddedToken("two words", normalized=False)])


def _whole_word(backend: tokenizers.Tokenizer) -> None:
    backend.add_tokens([AddedToken("word", single_word=True, normalized=False)])


def _normalised_token(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken("\u212a b", normalized=True)])


def _other_model(backend: tokenizers.Tokenizer) -> None:
    backend.model = models.WordLevel({"a": 0}, unk_token="a")


def _no_pre_tokenizer(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = None


def _offsets_of_the_first_token(backend: tokenizers.Tokenizer) -> None:
    backend.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=True)


@pytest.mark.parametrize(
    "change",
    [
        *(_normalised, _prefixed, _unknown_expression, _spaces_within_words, _bytes_first, _split_at_a_text, _chance),
        *(_greedy_token, _token_with_a_seam, _whole_word, _normalised_token, _other_model, _no_pre_tokenizer),
        _offsets_of_the_first_token,
    ],
)
def test_what_may_depend_on_neighbours_is_not_cut(change: Callable[[tokenizers.Tokenizer], None]) -> None:
    backend = tokenizers.Tokenizer.from_str(GPT2)
    assert find_seams(backend) is not None
    change(backend)
    assert find_seams(backend) is None


GPT2 = trained("gpt-2", 300).to_str()


def test_the_switch_tokenises_everything_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_pieces", lambda: 8)
    on, off = TextTokenizer.load(folder), TextTokenizer.load(folder, parallel=False)
    text = "It was the best of times, it was the worst of times. " * 1000
    assert (on.seams, off.seams) == (Seams(), None)
    assert len(Seams().cut(text, 8)) == 8
    assert on.encode(text) == off.encode(text)
    assert on.encode_batch([text, "a"]) == off.encode_batch([text, "a"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(GPT2)
    return tmp_path


def test_a_lone_surrogate_is_the_callers_error_in_a_cut_text_too(folder: Path) -> None:
    with pytest.raises(TokenizerFailed):
        TextTokenizer.load(folder).encode("words and words " * 4000 + "\ud800")
