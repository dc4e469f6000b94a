"""How much the benchmarks in process measure."""

from __future__ import annotations

import attrs


@attrs.frozen
class InsideSize:
    """Counts of tokens, rows and repetitions."""

    prompt_tokens: int
    tokens: int
    speculated_tokens: int
    repetitions: int
    switch_repetitions: int
    rows: tuple[int, ...]
    greedy_rows: tuple[int, ...]
    long_prompt_tokens: int
    shared_tokens: int
    turns: int
    masked_steps: int
    masked_repetitions: int
    """More than others: what masks cost is less than what steps differ by."""


QUICK = InsideSize(
    prompt_tokens=16,
    tokens=12,
    speculated_tokens=24,
    repetitions=1,
    switch_repetitions=1,
    rows=(4,),
    greedy_rows=(),
    long_prompt_tokens=256,
    shared_tokens=256,
    turns=3,
    masked_steps=16,
    masked_repetitions=1,
)
FULL = InsideSize(
    prompt_tokens=64,
    tokens=128,
    speculated_tokens=256,
    repetitions=5,
    switch_repetitions=3,
    rows=(8, 32),
    greedy_rows=(8, 32),
    long_prompt_tokens=4096,
    shared_tokens=2000,
    turns=10,
    masked_steps=100,
    masked_repetitions=9,
)
FULL_ON_CPU = attrs.evolve(
    FULL,
    prompt_tokens=32,
    tokens=64,
    speculated_tokens=128,
    repetitions=3,
    switch_repetitions=2,
    rows=(8,),
    greedy_rows=(),
    masked_steps=40,
)
"""Where mlx_lm says eight tokens a second."""


def size_for(quick: bool, on_cpu: bool) -> InsideSize:
    """By what is wanted and what there is."""
    if quick:
        return QUICK
    return FULL_ON_CPU if on_cpu else FULL
