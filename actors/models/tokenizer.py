"""Text to token ids and back for one model folder, without transformers.

Reads tokenizer.json with the `tokenizers` library and, beside it, the special tokens, chat template and
end-of-text ids from tokenizer_config.json, chat_template.jinja, generation_config.json and config.json.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import tokenizers
from tokenizers import decoders

from mlx_serving.actors.errors import ModelLoadFailed, TokenizerFailed
from mlx_serving.actors.models.chat_template import ChatTemplate
from mlx_serving.actors.models.seams import Seams, find_seams
from mlx_serving.native import TokenTexts
from mlx_serving.native.cores import usable_cores

JSON = Any
_PIECES_PER_CORE = 4
"""Pieces of one text: enough that the cores finish together."""
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@attrs.frozen(eq=False)
class TextTokenizer:
    """One model's tokenizer. Safe to share between threads: nothing changes after `load`."""

    backend: tokenizers.Tokenizer
    chat: ChatTemplate
    special_tokens: Mapping[str, str]
    """bos_token, eos_token and the like, as far as the model names them."""
    eos_token_ids: frozenset[int]
    special_ids: frozenset[int]
    seams: Seams | None = None
    """Where long texts may be cut; None to tokenise each whole."""
    parallel: bool = True
    """Texts of a batch, and pieces of a long one, are tokenised over all cores."""
    texts: TokenTexts | None = None
    """What each id stands for where that does not depend on its neighbours: in byte-level vocabularies."""

    @classmethod
    def load(cls, folder: Path, parallel: bool = True) -> TextTokenizer:
        """ModelLoadFailed names the file that is missing or broken."""
        backend = _backend(tokenizer_file(folder))
        settings = _json(folder / "tokenizer_config.json")
        named = _named_tokens(settings)
        added = backend.get_added_tokens_decoder()
        return cls(
            backend=backend,
            chat=ChatTemplate(chat_templates(folder), named),
            special_tokens=named,
            eos_token_ids=_eos_token_ids(folder, backend, named),
            special_ids=frozenset(id for id, token in added.items() if token.special),
            seams=find_seams(backend) if parallel else None,
            parallel=parallel,
            texts=TokenTexts(backend.id_to_token) if isinstance(backend.decoder, decoders.ByteLevel) else None,
        )

    def prepared(self) -> TextTokenizer:
        """The same, after what its first text and its first conversation would wait for: threads, templates."""
        self.chat.prepare()
        self.encode("a")
        return self

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to one less than this (added tokens included); the model's logits may be wider."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        return bool(self.chat.sources)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Pass `add_special_tokens=False` for a rendered chat: its template has written them already.

        A long text is cut where that is known to change nothing, and its pieces are tokenised over all cores.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Many texts over all cores; the same ids as `encode` one by one."""
        if self.seams is None:
            return [row.ids for row in self._rows(texts, add_special_tokens)]
        pieces = [self.seams.cut(text, _pieces()) for text in texts]
        rows = iter(self._rows([piece for each in pieces for piece in each], False))
        before, after = (self.seams.before, self.seams.after) if add_special_tokens else ((), ())
        return [[*before, *itertools.chain.from_iterable(next(rows).ids for _ in each), *after] for each in pieces]

    def encode_with_offsets(self, text: str, ends: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
        """The ids of a rendered chat, and how many of them lie wholly before each of `ends` (characters), ascending."""
        pieces = [text] if self.seams is None else self.seams.cut(text, _pieces())
        ids: list[int] = []
        offsets: set[int] = set()
        start = 0
        for piece, row in zip(pieces, self._rows(pieces, False, with_offsets=True), strict=True):
            tokens = [row.char_to_token(end - start) for end in ends if start <= end < start + len(piece)]
            offsets.update(len(ids) + token for token in tokens if token is not None)
            ids += row.ids
            start += len(piece)
        return ids, tuple(sorted(offset for offset in offsets if offset))

    def _rows(
        self, texts: Sequence[str], add_special_tokens: bool, with_offsets: bool = False
    ) -> list[tokenizers.Encoding]:
        encode = self.backend.encode_batch if with_offsets else self.backend.encode_batch_fast
        groups = [list(texts)] if self.parallel else [[text] for text in texts]
        try:
            return [row for group in groups for row in encode(group, add_special_tokens=add_special_tokens)]
        except (TypeError, ValueError) as error:
            raise TokenizerFailed(f"this text cannot be tokenised: {error}", field="prompt") from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids that are no token decode to nothing; negative or huge ones are TokenizerFailed."""
        try:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise TokenizerFailed(f"token ids must be from 0 to {self.vocab_size - 1}", field="tokens") from error

    def text_of(self, token_id: int) -> str:
        """What one id decodes to by itself; special tokens show themselves."""
        if self.texts is None:
            return self.decode([token_id], skip_special_tokens=False)
        content = self.texts.content(token_id)
        return content if isinstance(content, str) else content.decode(errors="replace")

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """Each token as the vocabulary writes it (`Ġthe`, `▁the`, `<|im_end|>`); empty for an unknown id."""
        return [self.backend.id_to_token(id) or "" for id in ids]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, JSON]],
        *,
        tools: Sequence[Mapping[str, JSON]] | None = None,
        add_generation_prompt: bool = True,
        **variables: JSON,
    ) -> str:
        """The prompt text of a conversation; `variables` reach the template (for example enable_thinking)."""
        return self.chat.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables)


