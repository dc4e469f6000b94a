"""Rebuilds a model's tokenizer files out of the fields of its GGUF file.

Two kinds exist: `gpt2` is byte-level BPE with stored merges, whose way to split text first is named by
`tokenizer.ggml.pre`; `llama` is SentencePiece's BPE, whose merges follow from the scores of the pieces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.gguf_fields import Fields

CONTROL, USER_DEFINED, UNKNOWN = 3, 4, 2
_PREFIX = "tokenizer.ggml."
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_ENDS = frozenset(
    (
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<|end|>",
        "</s>",
    )
)
"""Control tokens that end a turn or a text in the models of the importable families."""


@attrs.frozen
class Vocabulary:
    """The pieces by id, what kind each is, and the ids with a role."""

    pieces: list[str]
    kinds: list[int]
    named: dict[str, int]
    """bos_token, eos_token, unk_token and pad_token, as far as the file names them."""
    ends: list[int]
    """Ids that end a text, the file's own eos first."""

    def piece(self, name: str) -> str | None:
        return self.pieces[self.named[name]] if name in self.named else None


def write_tokenizer(fields: Fields, folder: Path) -> Vocabulary:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json."""
    vocabulary = read_vocabulary(fields)
    tokenizer = build(fields, vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": _adds_bos(fields),
        **{name: vocabulary.pieces[id] for name, id in vocabulary.named.items()},
    }
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields.text("tokenizer.chat_template")
    generation = {f"{name}_id": id for name, id in vocabulary.named.items() if name in ("bos_token", "pad_token")}
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "generation_config.json", {**generation, "eos_token_id": vocabulary.ends})
    return vocabulary


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_vocabulary(fields: Fields) -> Vocabulary:
    pieces = fields.texts(f"{_PREFIX}tokens")
    kinds = fields.integers(f"{_PREFIX}token_type") if f"{_PREFIX}token_type" in fields else [1] * len(pieces)
    if len(kinds) != len(pieces) or len(set(pieces)) != len(pieces):
        raise fields.wrong(f"{_PREFIX}tokens and token_type must be lists of {len(pieces)} different tokens")
    named = {name: _token_id(fields, key, len(pieces)) for name, key in _NAMED.items() if _PREFIX + key in fields}
    ends = [named["eos_token"]] if "eos_token" in named else []
    for key in ("eot_token_id", "eom_token_id"):
        if _PREFIX + key in fields:
            ends.append(_token_id(fields, key, len(pieces)))
    control = [id for id, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    ends += [id for id in control if pieces[id] in _ENDS]
    if not ends:
        raise fields.wrong(f"{_PREFIX}eos_token_id is missing, so no text could end")
    return Vocabulary(pieces, kinds, named, list(dict.fromkeys(ends)))


def _token_id(fields: Fields, key: str, size: int) -> int:
    id = fields.integer(_PREFIX + key)
    if not 0 <= id < size:
        raise fields.wrong(f"{_PREFIX}{key} is {id}, outside the vocabulary of {size}")
    return id


def build(fields: Fields, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer with its added tokens and, where the model wants one, the token that begins each text."""
    model = fields.text(f"{_PREFIX}model")
    makers: dict[str, Callable[[Fields, Vocabulary], Tokenizer]] = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
    }
    if model not in makers:
        raise fields.wrong(f"its tokenizer is {model}; the importable ones are {', '.join(makers)}")
    try:
        tokenizer = makers[model](fields, vocabulary)
        _add_tokens(tokenizer, vocabulary)
        if _adds_bos(fields) and "bos_token" in vocabulary.named:
            _begin_with(tokenizer, vocabulary.pieces, vocabulary.named["bos_token"])
    except ModelLoadFailed:
        raise
    except Exception as error:  # the library raises bare Exception, for example on merges that name no token
        raise fields.wrong(f"its tokenizer cannot be built ({error})") from error
    return tokenizer


def _begin_with(tokenizer: Tokenizer, pieces: list[str], id: int) -> None:
    """Lets every encoded text begin with this token."""
    bos = pieces[id]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, id)]
    )


def _adds_bos(fields: Fields) -> bool:
    """Files that do not say follow what their models were trained with."""
    default = fields.text(f"{_PREFIX}model") == "llama" or _pre_name(fields) in _LLAMA3
    return fields.flag(f"{_PREFIX}add_bos_token", default)


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """In order of id, so that the library finds each in the vocabulary and gives no new id."""
    for id, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True)):
        special = kind == CONTROL or (kind == UNKNOWN and id == vocabulary.named.get("unk_token"))
        if special:
            tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False)])


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx")
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_QWEN = ("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan")
_PLAIN = ("gpt-2", "mpt", "olmo", "jais", "phi-2", "default")


def _splits(name: str, fields: Fields) -> list[str]:
    """The expressions that cut text before merging, each applied to the pieces that the one before left."""
    table: list[tuple[Iterable[str], list[str]]] = [
        (_PLAIN, [_GPT2]),
        (_SINGLE_DIGITS, [r"\p{N}", _GPT2]),
        (_QWEN, [_WORDS % 1]),
        (_LLAMA3, [_WORDS % 3]),
        (("tekken",), [_TEKKEN]),
    ]
    for names, expressions in table:
        if name in names:
            return expressions
    known = ", ".join(sorted(name for names, _ in table for name in names))
    raise fields.wrong(f"its pre-tokenizer is {name}; the importable ones are {known}")


def _pre_name(fields: Fields) -> str:
    return fields.text(f"{_PREFIX}pre", "default")


def _byte_level(fields: Fields, vocabulary: Vocabulary) -> Tokenizer:
    name = _pre_name(fields)
    splits = [pre_tokenizers.Split(Regex(form), "isolated") for form in _splits(name, fields)]
    merges = [_merge(text, fields) for text in fields.texts(f"{_PREFIX}merges")]
    vocab = {piece: id for id, piece in enumerate(vocabulary.pieces)}
    # Llama 3 and Tekken take a whole word that is a token, even if no merges lead to it.
    tokenizer = Tokenizer(BPE(vocab, merges, ignore_merges=name in (*_LLAMA3, "tekken")))
    if name in _QWEN:
        tokenizer.normalizer = normalizers.NFC()
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(text: str, fields: Fields) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    if not left or not right or " " in right:
        raise fields.wrong(f"{_PREFIX}merges holds {text[:40]!r}, which is not two pieces")
    return left, right


def _sentencepiece(fields: Fields, vocabulary: Vocabulary) -> Tokenizer:
    scores = fields.numbers(f"{_PREFIX}scores")
    if len(scores) != len(vocabulary.pieces):
        raise fields.wrong(f"{_PREFIX}scores must be a list of {len(vocabulary.pieces)} numbers")
    vocab = {piece: id for id, piece in enumerate(vocabulary.pieces)}
    unknown = vocabulary.piece("unk_token")
    tokenizer = Tokenizer(
        BPE(
            vocab,
            _merges_by_score(vocabulary, scores, vocab),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    words: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.flag(f"{_PREFIX}add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        words.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(words)
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, scores: list[float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score of the third first, as SentencePiece does."""
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, kind, score in zip(vocabulary.pieces, vocabulary.kinds, scores, strict=True):
        if kind != 1:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-score, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
