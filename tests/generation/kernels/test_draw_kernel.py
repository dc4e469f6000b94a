"""The draw by MLX's operations and by the kernels, the CPU's and CUDA's source and Metal's: one test body."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import instructions
from support.draw_reference import may_draw
from support.gpu_kernels import HAS_COMPILER

from mlx_serving.actors.generation.mlx_engine import draw_kernel
from mlx_serving.actors.generation.mlx_engine.sampling import Draw
from mlx_serving.actors.messages.values import Sampling
from mlx_serving.native import kernels

SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(temperature=2.0, top_p=0.99),
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_p=0.7),
    Sampling(top_p=1e-6),
    Sampling(min_p=0.2),
    Sampling(min_p=1.0),
    Sampling(temperature=1.3, top_k=9, top_p=0.8, min_p=0.05),
    Sampling(top_k=2**31 - 1),
    Sampling(temperature=100.0, top_p=0.5),
    Sampling(temperature=1e-3),
    Sampling(temperature=1e-44),
]
VOCABULARIES = [1, 33, 1030, 5000]


@pytest.fixture(params=["operations", *instructions.SETS, "cuda", "metal"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How tokens are drawn: by operations, on the CPU with these instructions, or by the source for a GPU."""
    chosen: str = request.param
    if chosen == "operations":
        monkeypatch.setattr(draw_kernel, "_way", "operations")
        yield chosen
    elif chosen in ("cuda", "metal"):
        if not HAS_COMPILER:
            pytest.skip("there is no g++")
        request.getfixturevalue("shims").use(chosen, monkeypatch)
        monkeypatch.setattr(draw_kernel, "_way", "gpu")
        yield chosen
    else:
        with instructions.using(chosen):
            monkeypatch.setattr(draw_kernel, "_way", "cpu")
            yield chosen


