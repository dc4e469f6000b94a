"""Our kernels on GPUs that are none: see `gpu_kernels`."""

from __future__ import annotations

from pathlib import Path

import attrs
import mlx.core as mx
import pytest
from support.gpu_kernels import Gpu, Language

from mlx_serving.actors.generation.mlx_engine import (
    attention_kernels,
    chunk_attention,
    draw_kernel,
    kernel_dialects,
    product_kernels,
)


@attrs.frozen
class Shims:
    """GPUs whose compiled kernels are kept in `folder`."""

    folder: Path

    def use(self, language: Language, monkeypatch: pytest.MonkeyPatch, threads: int = 128) -> Gpu:
        """Let both kernels run on a GPU of that language, in groups of few threads."""
        gpu = Gpu(language, self.folder)
        own = kernel_dialects.CUDA if language == "cuda" else kernel_dialects.METAL
        monkeypatch.setattr(mx.fast, f"{language}_kernel", gpu.kernel)
        for module in (attention_kernels, draw_kernel):
            monkeypatch.setattr(module, "dialect", lambda: attrs.evolve(own, threads=threads))
        forget()
        return gpu


def forget() -> None:
    """Make the kernels anew when they are next used."""
    draw_kernel._kernel.cache_clear()
    attention_kernels._kernels.cache_clear()
    chunk_attention._kernel.cache_clear()
    product_kernels._dense_kernel.cache_clear()
    product_kernels._quantized_kernel.cache_clear()
