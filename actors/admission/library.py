"""What is on disk, as admission knows it: models, adapters, and what the models take in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlx_serving.actors.errors import UntrustedPath
from mlx_serving.actors.models.adapter import AdapterRecord
from mlx_serving.actors.models.adapter_store import AdapterStore, parted
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.config.schema import Models as ModelSettings


class Library:
    """`read`, `resolve` and what concerns adapters touch the disk, and belong into the rendering pool."""

    def __init__(self, home: Path, settings: ModelSettings) -> None:
        self._store = ModelStore(home)
        self._trusted = [Path(folder).expanduser() for folder in settings.trusted_folders]
        self.adapters = AdapterStore(home, settings.adapters)
        self.records: Mapping[str, ModelRecord] = {}
        self._adapters: Mapping[str, tuple[str, ...]] = self.adapters.names()
        self._weights: dict[str, int] = {}

    def read(self) -> None:
        """Look again at what is there."""
        self.records = {record.name: record for record in self._store.list()}
        self._adapters = self.adapters.names()

    def has(self, name: str) -> bool:
        """Whether a model of this name is on disk; one look at a folder."""
        return self._store.has(name)

    def resolve(self, name: str) -> ModelRecord:
        """A stored model, or a trusted folder."""
        return self._store.resolve(name, self._trusted)

    def adapters_of(self, base: str) -> tuple[str, ...]:
        """Names of the adapters that requests may choose with a model."""
        return self._adapters.get(base, ())

    def weight_bytes(self, record: ModelRecord) -> int:
        """What a model's weights take in memory: as it was measured, or else their size on disk."""
        return self._weights.get(record.fingerprint, record.bytes)

    def weighed(self, fingerprint: str, weight_bytes: int) -> None:
        """A model with this fingerprint was loaded and takes so much."""
        self._weights[fingerprint] = weight_bytes

    def add_adapter(self, folder: str, base: str, name: str) -> AdapterRecord:
        """Copy an adapter from a trusted folder into the store."""
        path = Path(folder).expanduser().resolve()
        roots = [root.resolve() for root in self._trusted]
        if not any(path.is_relative_to(root) for root in roots):
            raise UntrustedPath(f"{folder} is outside the trusted folders; add it to them", field="folder")
        return self.adapters.add(path, self.resolve(base), name)

    def remove_adapter(self, full_name: str) -> None:
        self.adapters.remove(*parted(full_name))
