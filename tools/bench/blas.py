"""What the fast BLAS gives a prefill: the same prompt in two processes, with it and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.bench.precision import peer_folder
from tools.bench.quantiles import Spread
from tools.bench.worker import Worker


def blas(folder: Path, tokens: int, repetitions: int) -> dict[str, Any]:
    """Prefill rates (tokens a second) with OpenBLAS and with MLX's own, in turns, and their ratio."""
    with peer_folder(folder) as same, Worker(same, blas=True) as fast, Worker(same, blas=False) as plain:
        fast.prefill(16)
        plain.prefill(16)
        pairs = [(tokens / fast.prefill(tokens), tokens / plain.prefill(tokens)) for _ in range(repetitions)]
    ratio = Spread.of(with_blas / without for with_blas, without in pairs)
    return {
        "tokens": tokens,
        "with_openblas": [pair[0] for pair in pairs],
        "without": [pair[1] for pair in pairs],
        "ratio": ratio.json() if ratio else None,
    }
