"""The tokenizer gives the ids and prompts that transformers gives for the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gguf_files import write_tiny

from mlx_serving.actors.errors import ModelLoadFailed, TokenizerFailed
from mlx_serving.actors.models.gguf_import import convert
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer

CHAT = [
    {"role": "system", "content": "Be brief. <b>&amp;"},
    {"role": "user", "content": "Où est l'été? 日本 😀\n\n  x"},
    {"role": "assistant", "content": "Là."},
    {"role": "user", "content": "12345"},
]
TEXTS = [
    "Hello world",
    "  two  leading and trailing  ",
    "12345 3.14 ٣",
    "don't I'LL we've",
    "naïve café 日本語 😀 e\u0301",
    "\n\n\t tabs\r\n",
    "<|im_start|>user\nhi<|im_end|>",
    "",
    "a\u0000b",
]


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: ModelRecord) -> TextTokenizer:
    return TextTokenizer.load(smollm2.path)


@pytest.fixture(scope="session")
def theirs(smollm2: ModelRecord) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2.path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("tiny"), "qwen2")


@pytest.fixture(scope="module")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.load(made(tmp_path_factory.mktemp("gemma"), "gemma2"))


def made(folder: Path, family: str) -> Path:
    model = write_tiny(folder / "tiny.gguf", family)
    (folder / "model").mkdir()
    convert(model.path, folder / "model")
    return folder / "model"


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_transformers(smollm2_tokenizer: TextTokenizer, theirs: Any, text: str) -> None:
    for special in (True, False):
        assert smollm2_tokenizer.encode(text, special) == theirs.encode(text, add_special_tokens=special)
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text), skip_special_tokens=False) == text


@pytest.mark.model
@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_ids_of_any_text_equal_those_of_transformers(smollm2_tokenizer: TextTokenizer, theirs: Any, text: str) -> None:
    ids = smollm2_tokenizer.encode(text)
    assert ids == theirs.encode(text)
    assert smollm2_tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.model
def test_smollm2_splits_digits_and_knows_its_special_tokens(smollm2_tokenizer: TextTokenizer) -> None:
    ids = smollm2_tokenizer.encode("in 2024<|im_end|>")
    assert smollm2_tokenizer.token_strings(ids) == ["in", "Ġ", "2", "0", "2", "4", "<|im_end|>"]
    assert smollm2_tokenizer.decode(ids) == "in 2024"
    assert smollm2_tokenizer.eos_token_ids == {0, 2}
    assert smollm2_tokenizer.special_ids == set(range(17))
    assert (smollm2_tokenizer.bos_token, smollm2_tokenizer.vocab_size) == ("<|im_start|>", 49152)


@pytest.mark.model
def test_the_chat_prompt_equals_that_of_transformers(smollm2_tokenizer: TextTokenizer, theirs: Any) -> None:
    for generation in (True, False):
        ours = smollm2_tokenizer.apply_chat_template(CHAT, add_generation_prompt=generation)
        assert ours == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=generation)
    ids = theirs.apply_chat_template(CHAT, return_dict=False)
    prompt = smollm2_tokenizer.apply_chat_template(CHAT, add_generation_prompt=False)
    assert smollm2_tokenizer.encode(prompt, add_special_tokens=False) == ids


def test_sentencepiece_ids_follow_the_scores(tiny_gemma: TextTokenizer) -> None:
    ids = tiny_gemma.encode("hello w é<end_of_turn>")
    assert tiny_gemma.token_strings(ids) == [
        "<bos>", "hello", "▁w", "▁", "<0xC3>", "<0xA9>", "<end_of_turn>"
    ]  # fmt: skip
    assert tiny_gemma.decode(ids) == "hello w é"
    assert tiny_gemma.eos_token_ids == {1, 4}


@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_byte_fallback_survives_any_text_without_special_tokens(tiny_gemma: TextTokenizer, text: str) -> None:
    text = text.replace("▁", " ")
    ids = tiny_gemma.encode(text, add_special_tokens=False)
    if not tiny_gemma.special_ids & set(ids):
        assert tiny_gemma.decode(ids) == text


def test_a_batch_has_the_ids_of_its_texts(tiny: Path) -> None:
    tokenizer = TextTokenizer.load(tiny)
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_lone_surrogates_and_wild_ids_are_errors_of_the_caller(tiny: Path) -> None:
    tokenizer = TextTokenizer.load(tiny)
    with pytest.raises(TokenizerFailed):
        tokenizer.encode("\ud800")
    with pytest.raises(TokenizerFailed):
        tokenizer.decode([-1])
    with pytest.raises(TokenizerFailed):
        tokenizer.decode([2**40])
    assert tokenizer.token_strings([10**6]) == [""]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"}}'),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ("generation_config.json", "nonsense"),
    ],
)
def test_a_broken_file_is_named(tiny: Path, tmp_path: Path, file: str, content: str | None) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ModelLoadFailed, match=file):
        TextTokenizer.load(folder)


def test_the_template_file_counts_more_than_the_field(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text("from the file")
    assert TextTokenizer.load(folder).apply_chat_template(CHAT) == "from the file"


def test_eos_ids_come_from_the_nested_text_config_if_nowhere_else(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 7}}))
    assert TextTokenizer.load(folder).eos_token_ids == {2, 7}
