"""What rendering a prompt leaves behind."""

from __future__ import annotations

import pytest

from mlx_serving.actors.admission import rendering
from mlx_serving.actors.admission.answer_format import ParserChoice
from mlx_serving.actors.admission.rendering import HUGE_TOKENS, rendered
from mlx_serving.actors.messages.admission import GenerationRequested
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Models


@pytest.mark.parametrize(
    ("words", "predicted", "times"), [(HUGE_TOKENS // 2, 0, 0), (HUGE_TOKENS + 10, 0, 1), (10, HUGE_TOKENS, 1)]
)
def test_memory_of_a_huge_text_is_given_back(
    smollm2: ModelRecord, monkeypatch: pytest.MonkeyPatch, words: int, predicted: int, times: int
) -> None:
    trims: list[bool] = []
    monkeypatch.setattr(rendering, "trim", lambda: trims.append(True))
    tokenizer = TextTokenizer.load(smollm2.path)
    asked = GenerationRequested(request_id=0, model=None, prompt="word " * words, prediction="word " * predicted)
    prompt = rendered(tokenizer, asked, ParserChoice.of(tokenizer, "m", Models()), with_segments=False)
    assert len(prompt.ids) >= words
    assert len(trims) == times
