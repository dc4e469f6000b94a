"""Greedy tokens are plain mlx-lm's, whichever way they are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from equality.conftest import FOLDERS, QUANTISED_CACHES, SMOLLM2
from support.subjects import Subject
from support.tiny_models import CONFIGURATIONS
from support.ways import MAIN_WAYS, WAYS, Way, drafted_by_folder

_REAL = [SMOLLM2, *FOLDERS]
_MAIN_WAYS_ONLY = ("llama_4bit", "qwen2_4bit", "falcon_h1", "qwen3_next", *QUANTISED_CACHES, *_REAL)


def _ways(name: str) -> dict[str, Way]:
    """Of two real models the first is also drafted by the second."""
    ways = {way: WAYS[way] for way in (MAIN_WAYS if name in _MAIN_WAYS_ONLY else WAYS) if name not in WAYS[way].without}
    if len(FOLDERS) == 2 and name == next(iter(FOLDERS)):
        ways["drafted by the second"] = Way(partial(drafted_by_folder, list(FOLDERS.values())[1]))
    return ways


def _cases() -> list[Any]:
    """A model's ways follow each other, so that its weights are loaded once."""
    return [
        pytest.param(
            name, way, marks=(*way.marks, *([pytest.mark.model] if name in _REAL else [])), id=f"{name}-{title}"
        )
        for name in [*CONFIGURATIONS, *QUANTISED_CACHES, *_REAL]
        for title, way in _ways(name).items()
    ]


@pytest.mark.parametrize(("name", "way"), _cases())
def test_greedy_tokens_are_those_of_mlx_lm(subjects: Callable[[str], Subject], name: str, way: Way) -> None:
    subject = subjects(name)
    answers = way(subject)
    assert answers
    for prompt, expected, found in zip(subject.prompts, subject.expected, answers, strict=False):
        assert found == expected, f"after a prompt of {len(prompt)} tokens"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_answers_depend_on_the_prompts(subjects: Callable[[str], Subject], name: str) -> None:
    assert len({tuple(each) for each in subjects(name).expected}) > 3
