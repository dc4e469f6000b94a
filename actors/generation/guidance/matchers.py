"""llguidance matchers over one model's vocabulary."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mlx_serving.actors.errors import GuidanceInvalid
from mlx_serving.actors.generation.guidance.culprits import named
from mlx_serving.actors.generation.guidance.grammars import grammar_of, json_term, lark_of, refuse, term_of
from mlx_serving.actors.generation.guidance.trial import try_out
from mlx_serving.actors.json_schema.guidance import schema_of
from mlx_serving.actors.json_schema.walk import Node
from mlx_serving.actors.messages.values import Guidance
from mlx_serving.actors.models.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import llguidance


class Matchers:
    """Makes matchers. `vocab_size` is the width of the model's logits; ids beyond the tokenizer's are never allowed."""

    def __init__(self, tokenizer: TextTokenizer, eos_ids: frozenset[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = sorted(eos_ids)
        self.width = max(vocab_size, tokenizer.vocab_size)
        self._lock = threading.Lock()
        self._words: llguidance.LLTokenizer | None = None

    def load(self) -> llguidance.LLTokenizer:
        """Import the libraries and read the vocabulary, once."""
        import llguidance
        import outlines.types  # noqa: F401  # what `term_of` will need

        with self._lock:
            if self._words is None:
                text = self._tokenizer.backend.to_str()
                self._words = llguidance.LLTokenizer(text, n_vocab=self.width, eos_token=self._eos_ids)
            return self._words

    def make(self, guidance: Guidance) -> llguidance.LLMatcher:
        """A matcher at the beginning of an answer. Raises GuidanceInvalid for what cannot be followed."""
        field = guidance.field
        words = self.load()
        is_own = guidance.kind == "calls"
        matcher = _matcher(words, lark_of(guidance.source) if is_own else grammar_of(term_of(guidance), field))
        if matcher.is_error():
            message = _message(matcher)
            if guidance.kind == "json_schema":
                message = named(schema_of(guidance), message, lambda schema: self._error(words, schema, field))
            refuse(field, message)
        try_out(matcher, field, (self.width + 31) // 32)
        return matcher

    def _error(self, words: llguidance.LLTokenizer, schema: Node, field: str) -> str:
        """The compiler's message about a schema; empty if it takes it."""
        try:
            matcher = _matcher(words, grammar_of(json_term(schema, field), field))
        except GuidanceInvalid as error:
            return error.message
        return _message(matcher) if matcher.is_error() else ""


def _matcher(words: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    import llguidance

    # The lexer's states take one or two kB each, and its fuel bounds how long one mask may take.
    limits = llguidance.LLParserLimits(
        max_items_in_row=10_000, step_lexer_fuel=100_000, max_lexer_states=50_000, verbose_errors=False
    )
    return llguidance.LLMatcher(words, grammar, log_level=0, limits=limits)


def _message(matcher: llguidance.LLMatcher) -> str:
    return matcher.get_error().partition("\n<")[0].strip()
