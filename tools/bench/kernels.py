"""What the native kernels give in one process: `python tools/bench/kernels.py MODEL_FOLDER`.

Three variants, each in a process of its own: MLX as its wheel is, ours without the kernels (OpenBLAS, dense products
for many rows), ours with them. A step is timed from its launch until its token can be read, so nothing overlaps. The
best of the repetitions is shown, with the memory bandwidth measured beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VARIANTS = ("stock", "pure", "native")
PROMPT = [1, 504, 3575, 282, 4649, 314]
STEPS, PREFILL = 48, 512


def measure(variant: str, folder: Path) -> dict[str, float]:
    """Tokens a second with 1 row, 8 rows, and of a prompt."""
    model = _load(variant, folder)
    steps = 4 if variant == "stock" else STEPS
    return {
        "decode": _decode(model, 1, steps),
        "decode of 8 rows": _decode(model, 8, max(3, steps // 4)),
        "prefill of 512": _prefill(model, 16 if variant == "stock" else PREFILL),
    }


def _load(variant: str, folder: Path) -> Any:
    if variant != "stock":
        from mlx_serving.native import blas

        blas.install()
    import mlx.core as mx
    from mlx_lm.utils import load_model

    from mlx_serving.actors.generation.mlx_engine.cpu_products import use_dense_products
    from mlx_serving.native.kernels.modules import install

    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)
    model.set_dtype(mx.float32, lambda dtype: dtype in (mx.float16, mx.bfloat16))
    if variant == "pure":
        use_dense_products(model, 8)
    if variant == "native" and not install(model):
        raise SystemExit("the native kernels are not built, or for another mlx")
    return model


def _decode(model: Any, rows: int, steps: int) -> float:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model)
    token = mx.argmax(model(mx.repeat(mx.array([PROMPT]), rows, 0), cache=caches)[:, -1], -1)
    mx.eval(token)
    best = float("inf")
    for _ in range(steps):
        start = time.perf_counter()
        token = mx.argmax(model(token[:, None], cache=caches)[:, -1], -1)
        mx.eval(token)
        best = min(best, time.perf_counter() - start)
    return rows / best


def _prefill(model: Any, tokens: int) -> float:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    prompt = mx.random.randint(0, 40000, (1, tokens))
    best = float("inf")
    for _ in range(3):
        caches = make_prompt_cache(model)
        start = time.perf_counter()
        model(prompt, cache=caches)
        mx.eval([(cache.keys, cache.values) for cache in caches])
        best = min(best, time.perf_counter() - start)
    return tokens / best


def bandwidth(threads: int) -> float:
    """Gigabytes a second that so many threads read from memory."""
    import numpy as np

    parts = [np.ones(32 << 20, dtype=np.int64) for _ in range(threads)]
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / best / 1e9


def main() -> None:
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[1]))))
        return
    from mlx_serving import native
    from mlx_serving.native.cores import usable_cores

    status = native.status()
    print(f"mlx {status.running_mlx}; kernels: {status.kernels} ({status.kernels_reason})")
    print(f"memory bandwidth of {usable_cores()} threads: {bandwidth(usable_cores()):.1f} GB/s")
    for variant in VARIANTS:
        command = [sys.executable, __file__, sys.argv[1], variant]
        figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{variant:8}" + "".join(f"  {name}: {rate:.1f} tok/s" for name, rate in figures.items()), flush=True)


if __name__ == "__main__":
    main()
