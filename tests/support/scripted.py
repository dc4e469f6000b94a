"""A scripted engine of a model that is nowhere, driven by hand."""

from __future__ import annotations

from pathlib import Path

from support.engine_driver import Driver

from mlx_serving.actors.generation.scripted import Script, ScriptedEngine
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation

RECORD = ModelRecord(
    name="tiny",
    path=Path("/nowhere"),
    source="test",
    architecture="llama",
    parameter_count=1,
    dtype="float32",
    quantization=None,
    context_length=4096,
    vocab_size=1000,
    bytes=1,
    num_layers=1,
    kv_bytes_per_token=1,
    eos_token_ids=(2,),
    is_vision=False,
    has_chat_template=False,
    fingerprint="",
)


def scripted(settings: Generation | None = None, script: Script | None = None) -> Driver:
    engine = ScriptedEngine(RECORD, settings or Generation(), script)
    engine.load()
    return Driver(engine)