@cache
def _pieces() -> int:
    cores = usable_cores()
    return 1 if cores == 1 else cores * _PIECES_PER_CORE


def tokenizer_file(folder: Path) -> Path:
    """ModelLoadFailed if there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelLoadFailed(f"{path} is missing: import the folder with `models import` to have it built")
    return path


def _backend(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelLoadFailed(f"{path} is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _json(path: Path) -> dict[str, JSON]:
    """An absent file is an empty object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelLoadFailed(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadFailed(f"{path} must hold a JSON object")
    return value


def _named_tokens(settings: Mapping[str, JSON]) -> dict[str, str]:
    named = {}
    for name in _NAMED_TOKENS:
        token = settings.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            named[name] = token
    return named


def chat_templates(folder: Path) -> dict[str, str]:
    """Sources by name, of chat_template.jinja or else tokenizer_config.json or else chat_template.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {
            "default": path.read_text(encoding="utf-8"),
            **_more_templates(folder / "additional_chat_templates"),
        }
    settings = _json(folder / "tokenizer_config.json")
    written = settings.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(written, str):
        return {"default": written}
    if not isinstance(written, list):
        return {}
    try:
        return {str(item["name"]): str(item["template"]) for item in written}
    except (KeyError, TypeError) as error:
        path = folder / "tokenizer_config.json"
        raise ModelLoadFailed(f"the chat templates in {path} must have a name and a template each") from error


def _more_templates(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.jinja")) if folder.is_dir() else []
    return {path.stem: path.read_text(encoding="utf-8") for path in files}


def written_eos_ids(folder: Path) -> frozenset[int]:
    """What ends a text by generation_config.json or else config.json."""
    config = _json(folder / "config.json")
    text_config = config.get("text_config")
    nested = text_config.get("eos_token_id") if isinstance(text_config, dict) else None
    written = _json(folder / "generation_config.json").get("eos_token_id")
    if written is None:
        written = config.get("eos_token_id", nested)
    return frozenset(id for id in (written if isinstance(written, list) else [written]) if isinstance(id, int))


def _eos_token_ids(folder: Path, backend: tokenizers.Tokenizer, named: Mapping[str, str]) -> frozenset[int]:
    """What is written, and the tokenizer's own eos token."""
    own = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return written_eos_ids(folder) | ({own} if own is not None else set())
