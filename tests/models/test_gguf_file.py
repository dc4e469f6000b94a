"""Damaged and hostile GGUF files end in ModelLoadFailed, never in anything else."""

from __future__ import annotations

import contextlib
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gguf_files import write_tiny

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.gguf_file import GGUFFile
from mlx_serving.actors.models.gguf_import import convert


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("whole") / "tiny.gguf", "qwen2", Kind.Q5_0).path


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("gemma") / "tiny.gguf", "gemma", Kind.Q4_0).path


def import_bytes(data: bytes) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "x.gguf").write_bytes(data)
        (folder / "out").mkdir()
        convert(folder / "x.gguf", folder / "out")
    finally:
        shutil.rmtree(folder)


def test_fields_and_tensors_are_read(whole: Path) -> None:
    with GGUFFile(whole) as file:
        assert file.fields.text("general.architecture") == "qwen2"
        assert file.fields.number("qwen2.attention.layer_norm_rms_epsilon") == 1e-5
        tensor = file.tensors["blk.0.ffn_down.weight"]
        assert (tensor.shape, tensor.kind) == ((64, 96), Kind.Q5_0)
        assert file.raw(tensor, 1, 3).shape == (2, 66)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_a_file_cut_short_is_refused(whole: Path, cut: int) -> None:
    data = whole.read_bytes()
    with pytest.raises(ModelLoadFailed, match=r"x\.gguf"):
        import_bytes(data[: len(data) * cut // 10_001])


@settings(max_examples=150, deadline=None)
@given(
    byte_level=st.booleans(),
    reach=st.sampled_from([0.01, 0.1, 1.0]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
)
def test_changed_bytes_never_end_in_another_error(
    whole: Path, gemma: Path, byte_level: bool, reach: float, changes: list[tuple[float, bytes]]
) -> None:
    damaged = bytearray((whole if byte_level else gemma).read_bytes())
    for place, replacement in changes:
        at = int(place * reach * len(damaged))
        damaged[at : at + 1] = replacement
    with contextlib.suppress(ModelLoadFailed):
        import_bytes(bytes(damaged))


@settings(max_examples=60, deadline=None)
@given(tail=st.binary(max_size=400))
def test_any_bytes_after_the_magic_never_end_in_another_error(tail: bytes) -> None:
    with pytest.raises(ModelLoadFailed):
        import_bytes(b"GGUF" + struct.pack("<I", 3) + tail)


HUGE = 2**62


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<QQ", HUGE, 0),
        struct.pack("<QQ", 0, HUGE),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", HUGE),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, HUGE),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, HUGE),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
        struct.pack("<QQ", 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0),
    ],
)
def test_hostile_counts_are_refused_without_allocating(body: bytes) -> None:
    with pytest.raises(ModelLoadFailed):
        import_bytes(b"GGUF" + struct.pack("<I", 3) + body)


@pytest.mark.parametrize(
    ("start", "words"), [(b"GGUX", "does not begin with GGUF"), (b"GGUF" + struct.pack(">I", 3), "version")]
)
def test_another_format_is_named(start: bytes, words: str) -> None:
    with pytest.raises(ModelLoadFailed, match=words):
        import_bytes(start + bytes(64))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"gone\.gguf"):
        GGUFFile(tmp_path / "gone.gguf")
