"""Adapters on disk: what is taken in, what is refused, and by which name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from support.adapters import EVERYTHING, as_peft, make_adapter
from support.tiny_models import make_tiny_model

from mlx_serving.actors.errors import ConfigurationInvalid, InvalidParameter, ModelLoadFailed, ModelNotFound
from mlx_serving.actors.models.adapter import describe_adapter
from mlx_serving.actors.models.adapter_store import AdapterStore, parted
from mlx_serving.actors.models.record import ModelRecord

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def trained(base: ModelRecord, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "trained", base.path, keys=EVERYTHING, rank=3)


def rewritten(folder: Path, change: Change) -> Path:
    """The folder with another configuration."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return folder


def test_an_added_adapter_is_listed_shown_and_removed(base: ModelRecord, trained: Path, home: Path) -> None:
    store = AdapterStore(home)
    assert store.list() == []
    record = store.add(trained, base, "sql")
    assert (record.base, record.name, record.form, record.rank, len(record.layers)) == ("llama", "sql", "mlx-lm", 3, 14)
    assert record.source == str(trained)
    assert store.list() == [record] == store.list("llama")
    assert store.list("other") == []
    assert store.names() == {"llama": ("sql",)}
    with pytest.raises(InvalidParameter, match="there is an adapter llama:sql already"):
        store.add(trained, base, "sql")
    store.remove("llama", "sql")
    assert store.list() == []
    with pytest.raises(ModelNotFound):
        store.remove("llama", "sql")


def test_both_forms_say_the_same(base: ModelRecord, trained: Path, tmp_path: Path) -> None:
    ours = describe_adapter(trained, "llama", "a", "")
    theirs = describe_adapter(as_peft(tmp_path / "peft", trained), "llama", "a", "")
    assert theirs.form == "peft"
    assert theirs.scale == ours.scale == 8.0
    sizes = {name: (each.inputs, each.outputs, each.rank) for name, each in ours.layers.items()}
    assert {name: (each.inputs, each.outputs, each.rank) for name, each in theirs.layers.items()} == sizes


def test_an_adapter_for_another_base_is_refused_with_the_first_difference(
    base: ModelRecord, trained: Path, home: Path, tmp_path: Path
) -> None:
    store = AdapterStore(home)
    deeper = tmp_path / "deep"
    arrays: Any = mx.load(str(trained / "adapters.safetensors"))
    deeper.mkdir()
    renamed = {name.replace("layers.1.", "layers.5."): array for name, array in arrays.items()}
    mx.save_safetensors(str(deeper / "adapters.safetensors"), renamed)
    (deeper / "adapter_config.json").write_text((trained / "adapter_config.json").read_text())
    with pytest.raises(ModelLoadFailed, match=r"not for llama: it has no linear layer model.layers.5"):
        store.add(deeper, base, "deep")
    wider = make_tiny_model(tmp_path / "wider", "qwen3")
    weights: Any = mx.load(str(wider.path / "model.safetensors"))
    weights["model.layers.0.self_attn.q_proj.weight"] = mx.zeros((48, 32))
    mx.save_safetensors(str(wider.path / "model.safetensors"), weights)
    with pytest.raises(ModelLoadFailed, match=r"q_proj is 32 to 48 and the adapter's 32 to 32"):
        store.add(trained, wider, "wide")
    assert store.list() == []


