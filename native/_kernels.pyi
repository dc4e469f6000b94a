from collections.abc import Sequence

import mlx.core as mx

def set_threads(count: int) -> None: ...
def threads() -> int: ...
def instructions() -> str: ...
def use_instructions(name: str) -> bool: ...
def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
) -> mx.array: ...
def takes_panels() -> bool: ...
def to_panels(matrix: mx.array) -> mx.array: ...
def digits_to_panels(weight: mx.array, bits: int) -> mx.array: ...
def matmul(x: mx.array, weight: mx.array) -> mx.array: ...
def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array: ...
def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array: ...
def swiglu(gate: mx.array, x: mx.array) -> mx.array: ...
def geglu(gate: mx.array, x: mx.array) -> mx.array: ...
def rope(
    x: mx.array,
    dims: int,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: mx.array,
    freqs: mx.array | None,
) -> mx.array: ...
def attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float, causal: bool) -> mx.array: ...
def slab_attention(
    queries: mx.array, keys: mx.array, values: mx.array, lengths: mx.array, scale: float
) -> mx.array: ...
def quantized_slab_attention(
    queries: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    lengths: mx.array,
    scale: float,
    group_size: int,
    bits: int,
) -> mx.array: ...
def attend_in_place(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: mx.array,
    slab_values: mx.array,
    lengths: mx.array,
    scale: float,
) -> mx.array: ...
def attend_quantized_in_place(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    slab_keys: Sequence[mx.array],
    slab_values: Sequence[mx.array],
    lengths: mx.array,
    scale: float,
    group_size: int,
    bits: int,
) -> mx.array: ...
def draw(logits: mx.array, masks: mx.array | None, floats: mx.array, limits: mx.array) -> mx.array: ...
def adjust(
    logits: mx.array,
    places: mx.array,
    bias: mx.array | None,
    counts: mx.array | None,
    seen: mx.array | None,
    penalties: mx.array,
) -> mx.array: ...

class Block:
    def __init__(
        self,
        layers: Sequence[tuple[list[mx.array], mx.array | None, int, int]],
        norms: Sequence[mx.array],
        eps: Sequence[float],
        heads: int,
        kv_heads: int,
        rope_dims: int,
        traditional: bool,
        rope_scale: float,
        base: float | None,
        freqs: mx.array | None,
    ) -> None: ...
    def enter(self, x: mx.array, offset: mx.array) -> list[mx.array]: ...
    def leave(self, x: mx.array, attended: mx.array) -> mx.array: ...

class Stack:
    def __init__(self, blocks: Sequence[Block], scale: float) -> None: ...
    def run(
        self,
        x: mx.array,
        groups: Sequence[
            tuple[mx.array, Sequence[tuple[mx.array | Sequence[mx.array], mx.array | Sequence[mx.array]]]]
        ],
    ) -> mx.array: ...
