"""What the store knows about a model on disk."""

from __future__ import annotations

from pathlib import Path

import attrs

from mlx_serving.actors.messages.values import ModelInfo


@attrs.frozen
class Quantization:
    """Weights stored as codes of `bits`, with a scale (in mode "affine" also a bias) per `group_size`."""

    bits: int
    group_size: int
    mode: str = "affine"


@attrs.frozen
class ModelRecord:
    """A model that `mlx_lm.load(path)` can load as it stands. Everything here is read from its files."""

    name: str
    path: Path
    source: str
    """Where it came from: a hub id, a registry package, a GGUF file or a folder."""
    architecture: str
    """The `model_type` of config.json."""
    parameter_count: int
    """Weights of the model itself: packed ones unpacked, without scales and biases of quantisation."""
    dtype: str
    """The floating point type of activations and KV cache: float16, bfloat16 or float32."""
    quantization: Quantization | None
    """The width of most weights; single layers may differ, see config.json."""
    context_length: int
    vocab_size: int
    bytes: int
    """All files on disk."""
    num_layers: int
    kv_bytes_per_token: int
    """Bytes of KV cache that one token of one sequence takes, over all layers."""
    eos_token_ids: tuple[int, ...]
    """As generation_config.json or config.json say; the tokenizer may name one more."""
    is_vision: bool
    has_chat_template: bool
    fingerprint: str
    """SHA-256 over config.json, the headers and the sizes of the weight files: equal for equal models."""

    def info(self) -> ModelInfo:
        """The record as other actors see it."""
        return ModelInfo(
            name=self.name,
            path=str(self.path),
            architecture=self.architecture,
            parameter_count=self.parameter_count,
            dtype=self.dtype,
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            kv_bytes_per_token=self.kv_bytes_per_token,
            quantization_bits=self.quantization.bits if self.quantization is not None else None,
            is_vision=self.is_vision,
            fingerprint=self.fingerprint,
        )
