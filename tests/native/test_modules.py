"""Models compute the same with the native kernels, and MLX's own modules come back."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import gemma4_text, llama
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache
from support.stock import own_functions

from mlx_serving.native.kernels import choice, functions
from mlx_serving.native.kernels.layers import inputs_of, outputs_of
from mlx_serving.native.kernels.modules import TABLE, fuse_again, half_precision_weights, install, uninstall
from mlx_serving.native.kernels.operations import OPERATIONS

nn: Any = mlx.nn
pytestmark = pytest.mark.usefixtures("on_the_cpu")
needs_kernels = pytest.mark.skipif(choice.choice == "pure", reason="the native kernels are not built here")
needs_panels = pytest.mark.skipif(not OPERATIONS.takes_panels(), reason="this processor multiplies with no panels")


LLAMAS = ("swiglu", "scaled_dot_product_attention")


def tiny_llama(bits: int | None) -> Any:
    mx.random.seed(3)
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=128,
        num_hidden_layers=2,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=96,
        tie_word_embeddings=True,
    )
    model: Any = llama.Model(args)
    if bits is not None:
        nn.quantize(model, 32, bits)
    mx.eval(model.parameters())
    return model


def logits(model: Any, rows: int) -> np.ndarray[Any, Any]:
    """Of a prompt, then of three more tokens, one at a time."""
    caches = make_prompt_cache(model)
    prompt = mx.random.randint(0, 96, (rows, 11), key=mx.random.key(5))
    parts = [model(prompt, cache=caches)]
    parts += [model(prompt[:, i : i + 1], cache=caches) for i in range(3)]
    return np.array(mx.concatenate(parts, axis=1))


def makings(model: Any) -> list[tuple[str, type, set[str]]]:
    """Name, class and attributes of every module."""
    return [(name, type(module), set(vars(module))) for name, module in model.named_modules()]


def called_functions() -> list[Any]:
    """What mlx-lm's Llama calls by the names of our functions."""
    return [getattr(llama, name) for name in LLAMAS]


@needs_kernels
@pytest.mark.parametrize("bits", [None, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_computes_the_same(bits: int | None, rows: int) -> None:
    model = tiny_llama(bits)
    expected = logits(model, rows)
    assert install(model) > 0
    np.testing.assert_allclose(logits(model, rows), expected, rtol=1e-4, atol=1e-4)
    uninstall(model)
    np.testing.assert_allclose(logits(model, rows), expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("bits", [None, 4])
def test_nothing_of_ours_stays_after_uninstall(bits: int | None) -> None:
    model = tiny_llama(bits)
    with own_functions(model):
        before = makings(model)
        install(model)
        logits(model, 1)
        assert makings(model) != before
        assert called_functions() == [functions.OURS[name][1] for name in LLAMAS]
        uninstall(model)
        assert makings(model) == before
        assert called_functions() == [functions.OURS[name][0] for name in LLAMAS]


@needs_kernels
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_attention_to_quantised_caches_is_ours_where_a_kernel_takes_it(
    bits: int, mask: str | None, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    ours = OPERATIONS.quantized_slab_attention

    def noting(*given: Any) -> Any:
        calls.append(given)
        return ours(*given)

    monkeypatch.setattr(OPERATIONS, "quantized_slab_attention", noting)
    cache: Any = QuantizedKVCache(32, bits)
    numbers = [mx.random.normal((2, 2, 9 + tokens, 64), key=mx.random.key(i)) for i in (1, 2)]
    keys, values = cache.update_and_fetch(*numbers)
    queries = mx.random.normal((2, 6, tokens, 64), key=mx.random.key(3))
    theirs: Any = functions._theirs_attention
    expected = theirs(queries * 1, keys, values, cache, 0.125, mask)
    found = functions.scaled_dot_product_attention(queries, keys, values, cache, 0.125, mask)
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=1e-5)
    assert bool(calls) == (bits != 2 and (mask == "causal" or tokens == 1))


@needs_kernels
def test_quantised_values_of_another_size_than_keys_stay_with_mlx() -> None:
    cache: Any = QuantizedKVCache(32, 8)
    keys, values = cache.update_and_fetch(mx.random.normal((1, 2, 5, 96)), mx.random.normal((1, 2, 5, 64)))
    queries = mx.random.normal((1, 2, 1, 96))
    theirs: Any = functions._theirs_attention
    expected = theirs(queries * 1, keys, values, cache, 0.1, None)
    found = functions.scaled_dot_product_attention(queries, keys, values, cache, 0.1, None)
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=1e-5)


@needs_panels
@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_quantised_layers_are_laid_out_in_panels_and_back(bits: int) -> None:
    model = tiny_llama(bits)
    before = dict(tree_flatten(model.parameters()))
    install(model)
    layer, is_suited = model.model.layers[0].self_attn.q_proj, bits != 3
    assert [layer[part].ndim for part in ("weight", "scales", "biases")] == [3 if is_suited else 2] * 3
    assert (inputs_of(layer), outputs_of(layer)) == (128, 128)
    uninstall(model)
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]).item() for name in before)


