"""The default model, pulled and imported by the product, talks sense in mlx_lm."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer


@pytest.mark.model
def test_mlx_lm_loads_the_folder_as_it_stands_and_answers(smollm2: ModelRecord) -> None:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    loaded: Any = load(str(smollm2.path))
    tokenizer = TextTokenizer.load(smollm2.path)
    assert loaded[1].eos_token_ids == tokenizer.eos_token_ids
    prompt = mx.array(tokenizer.encode("The capital of France is"))
    ids = [int(token) for token, _ in generate_step(prompt, loaded[0], max_tokens=2)]
    assert tokenizer.decode(ids).startswith(" Paris")
