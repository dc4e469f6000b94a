"""LoRA adapters: what mlx-lm computes, for rows with different ones side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from support.adapters import ATTENTION, EVERYTHING, as_peft, make_adapter
from support.tiny_models import make_tiny_model

from mlx_serving.actors.errors import ModelLoadFailed, ModelNotFound
from mlx_serving.actors.generation.mlx_engine.adapters import NONE, Adapters
from mlx_serving.actors.generation.mlx_engine.linear_layers import choose_products, dense_from
from mlx_serving.actors.models.adapter import AdapterRecord, describe_adapter
from mlx_serving.actors.models.record import ModelRecord

PROMPTS = ([1, 2, 3, 4], [9, 8, 7, 6], [5, 5, 5, 5], [40, 30, 20, 10])


class Shelf:
    """Adapters by name, as a store would find them."""

    def __init__(self, base: ModelRecord, folder: Path) -> None:
        self.base = base
        self.folder = folder
        self.records: dict[str, AdapterRecord] = {}

    def put(self, name: str, folder: Path) -> Path:
        self.records[name] = describe_adapter(folder, self.base.name, name, "")
        return folder

    def make(self, name: str, **options: Any) -> Path:
        return self.put(name, make_adapter(self.folder / name, self.base.path, **options))

    def find(self, name: str) -> AdapterRecord:
        if name not in self.records:
            raise ModelNotFound(name)
        return self.records[name]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "llama", "llama")


@pytest.fixture
def shelf(base: ModelRecord, tmp_path: Path) -> Shelf:
    return Shelf(base, tmp_path)


def plain(base: ModelRecord) -> Any:
    model, _ = load_model(base.path)
    return model


def adapted_by_mlx_lm(base: ModelRecord, folder: Path) -> Any:
    model = load_adapters(plain(base), str(folder))
    model.eval()
    return model


def logits(model: Any, rows: tuple[list[int], ...] | list[list[int]]) -> mx.array:
    out: mx.array = model(mx.array(list(rows)))
    return out


def close(one: mx.array, other: mx.array) -> bool:
    return bool(mx.allclose(one, other, rtol=1e-4, atol=1e-4))


def test_rows_with_different_adapters_and_with_none_share_a_forward_pass(base: ModelRecord, shelf: Shelf) -> None:
    first = shelf.make("first", seed=1, rank=4)
    second = shelf.make("second", seed=2, rank=8, keys=EVERYTHING, layers=1, scale=20.0)
    model = plain(base)
    adapters = Adapters(model, shelf.find, 4)
    slots = [NONE, adapters.acquire("first"), adapters.acquire("second"), NONE]
    adapters.select(slots)
    together = logits(model, PROMPTS)
    models = [plain(base), adapted_by_mlx_lm(base, first), adapted_by_mlx_lm(base, second), plain(base)]
    for row, (reference, prompt) in enumerate(zip(models, PROMPTS, strict=True)):
        assert close(together[row], logits(reference, [prompt])[0])
    assert not close(together[1], logits(models[0], [PROMPTS[1]])[0]), "the adapter changes something"


def test_rows_of_one_adapter_compute_what_mlx_lm_does(base: ModelRecord, shelf: Shelf) -> None:
    folder = shelf.make("one", keys=(*EVERYTHING, "lm_head"))
    model = plain(base)
    adapters = Adapters(model, shelf.find, 4)
    adapters.select([adapters.acquire("one")] * 4)
    reference = adapted_by_mlx_lm(base, folder)
    assert "lm_head" in reference.keys()  # noqa: SIM118 (a module)
    assert close(logits(model, PROMPTS), logits(reference, PROMPTS))


def test_without_a_selected_adapter_nothing_is_computed_anew(base: ModelRecord, shelf: Shelf) -> None:
    shelf.make("one")
    model = plain(base)
    before = logits(model, PROMPTS)
    adapters = Adapters(model, shelf.find, 4)
    adapters.acquire("one")
    adapters.select([NONE] * 4)
    assert mx.array_equal(logits(model, PROMPTS), before)
    attention = model.model.layers[1].self_attn.q_proj
    attention.adapter_stacks.change = None  # would fail if it were called
    logits(model, PROMPTS)


def test_an_adapter_in_the_form_of_peft_computes_the_same(base: ModelRecord, shelf: Shelf) -> None:
    folder = shelf.make("mlx", keys=EVERYTHING)
    shelf.put("peft", as_peft(shelf.folder / "peft", folder))
    model = plain(base)
    adapters = Adapters(model, shelf.find, 4)
    adapters.select([adapters.acquire("mlx")])
    ours = logits(model, [PROMPTS[0]])
    adapters.select([adapters.acquire("peft")])
    assert close(logits(model, [PROMPTS[0]]), ours)


def test_quantised_layers_are_adapted_and_keep_what_made_them_faster(base: ModelRecord, shelf: Shelf) -> None:
    import mlx.nn

    folder = shelf.make("one", keys=EVERYTHING)
    quantize: Any = mlx.nn.quantize  # type: ignore[attr-defined]
    model, reference = plain(base), plain(base)
    for each in (model, reference):
        quantize(each, group_size=32, bits=4)
    reference = load_adapters(reference, str(folder))
    reference.eval()
    assert choose_products(model, dense_from(1))
    adapters = Adapters(model, shelf.find, 4)
    adapters.select([NONE, adapters.acquire("one")])
    ours = logits(model, PROMPTS[:2])
    assert close(ours[1], logits(reference, [PROMPTS[1]])[0])
    assert type(model.model.layers[1].self_attn.q_proj).__name__ == "AdaptedChoosingQuantizedLinear"


def test_a_loaded_adapter_is_shared_and_unused_ones_leave_for_others(base: ModelRecord, shelf: Shelf) -> None:
    references = {}
    for seed, name in enumerate(("a", "b", "c")):
        references[name] = adapted_by_mlx_lm(base, shelf.make(name, seed=seed, rank=2 + seed))
    model = plain(base)
    adapters = Adapters(model, shelf.find, 2)
    slots = {name: adapters.acquire(name) for name in ("a", "b")}
    assert adapters.acquire("a") == slots["a"]
    adapters.release(slots["b"])
    slots["c"] = adapters.acquire("c")
    assert slots["c"] == slots["b"], "b had no user"
    assert adapters.names == ["a", "c"]
    slots["b"] = adapters.acquire("b")
    assert len(adapters.names) == 3, "all are in use: one more comes in"
    adapters.select([slots["a"], slots["b"], slots["c"]])
    together = logits(model, PROMPTS[:3])
    for row, name in enumerate(("a", "b", "c")):
        assert close(together[row], logits(references[name], [PROMPTS[row]])[0])
    assert len({adapters.identity(slot) for slot in [NONE, *slots.values()]}) == 4


def test_a_changed_adapter_is_another_one(base: ModelRecord, shelf: Shelf) -> None:
    shelf.make("one", seed=1)
    adapters = Adapters(plain(base), shelf.find, 4)
    before = adapters.acquire("one")
    shelf.put("one", make_adapter(shelf.folder / "newer", base.path, seed=2))
    assert adapters.acquire("one") != before


def test_an_adapter_for_another_base_is_refused_and_changes_nothing(
    base: ModelRecord, shelf: Shelf, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", "gemma3_text")
    foreign = make_adapter(tmp_path / "foreign", other.path, keys=("self_attn.q_proj", "self_attn.o_proj"))
    shelf.put("foreign", foreign)
    model = plain(base)
    adapters = Adapters(model, shelf.find, 4)
    deeper = describe_adapter(make_adapter(tmp_path / "deep", base.path), base.name, "deep", "")
    layers = {f"model.layers.7.{key}": next(iter(deeper.layers.values())) for key in ATTENTION}
    shelf.records["deep"] = AdapterRecord(
        "deep", base.name, deeper.path, "mlx-lm", layers, 1.0, deeper.bytes, "other", deeper.source
    )
    with pytest.raises(ModelLoadFailed, match="no such layer"):
        adapters.acquire("deep")
    with pytest.raises(ModelNotFound):
        adapters.acquire("unknown")
    assert adapters.names == []
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear"
