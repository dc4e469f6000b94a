"""Models to measure in process: a folder, or random weights of a real architecture.

`random:1B:4bit` stands for weights made on the device in a moment: speed does not depend on what a model says.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import mlx.core as mx
import mlx_lm.utils
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten

from mlx_serving.actors.generation.mlx_engine import loading
from mlx_serving.actors.generation.mlx_engine.engine import MlxEngine
from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.record import ModelRecord
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.config.schema import Generation, PrefixCache, Speculation
from tools.bench.inside.vocabulary import write_tokenizer

_COMMON = {"max_position_embeddings": 32768, "eos_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": 151936,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "1B": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 128256,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
    },
    "8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "vocab_size": 128256,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "llama",
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 2048,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
    },
}
"""Qwen2.5-0.5B, Llama-3.2-1B, Llama-3-8B, and one to show that everything works."""
PREFIX = "random:"
_DAMPING = 0.02
"""Of what the layers add that a draft model lacks: it says the same in five of six places."""
_ALONE = {"max_rows": 32, "prefix_cache": PrefixCache(enabled=False), "speculation": Speculation(mode="off")}
"""What has a benchmark of its own is switched off in the others."""


@attrs.define(eq=False)
class Subject:
    """A model to measure. `reference` is what mlx_lm runs; no engine changes it."""

    name: str
    record: ModelRecord
    tokenizer: TextTokenizer
    reference: Any
    _load: Callable[[], Any]

    @property
    def vocab_size(self) -> int:
        return self.record.vocab_size

    def ids(self, count: int, seed: int) -> list[int]:
        """A prompt of so many tokens, the same for the same seed, unlike that of any other."""
        drawn: Any = mx.random.randint(1, min(self.vocab_size, 2000), (count,), key=mx.random.key(seed))
        return [int(each) for each in drawn.tolist()]

    @contextmanager
    def engine(self, draft: Subject | None = None, **settings: Any) -> Iterator[MlxEngine]:
        """An engine that is ready to work, with a copy of the weights: it may put other layers in the model's place.

        It neither reuses nor speculates unless the settings say so.
        """
        chosen = Generation(**{**_ALONE, **settings})
        engine = MlxEngine(self.record, chosen, self.tokenizer, draft=draft.record if draft else None)
        found = {each.record.path: each for each in (self, draft) if each is not None}
        with patch.object(loading, "load_weights", lambda record: found[record.path].weights()):
            engine.load()
        try:
            yield engine
        finally:
            engine.close()
            mx.clear_cache()

    def weights(self) -> Any:
        """The model once more."""
        return self._load()


@contextmanager
def subject(name: str) -> Iterator[Subject]:
    """A folder's model, or `random:SHAPE:bf16` or `:4bit`. ValueError for another shape."""
    if not name.startswith(PREFIX):
        path = Path(name)
        record = describe_folder(path, path.name, "a folder")
        yield _subject(path.name, record, lambda: mlx_lm.utils.load_model(path)[0])
        return
    config, kind = shape_of(name)
    model = random_model(config, kind)
    with tempfile.TemporaryDirectory(prefix="bench-") as parent:
        record = described(Path(parent), model, config)
        yield _subject(name, record, lambda: twin(model, config, kind))


def _subject(name: str, record: ModelRecord, load: Callable[[], Any]) -> Subject:
    reference = load()
    loading.widen(reference, record)
    return Subject(name, record, TextTokenizer.load(record.path), reference, load)


def shape_of(name: str) -> tuple[dict[str, Any], str]:
    """Configuration and kind of `random:SHAPE:KIND`."""
    shape, _, kind = name.removeprefix(PREFIX).partition(":")
    if shape not in SHAPES or kind not in ("bf16", "4bit"):
        raise ValueError(f"{name!r} is no such model: random:SHAPE:KIND has one of {', '.join(SHAPES)}; bf16 or 4bit")
    return {**_COMMON, **SHAPES[shape]}, kind


def save_random_model(name: str, folder: Path) -> None:
    """A folder that any server loads."""
    config, kind = shape_of(name)
    model = random_model(config, kind)
    quantization = {"quantization": {"group_size": 64, "bits": 4}} if kind == "4bit" else {}
    folder.mkdir(parents=True)
    write_tokenizer(folder, config["vocab_size"])
    (folder / "config.json").write_text(json.dumps({**config, **quantization}))
    weights: Any = tree_flatten(model.parameters())
    arrays = {key: each for key, each in weights if isinstance(each, mx.array)}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})


def random_model(config: dict[str, Any], kind: str) -> Any:
    """A model, evaluated; the same weights for the same configuration."""
    mx.random.seed(7)
    model = _empty(config, kind)
    mx.eval(model.parameters())
    return model


def twin(model: Any, config: dict[str, Any], kind: str) -> Any:
    """Another model with the same arrays."""
    other = _empty(config, kind)
    other.update(model.parameters())
    return other


@contextmanager
def random_pair(name: str) -> Iterator[tuple[Subject, Subject, Subject]]:
    """A target, a draft model that mostly agrees with it, and one that never does.

    The draft is the first sixth of the target's layers; what the other layers add to them is damped. With tied
    embeddings random weights would say the same token for ever, so they are not tied.
    """
    config, kind = shape_of(name)
    config["tie_word_embeddings"] = False
    layers = max(2, config["num_hidden_layers"] // 6)
    small = {**config, "num_hidden_layers": layers}
    mx.random.seed(7)
    target, stranger = _empty(config, kind, damped_from=layers), _empty(small, kind)
    mx.eval(target.parameters(), stranger.parameters())
    draft = _empty(small, kind)
    draft.update(_first_layers(target.parameters(), layers))
    with tempfile.TemporaryDirectory(prefix="bench-") as parent:
        subjects = []
        for role, model, shape in (("target", target, config), ("draft", draft, small), ("stranger", stranger, small)):
            folder = Path(parent) / role
            folder.mkdir()
            record = described(folder, model, shape)
            subjects.append(_subject(name, record, functools.partial(twin, model, shape, kind)))
        yield subjects[0], subjects[1], subjects[2]


def _first_layers(parameters: dict[str, Any], count: int) -> dict[str, Any]:
    inner = parameters["model"]
    kept = {"embed_tokens": inner["embed_tokens"], "norm": inner["norm"], "layers": inner["layers"][:count]}
    return {**parameters, "model": kept}


def _empty(config: dict[str, Any], kind: str, damped_from: int | None = None) -> Any:
    """A model that is not evaluated yet. What layers from `damped_from` on add is made small."""
    model_class, arguments = mlx_lm.utils._get_classes(config)
    model = model_class(arguments.from_dict(config))
    for layer in model.layers[damped_from:] if damped_from is not None else ():
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight = last.weight * _DAMPING
    model.set_dtype(mx.bfloat16)
    if kind == "4bit":
        quantize(model, 64, 4)
    return model


def described(folder: Path, model: Any, config: dict[str, Any]) -> ModelRecord:
    """A record that stands for the model; the folder holds one of its weights and a tokenizer of its size."""
    write_tokenizer(folder, config["vocab_size"])
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), {"model.norm.weight": mx.ones(config["hidden_size"])})
    record = describe_folder(folder, "random", "random weights")
    pairs: Any = tree_flatten(model.parameters())
    return attrs.evolve(record, parameter_count=sum(each.size for _, each in pairs), dtype="bfloat16")
