"""Typed access to the key-value fields of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlx_serving.actors.errors import ModelLoadFailed


class Fields:
    """A wrong type is ModelLoadFailed, and so is a missing field unless the getter is given a default."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values = values
        self._path = path

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def wrong(self, what: str) -> ModelLoadFailed:
        return ModelLoadFailed(f"{self._path} cannot be imported: {what}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # some writers give one number a layer
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(f"{key} must be an integer, not {str(value)[:80]!r}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """An integer from 1."""
        value = self.integer(key, default)
        if value < 1:
            raise self.wrong(f"{key} must be at least 1, not {value}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. GGUF holds 32 bits; the shortest decimal with the same bits is what was meant."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise self.wrong(f"{key} must be a number, not {str(value)[:80]!r}")
        return float(str(np.float32(value)))

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"{key} must be true or false, not {str(value)[:80]!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(f"{key} must be text, not {str(value)[:80]!r}")
        return value

    def texts(self, key: str) -> list[str]:
        return self._list(key, str)

    def integers(self, key: str) -> list[int]:
        return self._list(key, int)

    def numbers(self, key: str) -> list[float]:
        return self._list(key, float)

    def _list(self, key: str, kind: type) -> list[Any]:
        value = self._get(key, None)
        if not isinstance(value, list) or (value and not isinstance(value[0], kind)):
            raise self.wrong(f"{key} must be a list of {kind.__name__}")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise self.wrong(f"the field {key} is missing")
        return value
