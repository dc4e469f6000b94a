"""What the store says about a model is what its files say, and damaged files are named."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gguf_files import HEAD_DIM, KV_HEADS, write_tiny

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.gguf_import import convert
from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.record import ModelRecord, Quantization
from mlx_serving.actors.models.safetensors_file import SafetensorsWriter, StoredTensor, read_header


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def describe(folder: Path) -> ModelRecord:
    return describe_folder(folder, "name", "source")


def change_config(folder: Path, **changes: Any) -> None:
    """None removes a key."""
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def test_every_field_is_read_from_the_files(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "qwen3", tied=False)
    (tmp_path / "model").mkdir()
    convert(model.path, tmp_path / "model", half=True)
    record = describe(tmp_path / "model")
    assert (record.name, record.source, record.path) == ("name", "source", tmp_path / "model")
    assert record.architecture == "qwen3"
    assert record.parameter_count == sum(values.size for values in model.weights.values())
    assert (record.dtype, record.quantization) == ("float16", Quantization(8, 32))
    assert (record.context_length, record.vocab_size, record.num_layers) == (512, model.vocabulary, 2)
    assert record.kv_bytes_per_token == 2 * 2 * KV_HEADS * HEAD_DIM * 2
    assert record.eos_token_ids == (0, 2)
    assert (record.is_vision, record.has_chat_template) == (False, True)
    assert record.bytes == sum(path.stat().st_size for path in (tmp_path / "model").iterdir())


def test_its_tokenizer_is_not_looked_into(folder: Path) -> None:
    found = describe(folder)
    path = folder / "tokenizer.json"
    path.write_text("x" * path.stat().st_size)
    assert describe(folder) == found


@pytest.mark.model
def test_the_real_model_is_described_truly(smollm2: ModelRecord) -> None:
    assert smollm2.parameter_count == 134_515_008
    assert (smollm2.context_length, smollm2.vocab_size, smollm2.num_layers) == (8192, 49152, 30)
    assert smollm2.kv_bytes_per_token == 2 * 30 * 3 * 64 * {"float16": 2, "float32": 4}[smollm2.dtype]
    assert smollm2.quantization == Quantization(4, 32)


def test_layers_of_another_width_are_counted_by_their_own(folder: Path) -> None:
    count = describe(folder).parameter_count
    entry = {"bits": 8, "group_size": 32}
    change_config(folder, quantization={"bits": 4, "group_size": 64, "model.embed_tokens": entry})
    names = [tensor.name for tensor in read_header(folder / "model.safetensors")[0]]
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] |= {name.removesuffix(".scales"): entry for name in names if name.endswith(".scales")}
    (folder / "config.json").write_text(json.dumps(config))
    assert describe(folder).parameter_count == count


def test_weights_packed_as_awq_does_are_counted_unpacked(folder: Path) -> None:
    tensors = [
        StoredTensor("model.embed_tokens.weight", "F16", (10, 64)),
        StoredTensor("model.layers.0.mlp.up_proj.qweight", "I32", (64, 4)),
        StoredTensor("model.layers.0.mlp.up_proj.qzeros", "I32", (2, 4)),
        StoredTensor("model.layers.0.mlp.up_proj.scales", "F16", (2, 32)),
        StoredTensor("model.layers.0.mlp.up_proj.bias", "F16", (32,)),
    ]
    with SafetensorsWriter(folder / "model.safetensors", tensors) as writer:
        for tensor in tensors:
            writer.write(tensor.name, np.zeros(tensor.bytes, np.uint8))
    setting = {"quant_method": "awq", "bits": 4, "group_size": 32}
    change_config(folder, quantization=None, quantization_config=setting)
    record = describe(folder)
    assert record.parameter_count == 10 * 64 + 64 * 32 + 32
    assert record.quantization == Quantization(4, 32, "awq")


def test_models_with_vision_are_described_by_their_language_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = {key: config.pop(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")}
    nested = {**config, "text_config": text, "vision_config": {"hidden_size": 8}, "model_type": "x_vl"}
    (folder / "config.json").write_text(json.dumps(nested))
    record = describe(folder)
    assert record.is_vision
    assert (record.architecture, record.num_layers) == ("x_vl", 2)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, 0.5),
        ({"kv_lora_rank": 48, "qk_rope_head_dim": 16}, 1.0),
        ({"num_key_value_heads": None}, 2.0),
        ({"head_dim": 32}, 2.0),
    ],
)
def test_kv_bytes_follow_the_kind_of_attention(folder: Path, changes: dict[str, Any], factor: float) -> None:
    before = describe(folder).kv_bytes_per_token
    change_config(folder, **changes)
    assert describe(folder).kv_bytes_per_token == before * factor


def test_equal_models_have_equal_fingerprints(folder: Path, tiny_folder: Path) -> None:
    assert describe(folder).fingerprint == describe(tiny_folder).fingerprint
    change_config(folder, max_position_embeddings=1024)
    assert describe(folder).fingerprint != describe(tiny_folder).fingerprint


def test_a_model_of_the_same_shape_with_other_weights_has_another_fingerprint(folder: Path) -> None:
    before = describe(folder).fingerprint
    (path,) = folder.glob("*.safetensors")
    tensors, _ = read_header(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: -tensors[-1].bytes] + bytes(255 - byte for byte in raw[-tensors[-1].bytes :]))
    assert describe(folder).fingerprint != before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": None}, "model_type"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"max_position_embeddings": "512"}, "positive integer"),
        ({"num_hidden_layers": 0}, "positive integer"),
        ({"num_attention_heads": True}, "positive integer"),
        ({"hidden_size": 1, "head_dim": None}, "head_dim"),
        ({"quantization": {"bits": 0, "group_size": 0}}, "bits"),
        ({"quantization": {"bits": 4, "group_size": "x"}}, "group_size"),
    ],
)
def test_settings_that_are_missing_or_wrong_are_named(folder: Path, changes: dict[str, Any], words: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ModelLoadFailed, match=rf"config\.json.*{words}"):
        describe(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"config\.json"):
        describe(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelLoadFailed, match=file.replace("model.safetensors", r"model\*\.safetensors")):
        describe(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadFailed, match="lacks model-00002-of-00002"):
        describe(folder)


@settings(max_examples=80, deadline=None)
@given(cut=st.floats(0, 0.9999))
def test_weights_cut_short_are_refused(tiny_folder: Path, cut: float) -> None:
    data = (tiny_folder / "model.safetensors").read_bytes()
    path = tiny_folder.parent / "cut.safetensors"
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ModelLoadFailed, match=r"cut\.safetensors.*pull, import or add it again"):
        read_header(path)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4))
def test_changed_bytes_of_weights_never_end_in_another_error(
    tiny_folder: Path, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray((tiny_folder / "model.safetensors").read_bytes())
    for at, replacement in changes:
        data[at : at + 1] = replacement
    path = tiny_folder.parent / "changed.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(ModelLoadFailed):
        read_header(path)


@given(header=st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
@settings(max_examples=80, deadline=None)
def test_any_json_as_header_never_ends_in_another_error(tmp_path_factory: pytest.TempPathFactory, header: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with contextlib.suppress(ModelLoadFailed):
        read_header(path)


def test_what_is_written_in_pieces_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = [StoredTensor("a", "F32", (4, 2)), StoredTensor("b", "U32", (3,))]
    with SafetensorsWriter(path, tensors) as writer:
        writer.write("a", np.arange(4, dtype="<f4").reshape(2, 2))
        writer.write("b", np.arange(3, dtype="<u4"))
        writer.write("a", np.arange(4, 8, dtype="<f4").reshape(2, 2))
    assert read_header(path)[0] == tensors
    import mlx.core as mx

    loaded: Any = mx.load(str(path))
    assert loaded["a"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert loaded["b"].tolist() == [0, 1, 2]


def test_a_tensor_left_incomplete_is_our_bug(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="a was not written"),
        SafetensorsWriter(tmp_path / "x.safetensors", [StoredTensor("a", "F32", (4,))]),
    ):
        pass
