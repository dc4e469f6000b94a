"""The kernels benchmark, on the smallest model and without llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_serving.native.kernels import choice
from tools.bench.inside.models import save_random_model, subject
from tools.bench.kernels import bytes_a_token
from tools.bench.kernels_rows import kernels_rows


@pytest.mark.skipif(choice.choice == "pure", reason="the native kernels are not built here")
@pytest.mark.parametrize("variant", ["stock", "native"])
def test_a_variant_has_a_rate_for_each_form(variant: str) -> None:
    from tools.bench.inside.kernels import kernels

    with subject("random:tiny:4bit") as loaded:
        rates = kernels(loaded, variant, 1)
    assert all(rates[form] > 0 for form in ("1", "8", "prompt"))
    assert ("bandwidth" in rates) == (variant == "native")


def test_an_embedding_that_is_no_output_layer_is_not_read(tmp_path: Path) -> None:
    save_random_model("random:tiny:bf16", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["tie_word_embeddings"]
    total = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert 0.95 * total < bytes_a_token(tmp_path / "model") <= total


def test_a_rate_below_its_objective_is_told() -> None:
    beside = [{"rate": 10.0, "bandwidth": 1e9}]
    rate = {"1": 10.0, "8": 20.0, "prompt": 100.0, "bandwidth": beside, "instructions": "avx2"}
    slow = {"1": 1.0, "8": 1.0, "prompt": 1.0}
    result = {
        "model": "smollm2-135m",
        "gguf": "a.gguf",
        "cores": 2,
        "bytes_a_token": 50_000_000,
        "is_dense": True,
        "rates": {"stock": [slow], "pure": [slow], "native": [rate], "llama.cpp": [{"1": 8.0, "prompt": 200.0}]},
    }
    rows = {row.what: row for row in kernels_rows(result)}
    assert rows["smollm2-135m: decode, one row: in units of llama.cpp on a.gguf"].met is True
    assert rows["smollm2-135m: a prompt of 512: in units of llama.cpp on a.gguf"].met is False
    assert rows["smollm2-135m: decode, one row: in units of MLX as its wheel is"].met is False
    (bandwidth,) = (row for what, row in rows.items() if "bandwidth" in what)
    assert bandwidth.met is False
    assert bandwidth.figure.startswith("50%")
