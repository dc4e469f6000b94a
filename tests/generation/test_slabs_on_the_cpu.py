"""Rows in slabs, plain and quantised, say by the CPU's kernels what they say by MLX's own operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from support.engines import loaded
from support.stock import own_functions
from support.tiny_models import make_tiny_model

from mlx_serving.actors.generation.mlx_engine.caches import Caches, new_caches
from mlx_serving.actors.generation.mlx_engine.rows_cache import Order
from mlx_serving.actors.generation.mlx_engine.slab_rows import SlabRows, rows_cache_for
from mlx_serving.config.schema import Generation
from mlx_serving.native.kernels import choice
from mlx_serving.native.kernels.modules import install

KvType = Literal["model", "8bit", "4bit"]
KV_TYPES: list[KvType] = ["model", "8bit", "4bit"]
pytestmark = pytest.mark.skipif(choice.choice == "pure", reason="the native kernels are not built here")
CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
    "rope_theta": 1e4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@pytest.fixture(params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One whose layers are an operation, and one that attends layer by layer."""
    model_class, arguments = mlx_lm.utils._get_classes({"model_type": request.param, **CONFIG})
    mx.random.seed(3)
    made = model_class(arguments.from_dict({"model_type": request.param, **CONFIG}))
    mx.eval(made.parameters())
    with own_functions(made):
        install(made)
        yield made


def rows_for(model: Any, setting: str, kv_type: KvType) -> SlabRows:
    rows, _ = rows_cache_for(model, kv_type, setting)
    assert isinstance(rows, SlabRows)
    return rows


def filled(model: Any, rows: SlabRows, ids: list[int]) -> list[Any]:
    """Caches of one row that hold some ids."""
    caches = new_caches(model, rows.form)
    model(mx.array([ids]), cache=caches)
    mx.eval([(cache.keys, cache.values) for cache in caches])
    return caches


@attrs.define
class Tagged:
    """Rows whose tokens depend on a number of each, not on their order, which is another one for other slabs."""

    rows: SlabRows
    tags: list[int] = attrs.field(factory=list)

    def move(self, order: Order | None, added: Sequence[int] = ()) -> None:
        before = [*self.tags, *added]
        self.tags = [before[place] for place in order] if order is not None else before

    def join(self, caches: Sequence[Caches], tags: Sequence[int]) -> None:
        self.move(self.rows.join(caches), tags)

    def step(self, first: int, width: int) -> dict[int, Any]:
        """The logits of each row."""
        self.move(self.rows.reserve(width))
        ids = [[(first + tag + place) % 64 for place in range(width)] for tag in self.tags]
        return dict(zip(self.tags, np.array(self.rows.forward(mx.array(ids))), strict=True))


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_model_says_the_same_in_place_while_rows_come_go_and_grow(model: Any, kv_type: KvType) -> None:
    copying, in_place = (Tagged(rows_for(model, setting, kv_type)) for setting in ("off", "auto"))
    both = (copying, in_place)
    assert [each.rows.writes_in_place for each in both] == [False, True]
    assert (in_place.rows.stack is not None) == (type(model).__module__ == "mlx_lm.models.llama")
    # A number midway between two that a key or value is rounded to becomes either.
    bound = 1e-4 if kv_type == "model" else 1e-2

    def step(first: int, width: int = 1) -> None:
        expected, found = (each.step(first, width) for each in both)
        assert found.keys() == expected.keys()
        for tag, wanted in expected.items():
            np.testing.assert_allclose(found[tag], wanted, rtol=0, atol=bound * np.abs(wanted).max())

    prompts = [[1, 2, 3], list(range(40)) * 13, [5]]
    for tags in ((0, 1), (2,)):
        for each in both:
            each.join([filled(model, each.rows, prompts[tag]) for tag in tags], tags)
        step(7)
        step(8)
    # Several tokens a row, and some are taken back; more than the kernel takes go the other way.
    for width in (3, in_place.rows.widest, in_place.rows.widest + 1):
        step(9, width)
        for each in both:
            each.rows.drop([tag % 3 for tag in each.tags])
    step(10)
    for each in both:
        taken = each.rows.take(each.tags.index(0))
        each.move(each.rows.keep([place for place, tag in enumerate(each.tags) if tag != 0]))
        each.join([taken], [0])
    step(11)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_the_switch_leaves_the_kernels_out(tmp_path: Path, kv_type: KvType) -> None:
    record = make_tiny_model(tmp_path / "model", "llama_4bit")
    for is_native in (True, False):
        engine = loaded(record, Generation(max_rows=2, kv_type=kv_type, native_kernels=is_native))
        cache = engine._decoding.batch.cache
        assert (cache.writes_in_place, cache.stack is not None) == (is_native, is_native)
        engine.close()
