"""Models of which every way of decoding must say the same, and what plain mlx-lm says with them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
from support.engine_driver import Driver
from support.engines import loaded

from mlx_serving.actors.generation.mlx_engine import loading
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation

ROWS = 8
_MARGIN = 1e-3
"""Nat between the best token and the second. Below it the order of additions may decide: such prompts are not used."""
_LENGTHS = (7, 250, 1, 23, 61, 125)
"""Of the prompts made of random bytes. Answers cross the sizes that caches grow by."""


@attrs.define(eq=False)
class Subject:
    """A model with prompts, and the `tokens` greedy tokens that mlx-lm says after each."""

    name: str
    record: ModelRecord
    prompts: list[list[int]]
    expected: list[list[int]]
    tokens: int
    few: int
    """How many of the prompts a way takes that needs many steps for each."""
    reference: Any
    """The model as mlx-lm loads it, apart from any engine."""
    _shared: MlxEngine | None = None

    @property
    def stopping(self) -> Stopping:
        """For answers as long as the expected ones."""
        return Stopping(max_tokens=self.tokens, ignore_eos=True)

    @contextmanager
    def engine(self, **settings: Any) -> Iterator[MlxEngine]:
        """An engine with these settings. Without any it is one and the same until somebody fails with it."""
        engine = None if settings else self._shared
        if engine is None:
            engine = loaded(self.record, Generation(**{"max_rows": ROWS, **settings}))
        if not settings:
            self._shared = engine
        try:
            yield engine
        except BaseException:
            self.close()
            raise
        finally:
            if engine is not self._shared:
                engine.close()

    def submit(self, driver: Driver, **fields: Any) -> list[int]:
        """Every prompt, greedy. Returns the sequence ids."""
        return [driver.submit(prompt, stopping=self.stopping, **fields) for prompt in self.prompts]

    def close(self) -> None:
        """Let the shared engine go; the next one who asks gets a new one."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()


def subject_of(
    name: str, record: ModelRecord, prompts: Iterable[list[int]], count: int, few: int, tokens: int
) -> Subject:
    """A subject with the first `count` of `prompts` after which no two tokens are ever nearly as good."""
    model, _ = load_model(record.path)
    loading.widen(model, record)
    used, expected = [], []
    for prompt in prompts:
        ids, margin = greedy(model, prompt, tokens)
        if margin >= _MARGIN:
            used.append(prompt)
            expected.append(ids)
        if len(used) == count:
            return Subject(name, record, used, expected, tokens, few, model)
    raise AssertionError(f"{name}: too few prompts with a clear answer")


def greedy(model: Any, prompt: Sequence[int], tokens: int, **options: Any) -> tuple[list[int], float]:
    """mlx-lm's greedy tokens after a prompt, and the least margin (nat) by which one of them was the best.

    `options` are those of mlx-lm's `generate_step`.
    """
    ids: list[int] = []
    margins: list[float] = []
    for token, logprobs in generate_step(mx.array(list(prompt)), model, max_tokens=tokens, **options):
        best: Any = mx.topk(logprobs.reshape(-1), 2).tolist()
        ids.append(int(token))
        margins.append(max(best) - min(best))
    return ids, min(margins)


def random_prompts(seed: int = 0) -> Iterator[list[int]]:
    """Bytes for the small random models; all lengths in turn, without end."""
    draw = random.Random(seed)
    while True:
        for length in _LENGTHS:
            yield [draw.randrange(256) for _ in range(length)]


def text_prompts(tokenizer: TextTokenizer) -> Iterator[list[int]]:
    """Sentences and lists of them for a model that understands text."""
    sentences = (
        "The capital of France is",
        "Once upon a time",
        "def fibonacci(n):",
        "Water boils at",
        "The quick brown fox",
        "List three colours:",
        "A recipe for bread:",
        "Two plus two is",
    )
    yield from (tokenizer.encode(sentence) for sentence in sentences[:3])
    yield from (tokenizer.encode(" ".join(sentences[:count]) * 2) for count in range(2, len(sentences)))
    yield from (tokenizer.encode(sentence) for sentence in sentences[3:])
