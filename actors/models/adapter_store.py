"""The LoRA adapters of a home folder, and those that the settings name.

`$MLX_SERVING_HOME/adapters/BASE/NAME/` holds one each, with BASE written as a model's folder is. Adding copies the two
files; a half-copied adapter is never listed. An adapter of the settings stays where it is.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from mlx_serving.actors.errors import ConfigurationInvalid, InvalidParameter, ModelLoadFailed, ModelNotFound
from mlx_serving.actors.models.adapter import CONFIG, FILES, AdapterRecord, check_base, describe_adapter
from mlx_serving.actors.models.names import folder_name, is_name
from mlx_serving.actors.models.progress import silent
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.storage import empty_folder, exclusive, full_disk_named, land

MARKER = "mlx-serving.json"
"""Beside the adapter's files: its base's fingerprint and its source."""


def parted(full_name: str) -> tuple[str, str]:
    """Base and name of `base:name`. Raises InvalidParameter for anything else."""
    base, _, name = full_name.rpartition(":")
    if not (base and _is_adapter_name(name)):
        raise InvalidParameter(f"{full_name!r} is not BASE:NAME, as in smollm2-135m:sql", field="adapter")
    return base, name


@attrs.frozen
class AdapterStore:
    """All methods may be called from several threads and processes at once. `configured` is `models.adapters`."""

    home: Path
    configured: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        return self.home / "adapters"

    def list(self, base: str | None = None) -> list[AdapterRecord]:
        """Those that can be used, by base and name."""
        found = []
        for its_base, name in sorted(self._names()):
            if base in (None, its_base):
                with contextlib.suppress(ModelLoadFailed, ModelNotFound):
                    found.append(self.show(its_base, name))
        return found

    def problems(self) -> dict[str, str]:
        """Adapters that cannot be used, as `base:name`, and why."""
        found = {}
        for base, name in sorted(self._names()):
            try:
                self.show(base, name)
            except ModelNotFound:
                continue  # removed since its name was read
            except ModelLoadFailed as error:
                found[f"{base}:{name}"] = error.message
        return found

    def names(self) -> dict[str, tuple[str, ...]]:
        """The adapters of each base, without a look at their files."""
        found: dict[str, tuple[str, ...]] = {}
        for base, name in sorted(self._names()):
            found[base] = (*found.get(base, ()), name)
        return found

    def show(self, base: str, name: str) -> AdapterRecord:
        """ModelNotFound with near names, ModelLoadFailed if its files are damaged."""
        folder = self._configured().get((base, name))
        if folder is not None:
            return describe_adapter(folder, base, name, str(folder))
        folder = self._folder_of(base, name)
        if folder is None or not folder.is_dir():
            raise self._not_found(base, name)
        marker = _marker(folder)
        return describe_adapter(folder, base, name, marker["source"], marker["base_fingerprint"])

    def open(self, base: ModelRecord, identity: str) -> AdapterRecord:
        """The adapter of this identity. ModelLoadFailed if it is another one by now, or is for another base."""
        name = identity.partition("@")[0]
        record = self.show(base.name, name)
        if record.identity != identity:
            raise ModelLoadFailed(f"the adapter {base.name}:{name} has just changed; ask again", model=base.name)
        if not record.base_fingerprint:
            check_base(record, base.path)
        elif record.base_fingerprint != base.fingerprint:
            raise ModelLoadFailed(
                f"the adapter {base.name}:{name} was added for another model of that name; add it again",
                model=base.name,
            )
        return record

    def add(self, folder: Path, base: ModelRecord, name: str) -> AdapterRecord:
        """Copy an adapter in, once it is known to suit its base."""
        if not folder.is_dir():
            raise InvalidParameter(f"{folder} is not a folder", field="folder")
        target = self._folder_of(base.name, name)
        if target is None or not _is_adapter_name(name):
            raise InvalidParameter(f"{name!r} cannot name an adapter: use letters, digits, '.', '_', '-'", field="name")
        check_base(describe_adapter(folder, base.name, name, str(folder)), base.path)
        work = self.folder / ".partial" / target.parent.name / name
        with full_disk_named(self.home), exclusive(work.with_name(name + ".lock"), silent):
            if target.exists() or (base.name, name) in self._configured():
                raise InvalidParameter(f"there is an adapter {base.name}:{name} already: remove it first", field="name")
            build = empty_folder(work)
            for file in (CONFIG, *FILES.values()):
                if (folder / file).is_file():
                    shutil.copyfile(folder / file, build / file)
            marker = {"source": str(folder.resolve()), "base_fingerprint": base.fingerprint}
            (build / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
            target.parent.mkdir(parents=True, exist_ok=True)
            land(build, target)
        return self.show(base.name, name)

    def remove(self, base: str, name: str) -> None:
        """ModelNotFound if it is not stored."""
        if (base, name) in self._configured():
            raise InvalidParameter(f"{base}:{name} comes from the setting models.adapters; remove it there")
        folder = self._folder_of(base, name)
        if folder is None or not folder.is_dir():
            raise self._not_found(base, name)
        gone = empty_folder(self.folder / ".partial" / folder.parent.name / f"{name}.removed")
        folder.rename(gone / name)
        shutil.rmtree(gone)

    def _folder_of(self, base: str, name: str) -> Path | None:
        if not (is_name(base) and _is_adapter_name(name)):
            return None
        return self.folder / folder_name(base) / name

    def _configured(self) -> dict[tuple[str, str], Path]:
        """Folders by base and name. Raises ConfigurationInvalid."""
        found = {}
        for text in self.configured:
            full_name, equals, folder = text.partition("=")
            base, _, name = full_name.rpartition(":")
            if not (equals and folder and base and _is_adapter_name(name)):
                raise ConfigurationInvalid(f"models.adapters: write BASE:NAME=FOLDER, not {text!r}")
            found[base, name] = Path(folder).expanduser()
        return found

    def _names(self) -> Iterator[tuple[str, str]]:
        yield from self._configured()
        for base in self.folder.iterdir() if self.folder.is_dir() else ():
            if base.name != ".partial" and base.is_dir():
                for adapter in base.iterdir():
                    if adapter.is_dir() and _is_adapter_name(adapter.name):
                        yield base.name.replace("--", "/", 1), adapter.name

    def _not_found(self, base: str, name: str) -> ModelNotFound:
        others = [each for each in self._names() if each[0] == base]
        same = [each for each, its_name in self._names() if its_name == name]
        if same:
            hint = f"; {name} is an adapter for {', '.join(same)}"
        else:
            near = difflib.get_close_matches(name, [each for _, each in others], n=3, cutoff=0.4)
            hint = f"; there is {', '.join(near)}" if near else ""
        return ModelNotFound(f"there is no adapter {name!r} for {base}{hint}", field="model", model=base)


def _is_adapter_name(name: str) -> bool:
    return is_name(name) and "/" not in name


def _marker(folder: Path) -> dict[str, str]:
    """What was noted when it was added; of an adapter put here by hand nothing is known."""
    try:
        noted = json.loads((folder / MARKER).read_bytes())
        return {key: str(noted[key]) for key in ("source", "base_fingerprint")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"source": str(folder), "base_fingerprint": ""}
