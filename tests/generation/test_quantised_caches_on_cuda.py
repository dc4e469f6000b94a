"""A whole engine that keeps keys and values in 8 or 4 bits, with CUDA's kernels run by g++, and as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest
from support import tiny_models
from support.engine_driver import Driver
from support.engines import loaded
from support.gpu_kernels import HAS_COMPILER
from support.shims import Shims, forget

from mlx_serving.actors.generation.mlx_engine import composed_attention, loading
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation, PrefixCache, Speculation

KvType = Literal["8bit", "4bit"]
Setting = Literal["auto", "off"]
PROMPTS = [[(place * (5 + row)) % 250 for place in range(length)] for row, length in enumerate((3, 70, 530, 70))]


def _answers(record: ModelRecord, kv_type: KvType, in_place: Setting, expects_in_place: bool) -> list[list[int]]:
    """To prompts side by side, to some that begin like them, and with proposals checked."""
    chosen = Generation(
        max_rows=4,
        kv_type=kv_type,
        in_place_attention=in_place,
        native_kernels=False,
        cpu_dense_rows=0,
        speculation=Speculation(mode="lookup", max_tokens=4),
        prefix_cache=PrefixCache(block_tokens=16),
    )
    engine = loaded(record, chosen)
    assert engine._decoding.batch.cache.writes_in_place is expects_in_place
    driver = Driver(engine)
    stopping = Stopping(max_tokens=12, ignore_eos=True)
    first = [driver.submit(prompt, stopping=stopping) for prompt in PROMPTS]
    driver.run()
    again = [driver.submit([*prompt, 7, 8], stopping=stopping) for prompt in PROMPTS]
    driver.run()
    assert engine.cache_stats().hits
    engine.close()
    return driver.ids([*first, *again])


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no g++")
@pytest.mark.parametrize(("kv_type", "in_place"), [("8bit", "auto"), ("4bit", "auto"), ("8bit", "off")])
def test_what_is_said_is_what_the_cpu_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_type: KvType, in_place: Setting
) -> None:
    heads = {"hidden_size": 64, "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setitem(tiny_models.CONFIGURATIONS, "llama", {**heads, "max_position_embeddings": 1024})
    record = tiny_models.make_tiny_model(tmp_path / "model", "llama")
    expected = _answers(record, kv_type, "off", expects_in_place=False)

    def refused(*_: Any, **__: Any) -> mx.array:
        raise RuntimeError("there is no such product on CUDA")

    Shims(tmp_path).use("cuda", monkeypatch)
    monkeypatch.setattr(mx, "compile", lambda function: function)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "quantized_matmul", refused)
    monkeypatch.setattr(loading, "in_place_attention", lambda settings: settings.in_place_attention)
    assert _answers(record, kv_type, in_place, expects_in_place=in_place == "auto") == expected
    composed_attention.choose("off")
    forget()
