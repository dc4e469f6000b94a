"""How a stored model is shown."""

from __future__ import annotations

import attrs

from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.frontends.cli.console import note
from mlx_serving.frontends.cli.figures import quantity, size


def described(record: ModelRecord) -> dict[str, object]:
    """All that is known of the model, for JSON; `path` is the folder that MLX can load as it stands."""
    return attrs.asdict(record) | {"path": str(record.path)}


def width(record: ModelRecord) -> str:
    """How the weights are stored: 4-bit, groups of 32."""
    packed = record.quantization
    return record.dtype if packed is None else f"{packed.bits}-bit, groups of {packed.group_size}"


def say_stored(record: ModelRecord) -> None:
    """One line on stderr: the model is here."""
    what = f"{quantity(record.parameter_count)} parameters, {width(record)}, {size(record.bytes)}"
    note(f"{record.name} is in {record.path} ({what})")
