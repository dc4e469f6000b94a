"""Attention in place, CUDA's source and Metal's, against MLX's own attention over a slab that was written by it."""

from __future__ import annotations

import math
from typing import Any, cast

import attrs
import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from support.gpu_kernels import Language
from support.shims import Shims

from mlx_serving.actors.generation.mlx_engine import attention_kernels
from mlx_serving.actors.generation.mlx_engine.attention_kernels import attend_in_place, attend_quantised, suits
from mlx_serving.actors.generation.mlx_engine.caches import new_caches
from mlx_serving.actors.generation.mlx_engine.kv_format import KvFormat
from mlx_serving.actors.generation.mlx_engine.slab_rows import SlabRows, probe_ids, rows_cache_for

CAPACITY = 24
LENGTHS = (0, CAPACITY - 1, 7, 1)
"""Before the new token: none, all but the last column, one not divisible by anything, one."""
WIDE = (0, CAPACITY - 5, 7, 1)
"""Before five."""


@attrs.frozen
class Case:
    """What one step is given. Columns behind a row's end are NaN, as nothing may be read there."""

    queries: mx.array
    keys: mx.array
    values: mx.array
    slab_keys: mx.array
    slab_values: mx.array
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, kv_heads: int, share: int, size: int, dtype: mx.Dtype, tokens: int = 1) -> Case:
        """`share` heads read the same key. The slabs have a slot more than there are rows."""
        random = np.random.default_rng(size + share)
        lengths = LENGTHS if tokens == 1 else WIDE
        rows = len(lengths)

        def drawn(*shape: int) -> Any:
            return random.normal(size=shape).astype(np.float32)

        slabs = [drawn(rows + 1, kv_heads, CAPACITY, size) for _ in range(2)]
        for slab in slabs:
            for row, length in enumerate(lengths):
                slab[row, :, length:] = np.nan
        new = [drawn(rows, kv_heads * share, tokens, size), *(drawn(rows, kv_heads, tokens, size) for _ in range(2))]
        queries, keys, values, slab_keys, slab_values = (mx.array(each).astype(dtype) for each in (*new, *slabs))
        mx.eval(queries, keys, values, slab_keys, slab_values)
        return cls(queries, keys, values, slab_keys, slab_values, lengths)

    def attend(self) -> mx.array:
        lengths = mx.array(list(self.lengths), dtype=mx.int32)
        return attend_in_place(
            self.queries, self.keys, self.values, self.slab_keys, self.slab_values, lengths, self.scale
        )

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.queries.shape[-1])

    def expected(self) -> list[mx.array]:
        """Each row's attention in float32, from slabs that hold the new columns."""
        tokens = self.queries.shape[2]
        return [
            mx.fast.scaled_dot_product_attention(
                self.queries[row : row + 1].astype(mx.float32),
                self.slab_keys[row : row + 1, :, : length + tokens].astype(mx.float32),
                self.slab_values[row : row + 1, :, : length + tokens].astype(mx.float32),
                scale=self.scale,
                mask="causal",
            )[0]
            for row, length in enumerate(self.lengths)
        ]


@pytest.fixture(params=["cuda", "metal"])
def language(request: pytest.FixtureRequest) -> Language:
    return cast(Language, request.param)


def numbers(array: mx.array) -> Any:
    return np.array(array.astype(mx.float32))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("part_columns", [512, 4], ids=["whole", "in parts"])
@pytest.mark.parametrize(
    ("share", "size", "tokens"),
    [(1, 64, 1), (7, 64, 1), (4, 128, 1), (16, 128, 1), (2, 256, 1), (1, 64, 5), (7, 64, 5), (4, 128, 5)],
)
def test_rows_of_every_length_attend_to_their_own_columns(
    shims: Shims,
    monkeypatch: pytest.MonkeyPatch,
    language: Language,
    share: int,
    size: int,
    tokens: int,
    part_columns: int,
    dtype: mx.Dtype,
) -> None:
    gpu = shims.use(language, monkeypatch, threads=2 * size)
    # Six parts of at most four columns: of short rows most are empty.
    monkeypatch.setattr(attention_kernels, "_PART_COLUMNS", part_columns)
    for seed in range(2):
        gpu.seed = seed
        case = Case.of(2, share, size, dtype, tokens)
        before = [numbers(slab) for slab in (case.slab_keys, case.slab_values)]
        attended = numbers(case.attend())
        for slab, new, old in zip((case.slab_keys, case.slab_values), (case.keys, case.values), before, strict=True):
            for row, length in enumerate(case.lengths):
                old[row, :, length : length + tokens] = numbers(new)[row]
            np.testing.assert_array_equal(numbers(slab), old)
        for row, expected in enumerate(case.expected()):
            limit = 2e-6 if dtype == mx.float32 else 2.0**-8 * np.abs(numbers(expected)).max()
            np.testing.assert_allclose(attended[row], numbers(expected), rtol=0, atol=limit)


