"""Imported folders run in mlx_lm and mean what the GGUF file means."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from support.gguf_files import HEAD_DIM, KV_HEADS, TinyModel, write_tiny
from support.reference_model import logits

from mlx_serving.actors.errors import InvalidParameter, ModelLoadFailed
from mlx_serving.actors.models import gguf_tensors
from mlx_serving.actors.models.gguf_architectures import llama3_factors
from mlx_serving.actors.models.gguf_import import chosen_width, convert, half_precision_pays
from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.record import Quantization
from mlx_serving.actors.models.safetensors_file import read_header

FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
UNTIED = ("llama", "qwen2", "qwen3", "gemma3")
LOSSLESS = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
IDS = [3, 50, 7, 120, 9, 33, 2, 64]


@attrs.frozen
class Imported:
    """The model mlx_lm made of an imported folder, with all arithmetic in float32."""

    folder: Path

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        import mlx.core as mx

        return np.array(self._model()(mx.array([ids]))[0])

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Every weight as MLX dequantises it in float32, by name."""
        from mlx.utils import tree_flatten
        from mlx_lm.utils import dequantize_model

        parameters: dict[str, Any] = dict(tree_flatten(dequantize_model(self._model()).parameters()))
        return {name: np.array(value) for name, value in parameters.items()}

    def _model(self) -> Any:
        import mlx.core as mx
        from mlx_lm.utils import load_model

        model: Any = load_model(self.folder)[0]
        model.set_dtype(mx.float32)
        return model


def imported(model: TinyModel, width: Quantization | None = None, half: bool = True) -> Imported:
    folder = model.path.with_suffix("")
    folder.mkdir()
    convert(model.path, folder, width, half=half)
    return Imported(folder)


