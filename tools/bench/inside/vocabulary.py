"""A tokenizer with as many tokens as a model has, for models that are made of random numbers."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def write_tokenizer(folder: Path, size: int) -> None:
    """Token 0 ends a sequence, then come the 256 bytes, then random words, some with a space in front."""
    letters = _byte_letters()
    words = ["<eos>", *letters, *_words(size - 1 - len(letters), space=letters[ord(" ")])]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<eos>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<eos>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _words(count: int, space: str) -> list[str]:
    draw = random.Random(7)
    found: dict[str, None] = {}
    while len(found) < count:
        letters = draw.choices(string.ascii_letters, k=draw.randrange(2, 9))
        found["".join([space, *letters] if draw.random() < 0.5 else letters)] = None
    return list(found)


def _byte_letters() -> list[str]:
    """The letter by which byte-level tokenizers write each byte."""
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in _PRINTABLE else chr(next(others)) for byte in range(256)]