def packed(allowed: NDArray[Any]) -> mx.array:
    """Masks [rows, ceil(vocabulary / 32)] from booleans [rows, vocabulary]; the bits behind the last are set."""
    rows, vocab_size = allowed.shape
    whole = np.ones((rows, -(-vocab_size // 32) * 32), dtype=bool)
    whole[:, :vocab_size] = allowed
    return mx.array(np.packbits(whole, axis=1, bitorder="little").view(np.uint32))


def drawn(logits: mx.array, samplings: list[Sampling], uniform: list[float], allowed: NDArray[Any] | None) -> list[int]:
    tokens = Draw(samplings)(logits, uniform, None if allowed is None else packed(allowed))
    return [int(each) for each in np.array(tokens)]


def check(logits: mx.array, samplings: list[Sampling], uniform: list[float], allowed: NDArray[Any] | None) -> None:
    """Every row's token is one that it may draw."""
    tokens = drawn(logits, samplings, uniform, allowed)
    exact = np.array(logits.astype(mx.float32)).astype(np.float64)
    if allowed is not None:
        exact = np.where(allowed, exact, -np.inf)
    for row, (token, sampling, number) in enumerate(zip(tokens, samplings, uniform, strict=True)):
        assert may_draw(token, exact[row], sampling, number), (row, token, sampling, number)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("is_masked", [False, True], ids=["free", "masked"])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_every_row_draws_what_its_parameters_allow(way: str, vocab_size: int, is_masked: bool, dtype: mx.Dtype) -> None:
    random = np.random.default_rng(vocab_size)
    rows = 2 * len(SAMPLINGS)
    logits = mx.array(random.normal(size=(rows, vocab_size)).astype(np.float32) * 3).astype(dtype)
    allowed = random.random((rows, vocab_size)) < 0.3
    allowed[:, random.integers(vocab_size)] = True
    numbers = [0.0, 1 - 2.0**-23, *random.random(rows - 2).tolist()]
    check(logits, 2 * SAMPLINGS, numbers, allowed if is_masked else None)


ROWS = st.lists(
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 1e-44, 0.2, 1.0, 2.0, 100.0]),
        top_k=st.sampled_from([0, 1, 2, 5, 30, 33, 1000]),
        top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
        min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ROWS, st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([1, 2, 20]))
def test_ties_masks_and_banned_tokens_in_any_mixture(
    way: str, samplings: list[Sampling], seed: int, is_masked: bool, kinds: int
) -> None:
    """Logits of few values, so that many tie."""
    random = np.random.default_rng(seed)
    shape = (len(samplings), 33)
    logits = random.integers(-kinds, kinds, shape).astype(np.float32)
    logits[random.random(shape) < 0.1] = -np.inf
    allowed = random.random(shape) < 0.4
    logits[:, 32], allowed[:, 32] = 0.5, True
    numbers = (random.integers(0, 2**23, len(samplings)) * 2.0**-23).tolist()
    check(mx.array(logits), samplings, numbers, allowed if is_masked else None)


def test_rows_without_a_choice_are_told_apart(way: str) -> None:
    """Logits that are not finite give -1, a mask that leaves nothing some token; others are not disturbed."""
    vocab_size = 33
    odd = np.zeros((6, vocab_size), np.float32)
    odd[0] = -np.inf
    odd[1] = np.nan
    odd[2, 7] = np.nan
    odd[3, 7] = np.inf
    odd[5] = np.arange(vocab_size)
    allowed = np.ones((6, vocab_size), bool)
    allowed[4] = False
    for sampling in (Sampling(temperature=0), Sampling(), Sampling(top_k=3, top_p=0.5, min_p=0.1)):
        tokens = drawn(mx.array(odd), [sampling] * 6, [0.999] * 6, allowed)
        assert tokens[:4] == [-1] * 4
        assert 0 <= tokens[4] < vocab_size
        assert tokens[5] == vocab_size - 1


def test_masks_may_be_wider_than_the_logits(way: str) -> None:
    """As those of a tokenizer with more ids than the model has logits."""
    allowed = np.zeros((2, 96), bool)
    allowed[0, 7] = allowed[1, 20] = True
    tokens = drawn(mx.zeros((2, 32)), [Sampling(temperature=0), Sampling()], [0.0, 0.5], allowed)
    assert tokens == [7, 20]


WRONG = {
    "one row": lambda draw, row: draw(mx.zeros(33), None, row, mx.zeros(1, dtype=mx.int32)),
    "integers": lambda draw, row: draw(mx.zeros((1, 33), dtype=mx.int32), None, row, mx.zeros(1, dtype=mx.int32)),
    "few numbers": lambda draw, row: draw(mx.zeros((1, 33)), None, row[:, :3], mx.zeros(1, dtype=mx.int32)),
    "limits of another type": lambda draw, row: draw(mx.zeros((1, 33)), None, row, mx.zeros(1)),
    "narrow masks": lambda draw, row: draw(
        mx.zeros((1, 33)), mx.zeros((1, 1), dtype=mx.uint32), row, mx.zeros(1, dtype=mx.int32)
    ),
}


@pytest.mark.skipif(kernels.choice.choice == "pure", reason="the native kernels are not built here")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arrays_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        WRONG[wrong](kernels.operations.draw, mx.array([[1.0, 1.0, 0.0, 0.5]]))


@pytest.mark.skipif(kernels.choice.choice == "pure", reason="the native kernels are not built here")
def test_adjustments_that_do_not_fit_are_refused() -> None:
    adjust, logits, places = kernels.operations.adjust, mx.zeros((2, 33)), mx.array([-1, 0], dtype=mx.int32)
    penalties, dense, seen = mx.ones((1, 3)), mx.zeros((1, 33)), mx.zeros((1, 33), dtype=mx.bool_)
    assert adjust(logits, places, None, dense, seen, penalties).shape == (2, 33)
    wrong: list[Callable[[], mx.array]] = [
        lambda: adjust(logits, places[:1], None, dense, seen, penalties),
        lambda: adjust(logits, places, dense[:, 1:], None, None, penalties),
        lambda: adjust(logits, places, None, dense, None, penalties),
        lambda: adjust(logits, places, None, dense, dense, penalties),
        lambda: adjust(logits, places, dense, dense, seen, penalties[0]),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match=r"must be|do not fit"):
            call()
    beyond = adjust(logits + 1, mx.array([7, -9], dtype=mx.int32), dense, None, None, penalties)
    assert beyond.tolist() == [[1.0] * 33] * 2  # places that name nothing


def test_a_device_that_draws_wrong_is_noticed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way not in ("cuda", "metal"):
        pytest.skip("there is nothing to notice")
    assert draw_kernel._draws_right()
    with monkeypatch.context() as spoilt:
        spoilt.setattr(draw_kernel, "_ADJUSTED", "this is no kernel")
        draw_kernel._kernel.cache_clear()
        assert not draw_kernel._draws_right()
    monkeypatch.setattr(draw_kernel, "_SOURCE", draw_kernel._SOURCE.replace("uniform * total", "0.5f * total"))
    draw_kernel._kernel.cache_clear()
    assert not draw_kernel._draws_right()
    monkeypatch.setattr(draw_kernel, "_SOURCE", "this is no kernel")
    draw_kernel._kernel.cache_clear()
    assert not draw_kernel._draws_right()


def test_metal_is_left_alone_unless_it_is_asked_for(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way != "metal":
        pytest.skip("this is about Metal")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    for setting, expected in (("auto", False), ("off", False), ("on", True)):
        draw_kernel.choose(setting)
        assert (draw_kernel.way() == "gpu") is expected
