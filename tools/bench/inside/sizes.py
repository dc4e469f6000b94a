"""How much the benchmarks in process measure."""

from __future__ import annotations

import attrs


@attrs.frozen
class InsideSize:
    """Counts of tokens, rows and repetitions."""

    prompt_tokens: int
    tokens: int
    repetitions: int
    switch_repetitions: int
    rows: tuple[int, ...]
    long_prompt_tokens: int
    shared_tokens: int
    turns: int
    masked_steps: int


QUICK = InsideSize(
    prompt_tokens=16,
    tokens=24,
    repetitions=1,
    switch_repetitions=1,
    rows=(4,),
    long_prompt_tokens=256,
    shared_tokens=256,
    turns=3,
    masked_steps=16,
)
FULL = InsideSize(
    prompt_tokens=64,
    tokens=128,
    repetitions=5,
    switch_repetitions=3,
    rows=(8, 32),
    long_prompt_tokens=4096,
    shared_tokens=2000,
    turns=10,
    masked_steps=100,
)
