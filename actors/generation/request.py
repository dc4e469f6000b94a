"""What any engine derives from a sequence before it runs it."""

from __future__ import annotations

from mlx_serving.actors.errors import ContextOverflow, InvalidParameter
from mlx_serving.actors.generation.answer import Answer
from mlx_serving.actors.generation.text import text_decoder
from mlx_serving.actors.messages.batching import SequenceQueued
from mlx_serving.actors.messages.values import unpack_ids
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.actors.parsing.output import markers_of


def prompt_of(sequence: SequenceQueued, record: ModelRecord) -> list[int]:
    """Its prompt's token ids. Raises if it is empty, names unknown tokens, or leaves no room to answer."""
    ids = unpack_ids(sequence.prompt_ids)
    if not ids:
        raise InvalidParameter("the prompt is empty; it must have at least one token", field="prompt")
    unknown = max([*ids, *sequence.sampling.logit_bias])
    if unknown >= record.vocab_size:
        raise InvalidParameter(f"token id {unknown} must be below the vocabulary size {record.vocab_size}")
    if len(ids) >= record.context_length:
        raise ContextOverflow(
            f"the prompt has {len(ids)} tokens; that leaves no room for an answer in the model's context of "
            f"{record.context_length}",
            field="prompt",
        )
    return ids


def is_prefill_only(sequence: SequenceQueued) -> bool:
    """Whether its prompt is all that is wanted of it, in the prefix cache."""
    return sequence.stopping.max_tokens == 0


def answer_limit(sequence: SequenceQueued, prompt_tokens: int, record: ModelRecord) -> int:
    """The most tokens its answer may have, at least 1."""
    room = record.context_length - prompt_tokens
    wanted = sequence.stopping.max_tokens
    return room if wanted is None else max(1, min(wanted, room))


def answer_of(sequence: SequenceQueued, limit: int, eos_ids: frozenset[int], tokenizer: TextTokenizer) -> Answer:
    """Its answer, still empty. Special tokens show no text, but for those that its format is told by."""
    form = sequence.format
    shown = frozenset() if form is None else frozenset(map(tokenizer.backend.token_to_id, markers_of(form)))
    decoder = text_decoder(tokenizer, tokenizer.special_ids - shown)
    return Answer(sequence.stopping, limit, eos_ids, decoder, form)
