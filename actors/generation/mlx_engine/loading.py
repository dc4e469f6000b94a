"""Bringing weights into memory, and what of the machine the model may use."""

from __future__ import annotations

import shutil
from typing import Any

import attrs
import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import dequantize_model, load_model

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.generation.mlx_engine import (
    composed_attention,
    cuda_programs,
    draw_kernel,
    launched_numbers,
    linear_layers,
)
from mlx_serving.actors.generation.mlx_engine.caches import Caches
from mlx_serving.actors.generation.mlx_engine.device import is_cpu
from mlx_serving.actors.generation.mlx_engine.rows_cache import RowsCache
from mlx_serving.actors.generation.mlx_engine.sampling import Draw
from mlx_serving.actors.generation.mlx_engine.slab_rows import SMALLEST_CAPACITY
from mlx_serving.actors.memory import machine_bytes
from mlx_serving.actors.messages.values import Sampling
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.config.schema import Generation
from mlx_serving.native import heap
from mlx_serving.native.kernels import operations
from mlx_serving.native.kernels.modules import fuse_again, half_precision_weights, install

_DENSE_SHARE = 0.5
"""Of the memory for weights and caches, what weights that were quantised may take dequantised."""
_MOST_KEPT_BYTES = 32 << 20
_HALF = (mx.float16, mx.bfloat16)
_TENSOR_CORES = 8
"""Major number of the CUDA architectures whose tensor cores take bfloat16."""


def prepare_device(settings: Generation) -> None:
    """Set the allocator's limits; go without fused kernels where nothing can compile them."""
    mx.set_cache_limit(settings.cache_limit_bytes)
    if settings.memory_limit_bytes:
        mx.set_memory_limit(settings.memory_limit_bytes)
    cuda_programs.prepare()
    launched_numbers.prepare()
    draw_kernel.choose("off" if is_cpu() and not settings.native_kernels else settings.sampler_kernel)
    composed_attention.choose(settings.composed_attention)
    if settings.wired_limit_bytes and mx.metal.is_available():
        mx.set_wired_limit(settings.wired_limit_bytes)
    if is_cpu() and shutil.which("g++") is None:
        mx.disable_compile()


def return_memory(most: int = _MOST_KEPT_BYTES) -> None:
    """Give back what the allocator keeps for reuse, if that is more than so many bytes; on the CPU also what the C
    library then keeps.

    On CUDA its own limit is enough: the driver would have to map again at the next request what it is given back.
    """
    if not mx.cuda.is_available() and mx.get_cache_memory() > most:
        mx.clear_cache()
        if is_cpu():
            heap.trim()


def load_weights(record: ModelRecord) -> Any:
    """The model of this folder, evaluated. Raises ModelLoadFailed."""
    try:
        model, _ = load_model(record.path)
    except Exception as error:  # mlx and mlx-lm raise many kinds for a file that is not what it should be
        raise failed(record, error) from error
    return model


def speed_up(model: Any, settings: Generation) -> str:
    """Install what makes this back end faster without changing what it computes; says what computes then."""
    if not is_cpu():
        if not _has_product_kernels(settings):
            return "mlx"
        linear_layers.lay_out(model)
        linear_layers.choose_products(model, linear_layers.on_tensor_cores)
        return "tensor cores"
    if settings.native_kernels and install(model):
        return f"native {operations.instructions()}"
    if settings.cpu_dense_rows:
        linear_layers.choose_products(model, linear_layers.dense_from(settings.cpu_dense_rows))
    return "mlx"


def _has_product_kernels(settings: Generation) -> bool:
    """Whether our kernels for few rows are wanted, and run here."""
    if not settings.product_kernels or not mx.cuda.is_available():
        return False
    return int(mx.device_info().get("compute_capability_major", 0)) >= _TENSOR_CORES


def failed(record: ModelRecord, error: Exception) -> ModelLoadFailed:
    """What loading says when `error` stopped it."""
    return ModelLoadFailed(f"{record.name} cannot run from {record.path}: {type(error).__name__}: {error}")


