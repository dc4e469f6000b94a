r"""Where a long text may be cut so that its pieces have, one after the other, the token ids of the whole. Pure.

Byte-level BPE takes added tokens out of a text, normalises what is between them, splits that by expressions, and merges
bytes within each word. A cut between a visible ASCII character and a space changes none of this, if all of these hold:

1. No added token has such a place inside, takes in the spaces beside it, or minds what stands beside it.
2. The normaliser is none or NFC. No ASCII character composes with what is before it, so both sides are normalised
   alone as they are together. No added token is looked for in what it made.
3. The expressions are made of alternatives from ALTERNATIVES. None of these matches across such a place, and none looks
   back. The one that looks ahead, `\s+(?!\S)`, asks for something else than visible characters: the end of a piece
   is as good as the space that was there.
4. One of the alternatives is `\s+`. Something matches a space wherever it stands, so a word ends before it. Bytes
   become letters, and spaces no spaces, only after all of that.
5. Nothing is left to chance (dropout), and nothing but special tokens is added around the ids.

Anything else is tokenised whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import tokenizers
from tokenizers import models

SHORTEST_PIECE = 4096
"""Characters. Shorter pieces cost more than they save."""

ALTERNATIVES = frozenset(
    (
        # GPT-2 and what has grown out of it: contractions, words, numbers, other characters, spaces
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'(?:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
        *(r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)", r"\s+"),
        # Llama 3, Qwen
        *(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}", r"\p{N}{1,1}", r"\p{N}{1,3}"),
        *(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        # Tekken
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    )
)
"""Read one by one for rule 3."""

_SEAM = re.compile("[!-~](?= )")


@attrs.frozen
class Seams:
    """Of one tokenizer for which the rules hold. `before` and `after`: ids of the special tokens around a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def cut(self, text: str, most: int, shortest: int = SHORTEST_PIECE) -> list[str]:
        """At most so many pieces, of about one length; one if the text is short or has no seam."""
        count = min(most, len(text) // shortest)
        pieces, start = [], 0
        for number in range(1, count):
            seam = _SEAM.search(text, max(start, number * len(text) // count))
            if seam is None:
                break
            pieces.append(text[start : seam.end()])
            start = seam.end()
        return [*pieces, text[start:]]


def find_seams(backend: tokenizers.Tokenizer) -> Seams | None:
    """None where it cannot be shown that a text may be cut."""
    model, normalizer = backend.model, _state(backend.normalizer)
    splits = list(_parts(_state(backend.pre_tokenizer), "pretokenizers"))
    holds = (
        all(_is_plain(token, bool(normalizer)) for token in backend.get_added_tokens_decoder().values())
        and normalizer.get("type") in (None, "NFC")
        and all(map(_is_safe, splits))
        and any(map(_ends_words, splits))
        and not any(split["type"] == "ByteLevel" for split in splits[:-1])
        and isinstance(model, models.BPE)
        and not model.dropout
        and all(map(_adds_tokens_only, _parts(_state(backend.post_processor), "processors")))
    )
    return _around(backend) if holds else None


def _state(component: Any) -> dict[str, Any]:
    """A part of a tokenizer as tokenizer.json has it; empty for none."""
    return {} if component is None else dict(json.loads(component.__getstate__()))


def _parts(state: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """Those of a sequence, whose list has this name; one that is no sequence is its own part."""
    if state.get("type") == "Sequence":
        for each in state[name]:
            yield from _parts(each, name)
    elif state:
        yield state


def _is_plain(token: tokenizers.AddedToken, is_normalised: bool) -> bool:
    minds_neighbours = token.lstrip or token.rstrip or token.single_word
    return not (minds_neighbours or (token.normalized and is_normalised) or _SEAM.search(token.content))


def _is_safe(split: Mapping[str, Any]) -> bool:
    kind = split["type"]
    if kind == "ByteLevel":
        return not split["add_prefix_space"]
    if kind == "Split":
        return split["behavior"] == "Isolated" and not split["invert"] and ALTERNATIVES.issuperset(_alternatives(split))
    return bool(kind == "Digits")


def _ends_words(split: Mapping[str, Any]) -> bool:
    """Byte level with its own expression has that of GPT-2."""
    return (split["type"] == "ByteLevel" and split["use_regex"]) or r"\s+" in _alternatives(split)


def _alternatives(split: Mapping[str, Any]) -> list[str]:
    """What an expression is made of; a text to split at is none."""
    form, parts, depth, start = split.get("pattern", {}).get("Regex", ""), [], 0, 0
    for match in re.finditer(r"\\.|\[(?:\\.|[^\]\\])*\]|[()|]", form):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] == "|" and not depth:
            parts.append(form[start : match.start()])
            start = match.end()
    return [*parts, form[start:]]


def _adds_tokens_only(processor: Mapping[str, Any]) -> bool:
    """Byte level changes no ids, but may treat the offsets of a text's first token in a way of its own."""
    if processor["type"] == "ByteLevel":
        return not (processor["trim_offsets"] and processor["add_prefix_space"])
    return bool(processor["type"] == "TemplateProcessing")


def _around(backend: tokenizers.Tokenizer) -> Seams | None:
    """The special tokens, as they stand around a letter."""
    inner, whole = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    places = [at for at in range(len(whole)) if whole[at : at + len(inner)] == inner]
    if len(places) != 1:
        return None
    return Seams(tuple(whole[: places[0]]), tuple(whole[places[0] + len(inner) :]))
