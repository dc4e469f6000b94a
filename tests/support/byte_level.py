"""Byte-level BPE tokenizers of every way to split text, trained on a few pages, and the real ones that are at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from mlx_serving.actors.models.gguf_tokenizer import _GPT2, _TEKKEN, _WORDS

SPECIAL, ADDED = "<|im_start|>", "<tool_call>"
FOLDERS = {
    Path(path).name: Path(path) for path in os.environ.get("MLX_SERVING_TEST_MODELS", "").split(os.pathsep) if path
}
"""Real models that are named by the environment."""

_DOCS = sorted((Path(__file__).resolve().parents[2] / "docs").glob("*.md"))
_DIGITS = r"\p{N}"
_WAYS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "digits": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [_DIGITS, _GPT2],
    "qwen": [_WORDS % 1],
    "llama 3": [_WORDS % 3],
    "tekken": [_TEKKEN],
}
WAYS = tuple(_WAYS)


def trained(way: str, size: int = 1200) -> tokenizers.Tokenizer:
    """With one special token and one other added token; NFC before it where Qwen has it."""
    parts = [pre_tokenizers.Split(Regex(part), "isolated") if isinstance(part, str) else part for part in _WAYS[way]]
    if isinstance(_WAYS[way][-1], str):
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer = tokenizers.Tokenizer(BPE(ignore_merges=way in ("llama 3", "tekken")))
    tokenizer.normalizer = normalizers.NFC() if way == "qwen" else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([path.read_text() for path in _DOCS], trainer)
    tokenizer.add_special_tokens([AddedToken(SPECIAL, normalized=False)])
    tokenizer.add_tokens([AddedToken(ADDED, normalized=False)])
    return tokenizer
