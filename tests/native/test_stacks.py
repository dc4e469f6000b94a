"""All layers in one operation say what they say one by one, and write what they would write."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from mlx_lm.models import llama, qwen2
from mlx_lm.models.cache import make_prompt_cache

from mlx_serving.native.kernels import blocks, choice, operations
from mlx_serving.native.kernels.modules import install
from mlx_serving.native.kernels.stacks import DecoderStack, can_stack

pytestmark = [
    pytest.mark.usefixtures("on_the_cpu", "instructions"),
    pytest.mark.skipif(choice.choice == "pure", reason="the native kernels are not built here"),
]
nn: Any = mlx.nn
LAYERS, KV_HEADS, SIZE, VOCABULARY = 3, 2, 32, 96
PROJECTIONS = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}


@pytest.fixture(scope="module", params=["scalar", "avx2", "avx512", "avx512_vnni", "neon"])
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set of this machine, chosen before layers are laid out for it."""
    before = operations.instructions()
    if not operations.use_instructions(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield
    operations.use_instructions(before)


def tiny(family: Any, bits: int | None, tied: bool) -> Any:
    mx.random.seed(3)
    name = family.__name__.rpartition(".")[2]
    model: Any = family.Model(family.ModelArgs(model_type=name, tie_word_embeddings=tied, **SHAPE))
    if bits is not None:
        nn.quantize(model, 32, bits)
    mx.eval(model.parameters())
    install(model)
    return model


def filled(model: Any, length: int) -> list[Any]:
    """Caches of one row that hold so many tokens."""
    caches = make_prompt_cache(model)
    model(mx.random.randint(0, VOCABULARY, (1, length), key=mx.random.key(length)), cache=caches)
    return caches


def slabs_of(rows: list[list[Any]], capacity: int) -> tuple[mx.array, list[tuple[mx.array, mx.array]]]:
    """The caches of several rows as one group, with a slot to spare."""
    lengths = [caches[0].offset for caches in rows]
    layers = []
    for layer in range(LAYERS):
        pair = tuple(mx.zeros((len(rows) + 1, KV_HEADS, capacity, SIZE)) for _ in range(2))
        for slot, caches in enumerate(rows):
            pair[0][slot, :, : lengths[slot]] = caches[layer].keys[0, :, : lengths[slot]]
            pair[1][slot, :, : lengths[slot]] = caches[layer].values[0, :, : lengths[slot]]
        mx.eval(pair)
        layers.append((pair[0], pair[1]))
    return mx.array(lengths, dtype=mx.int32), layers


@pytest.mark.parametrize("family", [llama, qwen2])
@pytest.mark.parametrize(("bits", "tied"), [(None, True), (3, True), (4, False), (8, True)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_rows_of_two_groups_get_what_layers_give_them(family: Any, bits: int | None, tied: bool, tokens: int) -> None:
    model = tiny(family, bits, tied)
    rows = [filled(model, length) for length in (5, 9, 40)]
    groups = [slabs_of(rows[:2], 16), slabs_of(rows[2:], 64)]
    assert can_stack(model)
    stack = DecoderStack(model)
    given = mx.random.randint(0, VOCABULARY, (3, tokens), key=mx.random.key(1))
    logits = stack(given, groups)
    mx.eval(logits)
    for row, caches in enumerate(rows):
        expected = model(given[row : row + 1], cache=caches)
        np.testing.assert_allclose(np.array(logits[row]), np.array(expected[0]), rtol=1e-4, atol=1e-4)
        group, slot = (groups[0], row) if row < 2 else (groups[1], 0)
        for layer, (keys, values) in enumerate(group[1]):
            cache: Any = caches[layer]
            for slab, kept in ((keys, cache.keys), (values, cache.values)):
                written = np.array(slab[slot, :, : cache.offset])
                np.testing.assert_allclose(written, np.array(kept[0, :, : cache.offset]), rtol=1e-4, atol=1e-4)


def quantised(layers: list[tuple[mx.array, mx.array]], bits: int) -> list[tuple[list[mx.array], list[mx.array]]]:
    """Slabs with the same numbers in so many bits."""

    def side(slab: mx.array) -> list[mx.array]:
        return list(mx.quantize(slab, group_size=32, bits=bits))

    return [(side(keys), side(values)) for keys, values in layers]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 3])
def test_quantised_slabs_get_what_layers_one_by_one_give_them(bits: int, tokens: int) -> None:
    model = tiny(llama, 4, True)
    rows = [filled(model, length) for length in (5, 9, 40)]
    plain = [slabs_of(rows[:2], 16), slabs_of(rows[2:], 64)]
    together, alone = ([(lengths, quantised(layers, bits)) for lengths, layers in plain] for _ in range(2))
    x = mx.random.normal((3, tokens, 128), key=mx.random.key(1))
    given = operations.Stack([layer._fused[0] for layer in model.model.layers], 0.25).run(x, together)
    offsets = mx.concatenate([lengths for lengths, _ in alone])
    for number, layer in enumerate(model.model.layers):
        block = layer._fused[0]
        queries, keys, values = block.enter(x, offsets)
        attended, first = [], 0
        for lengths, layers in alone:
            own = slice(first, first := first + lengths.shape[0])
            attended.append(
                operations.attend_quantized_in_place(
                    queries[own], keys[own], values[own], *layers[number], lengths, 0.25, 32, bits
                )
            )
        x = block.leave(x, mx.concatenate(attended))
    np.testing.assert_array_equal(np.array(given), np.array(x))
    for (_, found), (_, expected) in zip(together, alone, strict=True):
        for sides, like in zip(found, expected, strict=True):
            for part, other in zip([*sides[0], *sides[1]], [*like[0], *like[1]], strict=True):
                np.testing.assert_array_equal(np.array(part), np.array(other))


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_but_the_new_columns_of_quantised_slabs_is_written(bits: int) -> None:
    model = tiny(llama, 4, True)
    lengths, plain = slabs_of([filled(model, 5)], 16)
    layers = quantised(plain, bits)
    parts = [part for pair in layers for side in pair for part in side]
    before = [np.array(part) for part in parts]
    mx.eval(DecoderStack(model)(mx.array([[7]]), [(lengths, layers)]))
    for was, part in zip(before, parts, strict=True):
        now = np.array(part)
        assert (now[0, :, 5] != was[0, :, 5]).any()
        now[0, :, 5] = was[0, :, 5]
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("tokens", [1, 5, 24])
@pytest.mark.parametrize("length", [1, 40])
def test_some_layers_at_a_time_are_all_layers(tokens: int, length: int) -> None:
    model = tiny(llama, 4, True)
    stack = DecoderStack(model)
    whole, parts = (slabs_of([filled(model, length)], 96) for _ in range(2))
    given = mx.random.randint(0, VOCABULARY, (1, tokens), key=mx.random.key(1))
    hidden = stack.enter(given)
    expected = stack.go_on(hidden, 0, whole)
    for first, last in ((0, 1), (1, LAYERS)):
        hidden = stack.go_on(hidden, first, (parts[0], parts[1][first:last]))
        mx.eval(hidden)
    np.testing.assert_array_equal(np.array(hidden), np.array(expected))
    for (keys, values), (like_keys, like_values) in zip(parts[1], whole[1], strict=True):
        np.testing.assert_array_equal(np.array(keys), np.array(like_keys))
        np.testing.assert_array_equal(np.array(values), np.array(like_values))
    assert stack.layers == LAYERS
    assert stack.kv_shape == (KV_HEADS, SIZE)


def test_nothing_but_the_new_columns_is_written() -> None:
    model = tiny(llama, 4, True)
    lengths, layers = slabs_of([filled(model, 5)], 16)
    before = [np.array(side) for pair in layers for side in pair]
    mx.eval(DecoderStack(model)(mx.array([[7]]), [(lengths, layers)]))
    for was, side in zip(before, (side for pair in layers for side in pair), strict=True):
        now = np.array(side)
        assert (now[0, :, 5] != was[0, :, 5]).any()
        now[0, :, 5] = was[0, :, 5]
        np.testing.assert_array_equal(now, was)


def test_slabs_that_are_views_get_memory_of_their_own() -> None:
    model = tiny(llama, 4, True)
    stack = DecoderStack(model)
    given = mx.array([[7, 9]])
    lengths, layers = slabs_of([filled(model, 5)], 16)
    turned = [tuple(mx.contiguous(side.swapaxes(2, 3)) for side in pair) for pair in layers]
    wholes = [side for pair in turned for side in pair]
    before = [np.array(whole) for whole in wholes]
    views = [(keys.swapaxes(2, 3), values.swapaxes(2, 3)) for keys, values in turned]
    expected = np.array(stack(given, [(lengths, layers)]))
    np.testing.assert_array_equal(np.array(stack(given, [(lengths, views)])), expected)
    for pair, like in zip(views, layers, strict=True):
        for side, other in zip(pair, like, strict=True):
            np.testing.assert_array_equal(np.array(side), np.array(other))
    for whole, was in zip(wholes, before, strict=True):
        np.testing.assert_array_equal(np.array(whole), was)


def test_a_layer_that_was_changed_is_noticed() -> None:
    model = tiny(llama, 4, True)
    stack = DecoderStack(model)
    assert stack.holds()
    layer = model.model.layers[1]
    attention = layer.self_attn
    part = attention.q_proj
    attention.q_proj = nn.Linear(128, 128, bias=False)
    assert not stack.holds()
    attention.q_proj = part
    assert stack.holds()
    layer.self_attn = copy.copy(attention)
    assert not stack.holds()
    layer.self_attn = attention
    assert stack.holds()
    attention.q_proj.bias = mx.zeros((128,))
    assert not stack.holds()
    attention.q_proj.pop("bias")
    assert stack.holds()
    attention.rope.__class__, kind = nn.RoPE, type(attention.rope)
    assert not stack.holds()
    attention.rope.__class__ = kind
    assert stack.holds()


@pytest.mark.parametrize(
    "changed",
    [
        *(f"{home}.{part}" for home in PROJECTIONS for part in ("weight", "scales", "biases")),
        *(f"{norm}.weight" for norm in NORMS),
    ],
)
def test_an_array_that_was_replaced_is_noticed(changed: str) -> None:
    model = tiny(llama, 4, True)
    stack = DecoderStack(model)
    tokens = mx.array([[7, 9, 11]])
    expected = np.array(model(tokens))
    layer = model.model.layers[1]
    path, name = changed.rsplit(".", 1)
    part = functools.reduce(getattr, path.split("."), layer)
    replaced = part[name]
    # Not even where the old array's place in memory is taken by the new one.
    part[name] = mx.array(replaced + 1 if name == "weight" else 2 * replaced)
    del replaced
    assert not stack.holds()
    assert not np.allclose(np.array(model(tokens)), expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_another_family_or_without_our_layers_is_left_alone() -> None:
    model = llama.Model(llama.ModelArgs(model_type="llama", **SHAPE))
    assert not can_stack(model)
    assert not can_stack(nn.Linear(4, 4))


def test_a_layer_whose_base_is_not_positive_is_refused() -> None:
    layer = tiny(llama, 4, True).model.layers[0]
    linear = [blocks._linear(home[name]) for home, name in blocks.places(layer)]
    norms = [layer.input_layernorm.weight, layer.post_attention_layernorm.weight]
    with pytest.raises(ValueError, match="base must be positive"):
        operations.Block(linear, norms, [1e-5, 1e-5], 4, KV_HEADS, SIZE, False, 1.0, 0.0, None)


def test_arrays_that_do_not_fit_are_refused() -> None:
    model = tiny(llama, 4, True)
    lengths, layers = slabs_of([filled(model, 5)], 16)
    stack = operations.Stack([layer._fused[0] for layer in model.model.layers], 1.0)
    x = mx.zeros((1, 1, 128))
    with pytest.raises(ValueError, match="at least one layer"):
        operations.Stack([], 1.0)
    with pytest.raises(ValueError, match="float32"):
        stack.run(x.astype(mx.float16), [(lengths, layers)])
    with pytest.raises(ValueError, match="as many lengths"):
        stack.run(mx.zeros((2, 1, 128)), [(lengths, layers)])
    with pytest.raises(ValueError, match="every layer"):
        stack.run(x, [(lengths, layers[:1])])
    with pytest.raises(ValueError, match="int32"):
        stack.run(x, [(lengths.astype(mx.float32), layers)])
    with pytest.raises(ValueError, match="does not fit"):
        stack.run(x, [(lengths, [(keys[..., :16], values) for keys, values in layers])])
    with pytest.raises(ValueError, match="does not fit"):
        stack.run(mx.zeros((1, 17, 128)), [(lengths, layers)])
    packed = quantised(layers, 4)
    with pytest.raises(ValueError, match="one form"):
        stack.run(x, [(lengths, [*packed[:2], layers[2]])])
    with pytest.raises(ValueError, match="one array"):
        stack.run(x, [(lengths, [(keys[:2], values[:2]) for keys, values in packed])])
    with pytest.raises(ValueError, match="do not fit"):
        stack.run(x, [(lengths, [packed[0], *quantised(layers[1:], 8)])])
    halves = [(keys.astype(mx.float16), values.astype(mx.float16)) for keys, values in layers]
    with pytest.raises(ValueError, match="scales in float32"):
        stack.run(x, [(lengths, quantised(halves, 4))])
    with pytest.raises(ValueError, match="does not fit"):
        stack.run(mx.zeros((1, 17, 128)), [(lengths, packed)])
