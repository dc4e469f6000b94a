"""The models of the equality suite.

`MLX_SERVING_TEST_MODELS` may name folders of further real models, separated as in PATH.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

if TYPE_CHECKING:
    from support.subjects import Subject

SMOLLM2 = "smollm2"
QUANTISED_CACHES = {
    "llama_4bit with 8-bit caches": ("llama_4bit", 8),
    "llama_4bit with 4-bit caches": ("llama_4bit", 4),
}
FOLDERS = {
    Path(path).name: Path(path) for path in os.environ.get("MLX_SERVING_TEST_MODELS", "").split(os.pathsep) if path
}


@pytest.fixture(scope="module")
def subjects(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Subject]]:
    """A function from a name to its subject, made at the first call."""
    from support.subjects import random_prompts, subject_of, text_prompts
    from support.tiny_models import make_tiny_model

    from mlx_serving.actors.models.metadata import describe_folder
    from mlx_serving.actors.models.tokenizer import TextTokenizer

    made: dict[str, Subject] = {}

    def make(name: str) -> Subject:
        if name == SMOLLM2 or name in FOLDERS:
            is_folder = name in FOLDERS
            record = describe_folder(FOLDERS[name], name, "a folder") if is_folder else request.getfixturevalue(name)
            return subject_of(name, record, text_prompts(TextTokenizer.load(record.path)), 3, 1, 16)
        architecture, bits = QUANTISED_CACHES.get(name, (name, None))
        record = make_tiny_model(tmp_path_factory.mktemp("models") / architecture, architecture)
        return subject_of(name, attrs.evolve(record, context_length=1024), random_prompts(), 6, 3, 16, bits)

    def subject(name: str) -> Subject:
        if name not in made:
            made[name] = make(name)
        return made[name]

    yield subject
    for each in made.values():
        each.close()