def widen(model: Any, record: ModelRecord) -> ModelRecord:
    """On the CPU back end compute in float32: half precision is 4 to 20 times slower there.

    Weights that kernels of ours read in half precision stay so: that is as exact, and half as much to read. Returns the
    record as it is then.
    """
    if not is_cpu() or not any(weight.dtype in _HALF for weight in _weights(model)):
        return record
    kept = {id(weight) for weight in half_precision_weights(model)}

    def wide(weight: mx.array) -> mx.array:
        return weight.astype(mx.float32) if weight.dtype in _HALF and id(weight) not in kept else weight

    model.update(tree_map(wide, model.parameters()))
    mx.eval(model.parameters())
    fuse_again(model)
    scale = 2 if record.dtype in ("float16", "bfloat16") else 1
    return attrs.evolve(record, dtype="float32", kv_bytes_per_token=scale * record.kv_bytes_per_token)


def weight_bytes(model: Any) -> int:
    """What the weights take in memory."""
    return sum(weight.nbytes for weight in _weights(model))


def _weights(model: Any) -> list[mx.array]:
    pairs: Any = tree_flatten(model.parameters())
    return [weight for _, weight in pairs]


def dequantise(model: Any, settings: Generation) -> Any:
    """Keep quantised weights dequantised where that is set, or faster and cheap: on CUDA, if memory abounds and our
    kernels do not take them all.

    MLX's batched product with quantised weights is several times slower there than with bfloat16 ones.
    """
    quantised = _quantised_layers(model)
    is_wanted = settings.dequantize == "on" or (settings.dequantize == "auto" and mx.cuda.is_available())
    if not is_wanted or not quantised:
        return model
    if settings.dequantize == "auto":
        expected = sum(map(_dequantised_bytes, quantised))
        is_large = expected > _DENSE_SHARE * settings.memory_fraction * memory_bytes()
        if is_large or (_has_product_kernels(settings) and all(map(linear_layers.takes, quantised))):
            return model
    if is_cpu():  # half precision would round the products of digits and scales
        model.set_dtype(mx.float32, lambda dtype: dtype in _HALF)
    dense = dequantize_model(model)
    mx.eval(dense.parameters())
    mx.clear_cache()
    return dense


def _quantised_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if linear_layers.is_quantised(module)]


def _dequantised_bytes(module: Any) -> int:
    """What the weight of a quantised layer takes in the type of its scales."""
    return int(module.weight.size * 32 // module.bits * module.scales.dtype.size)


def compiles(settings: Generation) -> bool:
    """Whether decode steps are compiled: unless set otherwise on CUDA, where the host is the slower part."""
    return settings.compile_steps == "on" or (settings.compile_steps == "auto" and mx.cuda.is_available())


def in_place_attention(settings: Generation) -> str:
    """`generation.in_place_attention`, which on the CPU is one of the native kernels."""
    return "off" if is_cpu() and not settings.native_kernels else settings.in_place_attention


def memory_bytes() -> int:
    """Memory that weights and caches share: the accelerator's own, or the machine's."""
    own = 0 if is_cpu() else int(mx.device_info().get("memory_size", 0))
    return own or machine_bytes()


def warm_up(record: ModelRecord, model: Any, own: Caches, rows: RowsCache) -> None:
    """Compile what the first request would wait for: a chunk of prefill, steps of one row, and every way to draw.

    `own` and `rows` are empty. Raises ModelLoadFailed.
    """
    token = mx.zeros(1, dtype=mx.int32)
    try:
        model(mx.zeros((1, 8), dtype=mx.int32), cache=own)
        rows.join([own])
        for parameters in (Sampling(temperature=0), Sampling(temperature=0), Sampling(top_p=0.9)):
            rows.reserve(1)
            logits = rows.forward(token[:, None])[:, -1, :]
            token = Draw([parameters])(logits, [0.5])
            mx.eval(token)
        if not is_cpu():
            rows.reserve(SMALLEST_CAPACITY)  # a longer slab, whose parts are joined by a kernel of its own
            mx.eval(rows.forward(token[:, None]))
        everything = mx.full((1, (logits.shape[1] + 31) // 32), 0xFFFFFFFF, dtype=mx.uint32)
        adjusted = logits.astype(mx.float32)  # as penalties and biases leave them
        mx.eval([Draw([parameters])(each, [0.5], masks) for each in (logits, adjusted) for masks in (None, everything)])
    except Exception as error:
        raise failed(record, error) from error
    mx.clear_cache()