def test_peft_adapters_are_refused_for_models_with_interleaved_rows(
    base: ModelRecord, trained: Path, home: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned"
    shutil.copytree(base.path, turned)
    config = json.loads((turned / "config.json").read_text())
    (turned / "config.json").write_text(json.dumps({**config, "rope_traditional": True}))
    other = attrs.evolve(base, path=turned)
    with pytest.raises(ModelLoadFailed, match="interleaved"):
        AdapterStore(home).add(as_peft(tmp_path / "peft", trained), other, "peft")
    assert AdapterStore(home).add(trained, other, "own").form == "mlx-lm"


def test_an_adapter_of_a_model_that_was_replaced_is_refused(base: ModelRecord, trained: Path, home: Path) -> None:
    store = AdapterStore(home)
    identity = store.add(trained, base, "sql").identity
    assert store.open(base, identity).identity == identity
    with pytest.raises(ModelLoadFailed, match="another model of that name"):
        store.open(attrs.evolve(base, fingerprint="other"), identity)


def test_adapters_of_the_settings_stay_where_they_are(base: ModelRecord, trained: Path, home: Path) -> None:
    store = AdapterStore(home, (f"llama:own={trained}",))
    record = store.show("llama", "own")
    assert record.path == trained
    assert store.open(base, record.identity) == record
    with pytest.raises(InvalidParameter, match=r"models\.adapters"):
        store.remove("llama", "own")
    with pytest.raises(ConfigurationInvalid, match="BASE:NAME=FOLDER"):
        AdapterStore(home, ("own=/somewhere",)).names()


def test_an_unknown_adapter_is_told_with_what_there_is(base: ModelRecord, trained: Path, home: Path) -> None:
    store = AdapterStore(home)
    store.add(trained, base, "sql")
    with pytest.raises(ModelNotFound, match="there is sql"):
        store.show("llama", "sqll")
    with pytest.raises(ModelNotFound, match="sql is an adapter for llama"):
        store.show("qwen", "sql")
    for wrong in ("sql", "llama:", ":sql", "llama:a/b"):
        with pytest.raises(InvalidParameter):
            parted(wrong)
    with pytest.raises(ModelNotFound):
        store.show("llama", "../../models")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.update(fine_tune_type="dora"), "fine_tune_type 'dora'"),
        (lambda config: config.update(fine_tune_type="full"), "fine_tune_type 'full'"),
        (lambda config: config.pop("lora_parameters"), "lora_parameters"),
        (lambda config: config["lora_parameters"].update(scale="8"), "scale"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(trained: Path, change: Change, named: str) -> None:
    with pytest.raises(ModelLoadFailed, match=named):
        describe_adapter(rewritten(trained, change), "llama", "a", "")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.update(use_dora=True), "use_dora"),
        (lambda config: config.update(bias="all"), "bias"),
        (lambda config: config.update(modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda config: config.update(rank_pattern={"q_proj": 2}), "rank_pattern"),
        (lambda config: config.update(peft_type="IA3"), "peft_type 'IA3'"),
    ],
)
def test_what_is_not_supported_of_peft_is_refused_by_name(
    trained: Path, tmp_path: Path, change: Change, named: str
) -> None:
    with pytest.raises(ModelLoadFailed, match=named):
        describe_adapter(rewritten(as_peft(tmp_path / "peft", trained), change), "llama", "a", "")


def test_damaged_files_are_told_by_their_path(trained: Path) -> None:
    weights = trained / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelLoadFailed, match=r"adapters\.safetensors"):
        describe_adapter(trained, "llama", "a", "")
    weights.unlink()
    with pytest.raises(ModelLoadFailed, match="holds neither"):
        describe_adapter(trained, "llama", "a", "")


def test_an_adapter_that_cannot_be_used_is_a_problem_and_the_others_are_listed(
    base: ModelRecord, trained: Path, home: Path, tmp_path: Path
) -> None:
    store = AdapterStore(home, (f"llama:gone={tmp_path / 'gone'}",))
    whole = store.add(trained, base, "whole")
    broken = store.add(trained, base, "broken").weights
    broken.write_bytes(broken.read_bytes()[:-10])
    assert store.list() == [whole]
    problems = store.problems()
    assert list(problems) == ["llama:broken", "llama:gone"]
    assert str(broken) in problems["llama:broken"]
    assert "holds neither" in problems["llama:gone"]


def test_embeddings_and_lone_matrices_are_refused(trained: Path) -> None:
    weights = trained / "adapters.safetensors"
    lone = {"model.layers.0.self_attn.q_proj.lora_a": mx.zeros((32, 3))}
    embedding = {f"model.embed_tokens.lora_{part}": mx.zeros((3, 3)) for part in "ab"}
    experts = {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": mx.zeros((4, 3, 32))}
    for tensors, named in ((lone, "only one"), (embedding, "embed_tokens"), (experts, "switch_mlp")):
        mx.save_safetensors(str(weights), tensors)
        with pytest.raises(ModelLoadFailed, match=named):
            describe_adapter(trained, "llama", "a", "")
