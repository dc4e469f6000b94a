"""What the fast BLAS gives: one product of a prefill's size, and a prefill of this server, with it and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.bench.peers import Recipe, Server, ours
from tools.bench.quantiles import Spread
from tools.bench.spec import COMPLETIONS, Request
from tools.bench.worker import Worker

_SENTENCE = "The quick brown fox jumps over the lazy dog and runs away. "
_SENTENCE_TOKENS = 13


def blas(model: str, folder: Path, tokens: int, repetitions: int, out: Path) -> dict[str, Any]:
    """Rates with OpenBLAS and with MLX's own BLAS, in turns, and their ratios: GFLOP/s of a float32 product of
    512 x 576 by 576 x 1536, and prompt tokens a second over HTTP."""
    with Worker(folder, blas=True) as fast, Worker(folder, blas=False) as plain:
        products = [(fast.product(), plain.product()) for _ in range(repetitions)]
    on, off = (Server(_recipe(model, enabled), out / "logs" / f"blas-{enabled}.log") for enabled in (True, False))
    with on, off:
        _prefill(on, 32, -1)
        _prefill(off, 32, -1)
        prefills = [(_prefill(on, tokens, n), _prefill(off, tokens, n)) for n in range(repetitions)]
    return {"tokens": tokens, "product": _pairs(products), "prefill": _pairs(prefills)}


def _recipe(model: str, enabled: bool) -> Recipe:
    """Without what else would compute a prompt, or spare it."""
    settings = {"BLAS": str(enabled), "NATIVE_KERNELS": "false", "PREFIX_CACHE__ENABLED": "false"}
    return ours(model, {f"GENERATION__{name}": value.lower() for name, value in settings.items()})


def _prefill(server: Server, tokens: int, number: int) -> float:
    """Prompt tokens a second. `number` stands first in the prompt, so that no prefix was seen before."""
    body = {
        "prompt": f"{number}. {_SENTENCE * (tokens // _SENTENCE_TOKENS)}",
        "max_tokens": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    (outcome,) = server.drive([Request(body, path=COMPLETIONS)])
    if outcome.error is not None or outcome.first is None or outcome.prompt_tokens is None:
        raise RuntimeError(f"the prefill failed: {outcome.error} {outcome.detail}")
    return outcome.prompt_tokens / outcome.first


def _pairs(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ratio = Spread.of(fast / plain for fast, plain in pairs)
    return {
        "with_openblas": [fast for fast, _ in pairs],
        "without": [plain for _, plain in pairs],
        "ratio": ratio.json() if ratio else None,
    }