@pytest.mark.parametrize("part_columns", [512, 4], ids=["whole", "in parts"])
@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 64), (8, 32), (4, 32)])
@pytest.mark.parametrize(("share", "size", "tokens"), [(7, 64, 1), (4, 128, 5), (2, 256, 1)])
def test_quantised_slabs_are_read_and_written_as_mlx_quantises(
    shims: Shims,
    monkeypatch: pytest.MonkeyPatch,
    language: Language,
    share: int,
    size: int,
    tokens: int,
    bits: int,
    group_size: int,
    part_columns: int,
) -> None:
    gpu = shims.use(language, monkeypatch, threads=2 * size)
    monkeypatch.setattr(attention_kernels, "_PART_COLUMNS", part_columns)
    gpu.seed = bits + group_size
    case = Case.of(2, share, size, mx.float32, tokens)
    form: Any = {"group_size": group_size, "bits": bits}
    slabs = [mx.quantize(slab, **form) for slab in (case.slab_keys, case.slab_values)]
    mx.eval(slabs)
    before = [[np.array(part) for part in slab] for slab in slabs]
    lengths = mx.array(list(case.lengths), dtype=mx.int32)
    attended = numbers(
        attend_quantised(case.queries, case.keys, case.values, slabs[0], slabs[1], lengths, case.scale, **form)
    )
    for slab, new, old in zip(slabs, (case.keys, case.values), before, strict=True):
        for part, fresh, held in zip(slab, mx.quantize(new, **form), old, strict=True):
            for row, length in enumerate(case.lengths):
                held[row, :, length : length + tokens] = np.array(fresh)[row]
            np.testing.assert_array_equal(np.array(part), held)
    wide = [mx.dequantize(*slab, **form) for slab in slabs]
    for row, expected in enumerate(attrs.evolve(case, slab_keys=wide[0], slab_values=wide[1]).expected()):
        np.testing.assert_allclose(attended[row], numbers(expected), rtol=0, atol=4e-6)


def test_what_the_kernel_does_not_take_is_refused_before_it_writes(
    shims: Shims, monkeypatch: pytest.MonkeyPatch, language: Language
) -> None:
    shims.use(language, monkeypatch)
    with pytest.raises(ValueError, match="17 heads share a key"):
        Case.of(1, 17, 64, mx.float32).attend()
    mixed = Case.of(1, 1, 64, mx.bfloat16)
    with pytest.raises(ValueError, match=r"queries are .*float32, the slabs .*bfloat16"):
        attrs.evolve(mixed, queries=mixed.queries.astype(mx.float32)).attend()


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_it_is_used_on_cuda_and_on_metal_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    for backend, expected in (("cuda", setting != "off"), ("metal", setting == "on")):
        with monkeypatch.context() as only:
            only.setattr(getattr(mx, backend), "is_available", lambda: True)
            assert suits({128}, setting) is expected
            assert not suits({96}, setting)
            assert not suits({64, 128}, setting)
    assert not suits({128}, setting)


MODEL = {
    "model_type": "qwen2",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
}


def small_model() -> Any:
    model_class, arguments = mlx_lm.utils._get_classes(MODEL)
    mx.random.seed(3)
    model = model_class(arguments.from_dict(MODEL))
    mx.eval(model.parameters())
    return model


def filled(model: Any, ids: list[int], form: KvFormat | None = None) -> list[Any]:
    """Caches of one row that hold some ids."""
    caches = new_caches(model, form)
    if ids:
        model(mx.array([ids]), cache=caches)
        mx.eval([(cache.keys, cache.values) for cache in caches])
    return caches


def rows_for(model: Any, setting: str, kv_type: str = "model") -> SlabRows:
    rows, _ = rows_cache_for(model, kv_type, setting)
    assert isinstance(rows, SlabRows)
    return rows


