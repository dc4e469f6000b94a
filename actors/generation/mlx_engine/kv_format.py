"""How keys and values are kept in memory."""

from __future__ import annotations

from typing import Any

import attrs
import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_serving.actors.errors import ModelLoadFailed

Slab = Any
"""An array, or the three of a quantised one: values, scales, biases."""


_LEAST_GROUP = 32
_BITS = {"8bit": 8, "4bit": 4}


@attrs.frozen
class KvFormat:
    """How keys and values are kept: as they are, or quantised to `bits` in groups of `group_size`."""

    bits: int | None = None
    group_size: int = 64

    @classmethod
    def of(cls, kind: str, head_sizes: set[int]) -> KvFormat:
        """Of the setting `generation.kv_type`. Groups are as large as the head sizes allow.

        Raises ModelLoadFailed where they allow none.
        """
        if kind == "model":
            return cls()
        odd = [size for size in sorted(head_sizes) if size % _LEAST_GROUP]
        if odd:
            raise ModelLoadFailed(
                f"generation.kv_type is {kind}, but this model's heads are of {odd[0]} numbers, no multiple of "
                f"{_LEAST_GROUP}; `model` keeps them as they are"
            )
        return cls(_BITS[kind], 64 if all(size % 64 == 0 for size in head_sizes) else _LEAST_GROUP)

    @classmethod
    def of_cache(cls, cache: KVCache | QuantizedKVCache) -> KvFormat:
        """What one of mlx-lm's keeps them in."""
        return cls(cache.bits, cache.group_size) if isinstance(cache, QuantizedKVCache) else cls()

    def encoded(self, array: mx.array) -> Slab:
        if self.bits is None:
            return array
        return mx.quantize(array, group_size=self.group_size, bits=self.bits)

    def zeros(self, *shape: int) -> Slab:
        """Room for numbers of this shape in float32."""
        if self.bits is None:
            return mx.zeros(shape)
        *outer, size = shape
        scales, biases = (mx.zeros((*outer, size // self.group_size)) for _ in range(2))
        return mx.zeros((*outer, size * self.bits // 32), dtype=mx.uint32), scales, biases

    def new_cache(self) -> Any:
        """mlx-lm's cache of one row and layer in this format."""
        if self.bits is None:
            return KVCache()  # type: ignore[no-untyped-call]
        return QuantizedKVCache(self.group_size, self.bits)

    def converted(self, cache: KVCache) -> Any:
        """A filled plain cache in this format."""
        return cache if self.bits is None else cache.to_quantized(self.group_size, self.bits)
