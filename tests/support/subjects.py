"""Models of which every way of decoding must say the same, and what plain mlx-lm says with them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import QuantizedKVCache
from support.engine_driver import Driver
from support.engines import loaded
from support.stock import own_functions, stock_model

from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, PrefixCache

ROWS = 8
_DEFAULTS = {"max_rows": ROWS, "prefix_cache": PrefixCache(enabled=False)}
_MARGIN = 1e-3
"""Nat between the best token and the second. Below it the order of additions may decide: such prompts are not used."""
_QUANTISED_MARGIN = 0.02
"""Where it may also decide to which of two neighbouring numbers a key or value is rounded."""
_LENGTHS = (7, 505, 1, 23, 61, 250)
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
    settings: dict[str, Any] = attrs.field(factory=dict)
    """What every engine of it must be told to compute the same."""
    _shared: MlxEngine | None = None

    @property
    def stopping(self) -> Stopping:
        """For answers as long as the expected ones."""
        return Stopping(max_tokens=self.tokens, ignore_eos=True)

    @contextmanager
    def engine(self, draft: ModelRecord | None = None, **settings: Any) -> Iterator[MlxEngine]:
        """An engine with these settings. Without any it is one and the same until somebody fails with it.

        It computes everything anew unless they say something of the prefix cache.
        """
        engine = None if settings or draft else self._shared
        if engine is None:
            engine = loaded(self.record, Generation(**{**_DEFAULTS, **self.settings, **settings}), draft)
        if not (settings or draft):
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
    name: str,
    record: ModelRecord,
    prompts: Iterable[list[int]],
    count: int,
    few: int,
    tokens: int,
    kv_bits: int | None = None,
) -> Subject:
    """A subject with the first `count` of `prompts` after which no two tokens are ever nearly as good.

    `kv_bits`: keys and values are quantised, in groups of 64.
    """
    model = stock_model(record)
    settings = {"kv_type": f"{kv_bits}bit"} if kv_bits else {}
    least = _MARGIN if kv_bits is None else _QUANTISED_MARGIN
    used, expected = [], []
    for prompt in prompts:
        quantised: Any = [QuantizedKVCache(64, kv_bits) for _ in model.layers] if kv_bits else None
        ids, margin = greedy(model, prompt, tokens, prompt_cache=quantised)
        if margin >= least:
            used.append(prompt)
            expected.append(ids)
        if len(used) == count:
            return Subject(name, record, used, expected, tokens, few, model, settings)
    raise AssertionError(f"{name}: too few prompts with a clear answer")


def greedy(model: Any, prompt: Sequence[int], tokens: int, **options: Any) -> tuple[list[int], float]:
    """mlx-lm's greedy tokens after a prompt, and the least margin (nat) by which one of them was the best.

    `options` are those of mlx-lm's `generate_step`.
    """
    ids: list[int] = []
    margins: list[float] = []
    with own_functions(model):
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
    for count, sentence in enumerate(sentences):
        yield tokenizer.encode(sentence)
        yield tokenizer.encode(" ".join(sentences[: count + 2]) * 2)
