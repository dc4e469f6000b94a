"""What is done for a request while it waits for a place in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.server import Server
from support.wait import until

from mlx_serving.actors.addresses import door_of
from mlx_serving.actors.admission.conversation import chat_text
from mlx_serving.actors.messages.admission import GenerationRequested, QueueObserved, StatusRequested
from mlx_serving.actors.messages.values import ChatMessage, Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Settings
from mlx_serving.frontends.cli.session import Session

pytestmark = pytest.mark.integration

MESSAGES = (ChatMessage("user", "How long is a queue?"),)
LONG, SHORT = (Stopping(max_tokens=tokens, ignore_eos=True) for tokens in (3000, 3))
WINDOW = 10_000
"""So that the stream goes on though nobody reads it."""


def test_a_prompt_is_rendered_and_tokenised_while_the_only_row_is_taken(
    serving_home: Path, smollm2: ModelRecord
) -> None:
    tokenizer = TextTokenizer.load(smollm2.path)
    ids = tokenizer.encode(chat_text(tokenizer, MESSAGES), add_special_tokens=False)
    settings: dict[str, Any] = {
        "generation__engine": "scripted",
        "generation__scripted_step_seconds": 0.02,
        "generation__max_rows": 1,
    }
    with Server(serving_home, **settings), Session(door_of(serving_home) or "", Settings()) as session:

        def queue() -> QueueObserved:
            observed: QueueObserved = session.ask(StatusRequested()).queue
            return observed

        with session.answer(GenerationRequested(0, prompt="Go on", stopping=LONG, window=WINDOW)) as first:
            assert next(iter(first))
            second = session.answer(GenerationRequested(0, messages=MESSAGES, stopping=SHORT, timeout=30))
            # Said once the tokens are on their way to batching, which holds nothing that has none.
            assert second.accepted().prompt_tokens == len(ids)
            until(lambda: queue().waiting, what="a sequence in batching's queue")
            assert (queue().waiting, queue().running) == (1, 1)
            with pytest.raises(RuntimeError, match="not finished"):
                _ = first.result
        with second:
            assert sum(len(delta.token_ids) for deltas in second for delta in deltas) == SHORT.max_tokens
        assert second.result.usage.prompt_tokens == len(ids)