@pytest.mark.parametrize("kv_type", ["model", "8bit", "4bit"])
def test_a_model_says_the_same_in_place_while_rows_come_go_and_grow(
    shims: Shims, monkeypatch: pytest.MonkeyPatch, language: Language, kv_type: str
) -> None:
    gpu = shims.use(language, monkeypatch)
    model = small_model()
    copying = rows_for(model, "off", kv_type)
    monkeypatch.setattr(getattr(mx, language), "is_available", lambda: True)
    in_place = rows_for(model, "on", kv_type)
    form = in_place.form
    assert (in_place.writes_in_place, copying.writes_in_place) == (True, False)

    both = (in_place, copying)

    def step(token: int, width: int = 1) -> None:
        gpu.seed += 1
        assert in_place.reserve(width) == copying.reserve(width)
        ids = [[(token + row + place) % 64 for place in range(width)] for row in range(len(copying.lengths))]
        found, expected = in_place.forward(mx.array(ids)), copying.forward(mx.array(ids))
        np.testing.assert_allclose(numbers(found), numbers(expected), rtol=0, atol=1e-4)

    for prompts in ([[1, 2, 3], list(range(40)) * 13], [[5]]):
        for rows in both:
            rows.join([filled(model, ids, form) for ids in prompts])
        step(7)
        step(8)
    # Several tokens a row, and some are taken back; more than the kernel takes go the other way.
    step(9, width=3)
    step(9, width=attention_kernels.MOST_TOKENS + 1)
    for rows in both:
        rows.drop([0, 2, 1])
    step(10)
    for rows in both:
        taken = rows.take(0)
        rows.keep([1, 2])
        rows.join([taken])
    step(11)
    assert in_place.lengths == copying.lengths


@pytest.mark.parametrize("kv_type", ["model", "8bit"])
@pytest.mark.parametrize("source", ["this is no kernel", attention_kernels._PARTS.replace("* scale[0]", "")])
def test_a_device_on_which_it_fails_or_is_wrong_goes_the_other_way(
    shims: Shims, monkeypatch: pytest.MonkeyPatch, language: Language, source: str, kv_type: str
) -> None:
    shims.use(language, monkeypatch)
    monkeypatch.setattr(attention_kernels, "_PARTS", source)
    monkeypatch.setattr(getattr(mx, language), "is_available", lambda: True)
    assert not rows_for(small_model(), "on", kv_type).writes_in_place


def test_a_kernel_that_is_wrong_for_several_tokens_is_used_for_one(
    shims: Shims, monkeypatch: pytest.MonkeyPatch, language: Language
) -> None:
    shims.use(language, monkeypatch)
    source = attention_kernels._PARTS.replace("last = before + token", "last = before")
    assert source != attention_kernels._PARTS
    monkeypatch.setattr(attention_kernels, "_PARTS", source)
    monkeypatch.setattr(getattr(mx, language), "is_available", lambda: True)
    kernel = rows_for(small_model(), "on").program.kernel
    assert kernel is not None
    assert kernel.most_tokens == 1


def test_on_metal_what_is_in_flight_ends_before_mlx_reads_or_moves_rows(
    shims: Shims, monkeypatch: pytest.MonkeyPatch
) -> None:
    shims.use("metal", monkeypatch)
    model = small_model()
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    rows = rows_for(model, "on")
    waits: list[str] = []
    monkeypatch.setattr(mx, "synchronize", lambda: waits.append("waited"))
    for operation in (
        lambda: rows.join([filled(model, [1, 2]), filled(model, list(range(507)))]),
        lambda: rows.view(0),
        lambda: rows.take(1),
        lambda: rows.reserve(3),
        lambda: rows.keep([1]),
    ):
        operation()
        assert waits.pop() == "waited"
        rows.reserve(1)
        rows.forward(mx.array([[3]] * len(rows.lengths)))
        assert not waits


def test_models_are_tried_with_ordinary_tokens_where_there_are_many() -> None:
    """Of special ones, which are often the first, half precision says too little to tell what is wrong."""
    model = small_model()
    assert probe_ids(model, 7) == [3, 1, 4, 1, 5, 3, 1]
    model.args.vocab_size = 49152
    assert min(probe_ids(model, 48)) > 1000