@pytest.mark.parametrize(
    ("family", "tied"),
    [*((family, True) for family in FAMILIES), *((family, False) for family in UNTIED)],
)
def test_each_family_computes_the_logits_of_its_file(tmp_path: Path, family: str, tied: bool) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", family, tied=tied)
    found, expected = imported(model).logits(IDS), logits(model, IDS)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("kind", LOSSLESS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_blocks_of_32_are_imported_without_loss(tmp_path: Path, kind: Kind, family: str) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", family, kind)
    weights = imported(model).weights()
    assert weights.keys() == model.weights.keys()
    for name, expected in model.weights.items():
        np.testing.assert_allclose(weights[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "bits", "steps"),
    [
        (Kind.Q4_K, 4, 0.0),
        (Kind.Q5_K, 5, 0.0),
        (Kind.Q6_K, 6, 1.0),
        (Kind.Q3_K, 4, 1.0),
        (Kind.IQ4_NL, 5, 1.0),
    ],
)
def test_other_types_stay_within_a_step_of_their_width(tmp_path: Path, kind: Kind, bits: int, steps: float) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", kind, hidden=256, intermediate=256)
    made = imported(model)
    weights = made.weights()
    for name, expected in model.weights.items():
        if expected.ndim == 2:
            groups = expected.reshape(-1, 32)
            spread = groups.max(1) - groups.min(1)
            rounding = (spread + np.abs(groups).max(1)) * 2.0**-11  # of scales and biases to float16
            off = np.abs(weights[name].reshape(-1, 32) - groups).max(1)
            assert (off <= steps * spread / (2**bits - 1) + rounding).all()
    assert describe_folder(made.folder, "x", "y").quantization == Quantization(bits, 32)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_plain_numbers_keep_their_type_and_bits(tmp_path: Path, kind: Kind, family: str) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", family, kind)
    made = imported(model)
    for name, values in made.weights().items():
        if values.ndim == 2:
            np.testing.assert_array_equal(values, model.weights[name])
    assert (
        describe_folder(made.folder, "x", "y").dtype
        == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind.name]
    )


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_without_half_precision_every_number_is_float32_and_the_same(tmp_path: Path, kind: Kind) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", kind)
    made = imported(model, half=False)
    weights = made.weights()
    for name, expected in model.weights.items():
        np.testing.assert_allclose(weights[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    dtypes = {tensor.dtype for tensor in read_header(made.folder / "model.safetensors")[0]}
    assert dtypes <= {"F32", "U32"}
    record = describe_folder(made.folder, "x", "y")
    assert (record.dtype, record.kv_bytes_per_token) == ("float32", 2 * 2 * KV_HEADS * HEAD_DIM * 4)


def test_half_precision_is_kept_where_the_device_computes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert half_precision_pays()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(metadata, "distributions", lambda: [SimpleNamespace(name="mlx-cpu")])
    assert not half_precision_pays()
    monkeypatch.setattr(metadata, "distributions", lambda: [SimpleNamespace(name="mlx-cuda-13")])
    assert half_precision_pays()


def test_an_explicit_width_applies_to_every_matrix(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", Kind.F16)
    made = imported(model, Quantization(8, 32))
    for name, values in made.weights().items():
        np.testing.assert_allclose(values, model.weights[name], atol=np.abs(model.weights[name]).max() / 100)
    record = describe_folder(made.folder, "x", "y")
    assert record.quantization == Quantization(8, 32)
    assert record.parameter_count == sum(values.size for values in model.weights.values())


def test_an_explicit_width_requantises_what_is_quantised_otherwise(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", Kind.Q8_0)
    record = describe_folder(imported(model, Quantization(4, 32)).folder, "x", "y")
    assert record.quantization == Quantization(4, 32)
    assert record.parameter_count == sum(values.size for values in model.weights.values())


def test_weights_in_several_shards_and_pieces_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", Kind.Q5_0)
    monkeypatch.setattr(gguf_tensors, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(gguf_tensors, "PIECE_ELEMENTS", 700)
    made = imported(model)
    shards = sorted(made.folder.glob("model-*.safetensors"))
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    weights = made.weights()
    for name, expected in model.weights.items():
        np.testing.assert_allclose(weights[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_llama_3_rope_factors_become_its_rope_settings(tmp_path: Path) -> None:
    settings = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = llama3_factors(settings, 50000.0, HEAD_DIM).astype(np.float32)
    made = imported(write_tiny(tmp_path / "tiny.gguf", "llama", rope_freqs=factors))
    config = json.loads((made.folder / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "llama3", **settings}
    assert made.logits(IDS).shape[0] == len(IDS)


def test_rope_factors_of_another_rule_are_refused(tmp_path: Path) -> None:
    factors = np.linspace(1, 9, HEAD_DIM // 2, dtype=np.float32)
    model = write_tiny(tmp_path / "tiny.gguf", "llama", rope_freqs=factors)
    with pytest.raises(ModelLoadFailed, match="rope factors"):
        imported(model)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"general.architecture": "mamba"}, "architecture is mamba; the importable ones are llama"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"split.count": 3}, "merge the parts"),
        ({"tokenizer.ggml.pre": "poro-chat"}, "pre-tokenizer is poro-chat"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer is t5"),
        ({"tokenizer.ggml.eos_token_id": 70000}, "outside the vocabulary"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope|factor"),
        ({"llama.block_count": 3}, r"blk\.2\.attn_q\.weight is missing"),
        ({"llama.embedding_length": 96}, "has the shape"),
        ({"llama.block_count": 4_000_000_000}, "lists 4000000000 layers"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path: Path, extra: dict[str, str | int], words: str) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", extra=extra)
    with pytest.raises(ModelLoadFailed, match=words):
        imported(model)


def test_an_output_matrix_is_refused_in_a_family_without_one(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"has no tensor output\.weight"):
        imported(write_tiny(tmp_path / "tiny.gguf", "gemma", tied=False))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", Kind.F16)
    data = bytearray(model.path.read_bytes())
    data[-2:] = np.array([np.nan], "<f2").tobytes()
    model.path.write_bytes(data)
    with pytest.raises(ModelLoadFailed, match="not finite"):
        imported(model)


@pytest.mark.parametrize(
    ("bits", "group_size", "field"), [(7, None, "bits"), (4, 48, "group_size"), (None, 64, "group_size")]
)
def test_a_width_mlx_cannot_hold_is_refused_by_name(bits: int | None, group_size: int | None, field: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        chosen_width(bits, group_size)
    assert caught.value.field == field
