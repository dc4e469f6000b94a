"""How much each benchmark measures: `quick` shows that everything works, `full` gives the figures to
publish."""

from __future__ import annotations

import attrs


@attrs.frozen
class Size:
    """Counts and seconds of every benchmark."""

    compare_tokens: int
    compare_repetitions: int
    compare_both_blas: bool
    compare_mixed_clients: tuple[int, ...]
    equality_prompts: int
    pipeline_tokens: int
    pipeline_repetitions: int
    memory_requests: int
    memory_baseline: int
    stop_seconds: float
    help_runs: int
    server_runs: int
    prefill_tokens: int
    prefill_repetitions: int
    around_repetitions: int
    kernels_rounds: int


QUICK = Size(
    compare_tokens=16,
    compare_repetitions=2,
    compare_both_blas=False,
    compare_mixed_clients=(4,),
    equality_prompts=4,
    pipeline_tokens=500,
    pipeline_repetitions=1,
    memory_requests=80,
    memory_baseline=30,
    stop_seconds=10.0,
    help_runs=5,
    server_runs=1,
    prefill_tokens=64,
    prefill_repetitions=1,
    around_repetitions=2,
    kernels_rounds=1,
)
FULL = Size(
    compare_tokens=64,
    compare_repetitions=2,
    compare_both_blas=False,
    compare_mixed_clients=(8, 32),
    equality_prompts=20,
    pipeline_tokens=3000,
    pipeline_repetitions=5,
    memory_requests=5000,
    memory_baseline=500,
    stop_seconds=30.0,
    help_runs=20,
    server_runs=5,
    prefill_tokens=256,
    prefill_repetitions=2,
    around_repetitions=15,
    kernels_rounds=3,
)
