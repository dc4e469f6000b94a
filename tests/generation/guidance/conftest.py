"""Compilers over the real vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.random_answers import Walker

from mlx_serving.actors.errors import GuidanceInvalid
from mlx_serving.actors.generation.guidance.compiler import GuideCompiler
from mlx_serving.actors.generation.guidance.guide import Guide
from mlx_serving.actors.generation.guidance.matchers import Matchers
from mlx_serving.actors.messages.values import Guidance, GuidanceKind
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer

EOS = 2
PADDED_VOCABULARY = 49_280
"""Wider than the tokenizer's, as the logits of many models are."""

Compile = Callable[..., Guide]


@pytest.fixture(scope="session")
def tokenizer(smollm2: ModelRecord) -> TextTokenizer:
    return TextTokenizer.load(smollm2.path)


@pytest.fixture(scope="session")
def matchers(tokenizer: TextTokenizer) -> Matchers:
    return Matchers(tokenizer, frozenset({EOS}), PADDED_VOCABULARY)


@pytest.fixture(scope="session")
def compiler(matchers: Matchers) -> Iterator[GuideCompiler]:
    compiler = GuideCompiler(matchers, seconds=60)
    yield compiler
    compiler.close()


@pytest.fixture(scope="session")
def walker(tokenizer: TextTokenizer) -> Walker:
    return Walker(tokenizer, EOS, PADDED_VOCABULARY, most_tokens=200)


@pytest.fixture(scope="session")
def compiled(compiler: GuideCompiler) -> Compile:
    """The guide of a kind and a source."""

    def compile_now(kind: GuidanceKind, source: str = "") -> Guide:
        return compiler.start(Guidance(kind, source, "asked")).result(120)

    return compile_now


@pytest.fixture(scope="session")
def refusal(compiled: Compile) -> Callable[..., str]:
    """Why a source is refused."""

    def why(*arguments: Any) -> str:
        with pytest.raises(GuidanceInvalid) as caught:
            compiled(*arguments)
        assert caught.value.field == "asked"
        return caught.value.message

    return why


@pytest.fixture(scope="session")
def takes(compiled: Compile, tokenizer: TextTokenizer) -> Callable[[Guide, str], bool]:
    """Whether a guide at the beginning lets a text through as a whole answer."""

    def check(guide: Guide, text: str) -> bool:
        guide = guide.copy()
        ids = tokenizer.encode(text, add_special_tokens=False)
        return guide.fitting(ids) == len(ids) and guide.fitting([*ids, EOS]) == len(ids) + 1

    return check