@needs_panels
def test_layers_of_unknown_families_keep_their_layout() -> None:
    layer = nn.QuantizedLinear(64, 32, group_size=32, bits=4)
    x = mx.random.normal((5, 64))
    expected = np.array(layer(x))
    install(layer)
    assert layer.weight.ndim == 2
    np.testing.assert_allclose(np.array(layer(x)), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_a_models_modules_stay_what_others_look_for() -> None:
    model = tiny_llama(4)
    names = [name for name, _ in model.named_modules()]
    install(model)
    assert [name for name, _ in model.named_modules()] == names
    assert isinstance(model.model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    assert type(model.model.layers[0].self_attn.q_proj) in [ours for ours, _ in TABLE.values()]


@needs_kernels
def test_what_a_kernel_does_not_take_stays_with_mlx() -> None:
    layer = nn.QuantizedLinear(64, 32, group_size=32, bits=4, mode="mxfp4")
    assert install(layer) == 0
    norm = nn.RMSNorm(8)
    install(norm)
    assert norm(mx.ones((2, 8), dtype=mx.int32)).shape == (2, 8)


@needs_kernels
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32])
def test_the_gate_of_gemma_is_ours_while_it_is_installed(dtype: mx.Dtype) -> None:
    theirs, ours = functions.OURS["geglu"]
    layer = gemma4_text.GeGLU()
    x, gate = (mx.random.normal((3, 40), key=mx.random.key(i)).astype(dtype) for i in (1, 2))
    expected = np.array(layer(x, gate).astype(mx.float32))
    install(layer)
    assert gemma4_text.geglu is ours
    found = np.array(layer(x, gate).astype(mx.float32))
    uninstall(layer)
    assert gemma4_text.geglu is theirs
    # Theirs rounds each of its steps to the type.
    bound = 3e-2 if dtype == mx.bfloat16 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


@needs_kernels
def test_a_linear_layer_with_a_bias_adds_it() -> None:
    layer = nn.Linear(64, 32)
    x = mx.random.normal((5, 64))
    expected = np.array(layer(x))
    install(layer)
    np.testing.assert_allclose(np.array(layer(x)), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("bits", [None, 4])
def test_weights_that_stay_in_half_precision_give_what_widened_ones_give(bits: int | None) -> None:
    model = tiny_llama(bits)
    model.set_dtype(mx.bfloat16)
    kept = model.parameters()
    model.set_dtype(mx.float32, lambda dtype: dtype == mx.bfloat16)
    expected = logits(model, 2)
    model.update(kept)
    install(model)
    narrow = half_precision_weights(model)
    assert {each.dtype for each in narrow} == {mx.bfloat16}
    assert len(narrow) == (15 if bits is None else 28)
    held = {id(each) for each in narrow}
    model.update(tree_map(lambda each: each if id(each) in held else _widened(each), model.parameters()))
    assert not any(layer._fused[1].are_of(layer) for layer in model.model.layers)
    fuse_again(model)
    assert all(layer._fused[1].are_of(layer) for layer in model.model.layers)
    got = logits(model, 2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def _widened(each: mx.array) -> mx.array:
    return each.astype(mx.float32) if each.dtype == mx.bfloat16 else each
