"""`adapters list`, on adapters that are whole, damaged, or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import Shell
from support.adapters import make_adapter
from support.tiny_models import make_tiny_model

from mlx_serving.actors.models.adapter_store import AdapterStore
from mlx_serving.actors.models.store import ModelStore


@pytest.fixture
def store(home: Path, tmp_path: Path) -> AdapterStore:
    """With one adapter, `tiny:sql`."""
    make_tiny_model(home / "models" / "tiny", "llama")
    base = ModelStore(home).show("tiny")
    store = AdapterStore(home)
    store.add(make_adapter(tmp_path / "trained", base.path), base, "sql")
    return store


def cut(store: AdapterStore) -> Path:
    """The file of `tiny:sql`, now without its end."""
    weights = store.show("tiny", "sql").weights
    weights.write_bytes(weights.read_bytes()[:-10])
    return weights


def test_a_home_without_adapters_says_how_to_add_one(shell: Shell) -> None:
    listed = shell("adapters", "list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert listed.stderr.startswith("no adapters")
    assert "adapters add" in listed.stderr
    assert json.loads(shell("adapters", "list", "--json").stdout) == []


def test_a_damaged_adapter_is_listed_apart_with_its_reason(shell: Shell, store: AdapterStore) -> None:
    weights = cut(store)
    listed = shell("adapters", "list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert f"tiny:sql cannot be loaded: {weights}" in listed.stderr
    assert "no adapters" not in listed.stderr


def test_whole_adapters_are_listed_beside_a_damaged_one(shell: Shell, store: AdapterStore, tmp_path: Path) -> None:
    store.add(tmp_path / "trained", ModelStore(store.home).show("tiny"), "whole")
    cut(store)
    listed = shell("adapters", "list")
    assert "tiny:whole" in listed.stdout
    assert "tiny:sql" not in listed.stdout
    assert "tiny:sql cannot be loaded" in listed.stderr
    as_json = shell("adapters", "list", "--json")
    assert [each["name"] for each in json.loads(as_json.stdout)] == ["whole"]
    assert "tiny:sql cannot be loaded" in as_json.stderr
