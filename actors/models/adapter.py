"""LoRA adapters on disk: what their two files say, and whether they suit a base model. No weight is loaded.

Two forms are read. mlx-lm's: `adapters.safetensors` with `LAYER.lora_a` [in, rank] and `LAYER.lora_b` [rank, out].
PEFT's: `adapter_model.safetensors` with `base_model.model.LAYER.lora_A.weight` [rank, in] and `lora_B.weight`
[out, rank]. What neither of us can serve (DoRA, full weights, embeddings, experts, biases) is refused by name.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import attrs

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.messages.values import AdapterInfo
from mlx_serving.actors.models.metadata import read_object, weight_files
from mlx_serving.actors.models.safetensors_file import StoredTensor, read_header

Form = Literal["mlx-lm", "peft"]
CONFIG = "adapter_config.json"
FILES: dict[Form, str] = {"mlx-lm": "adapters.safetensors", "peft": "adapter_model.safetensors"}
_NAMES: dict[Form, re.Pattern[str]] = {
    "mlx-lm": re.compile(r"(?P<layer>.+)\.lora_(?P<part>[ab])"),
    "peft": re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight"),
}
_LARGEST_RANK = 1024


@attrs.frozen
class AdaptedLayer:
    """One linear layer that an adapter changes: its sizes, and the names of the two tensors."""

    inputs: int
    outputs: int
    rank: int
    a: str
    b: str


@attrs.frozen
class AdapterRecord:
    """An adapter of the model `base`. `base_fingerprint` is empty when nobody noted it."""

    name: str
    base: str
    path: Path
    form: Form
    layers: Mapping[str, AdaptedLayer]
    scale: float
    """What the product of A and B is multiplied with, in every layer."""
    bytes: int
    fingerprint: str
    """Of the configuration, the tensors' names and shapes, and the time of the last change."""
    source: str = ""
    base_fingerprint: str = ""

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def weights(self) -> Path:
        return self.path / FILES[self.form]

    @property
    def identity(self) -> str:
        """Its name and contents: `NAME@FINGERPRINT`."""
        return f"{self.name}@{self.fingerprint[:16]}"

    def info(self) -> AdapterInfo:
        """The record as other actors see it."""
        return AdapterInfo(
            self.name, self.base, self.form, self.rank, len(self.layers), self.bytes, self.fingerprint, self.source
        )


def describe_adapter(folder: Path, base: str, name: str, source: str, base_fingerprint: str = "") -> AdapterRecord:
    """ModelLoadFailed names what is missing, damaged or not supported."""
    form = _form(folder)
    weights = folder / FILES[form]
    states = [path.stat() for path in (weights, folder / CONFIG) if path.is_file()]
    layers, scale, digest = _read(folder, form, tuple((state.st_mtime_ns, state.st_size) for state in states))
    return AdapterRecord(
        name=name,
        base=base,
        path=folder,
        form=form,
        layers=layers,
        scale=scale,
        bytes=weights.stat().st_size,
        fingerprint=digest,
        source=source,
        base_fingerprint=base_fingerprint,
    )


def check_base(adapter: AdapterRecord, folder: Path) -> None:
    """ModelLoadFailed when a layer of the adapter is not one of the model in `folder`, or has another shape."""
    config, _ = read_object(folder / "config.json")
    headers = [read_header(path)[0] for path in weight_files(folder)]
    # On disk a layer may stand under another prefix than in the loaded model.
    tensors = {_tail(tensor.name): tensor for header in headers for tensor in header if "vision" not in tensor.name}
    for layer, adapted in adapter.layers.items():
        weight = tensors.get(_tail(f"{layer}.weight"))
        if weight is None or len(weight.shape) != 2:
            raise _unsuitable(adapter, f"it has no linear layer {layer}")
        outputs, inputs = weight.shape[0], _inputs(weight, tensors.get(_tail(f"{layer}.scales")), config, layer)
        if (inputs, outputs) != (adapted.inputs, adapted.outputs):
            raise _unsuitable(
                adapter, f"its {layer} is {inputs} to {outputs} and the adapter's {adapted.inputs} to {adapted.outputs}"
            )
    if adapter.form == "peft" and config.get("rope_traditional") and _turns(adapter.layers):
        raise _unsuitable(adapter, "its query and key rows are interleaved (rope_traditional), and PEFT's are not")


def _unsuitable(adapter: AdapterRecord, why: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"the adapter {adapter.name} is not for {adapter.base}: {why}", model=adapter.base)


def _tail(name: str) -> str:
    return name[name.find("layers.") :] if "layers." in name else name


def _turns(layers: Iterable[str]) -> bool:
    return any(layer.endswith(("q_proj", "k_proj")) for layer in layers)


def _inputs(weight: StoredTensor, scales: StoredTensor | None, config: Mapping[str, Any], layer: str) -> int:
    """The input size of a linear layer, packed or not."""
    if scales is None:
        return weight.shape[1]
    settings = config.get("quantization") or config.get("quantization_config") or {}
    own = settings.get(layer)
    width = own if isinstance(own, dict) else settings
    return scales.shape[1] * int(width.get("group_size", 0))


def _form(folder: Path) -> Form:
    for form, file in FILES.items():
        if (folder / file).is_file():
            return form
    raise ModelLoadFailed(f"{folder} holds neither {' nor '.join(FILES.values())}")


def _mlx_scale(folder: Path, config: Mapping[str, Any]) -> float:
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise ModelLoadFailed(f"{folder / CONFIG}: fine_tune_type {kind!r} is not supported, only lora")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise ModelLoadFailed(f"{folder / CONFIG} must have the object lora_parameters")
    return _number(folder, parameters, "scale")


def _peft_scale(folder: Path, config: Mapping[str, Any]) -> float:
    """alpha over rank (over its root with rslora), the same for all layers."""
    neutral: dict[str, tuple[Any, ...]] = {
        "use_dora": (False, None),
        "bias": ("none", None),
        "modules_to_save": (None, []),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "fan_in_fan_out": (False, None),
        "trainable_token_indices": (None, []),
    }
    if config.get("peft_type") != "LORA":
        raise ModelLoadFailed(f"{folder / CONFIG}: peft_type {config.get('peft_type')!r} is not supported, only LORA")
    for name, values in neutral.items():
        if name in config and config[name] not in values:
            raise ModelLoadFailed(f"{folder / CONFIG}: {name} {config[name]!r} is not supported")
    rank, alpha = _number(folder, config, "r"), _number(folder, config, "lora_alpha")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(folder: Path, config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value == 0:
        raise ModelLoadFailed(f"{folder / CONFIG} must say {key} as a number, not {value!r}")
    return float(value)


def _layers(folder: Path, form: Form, tensors: Iterable[StoredTensor]) -> dict[str, AdaptedLayer]:
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        found = _NAMES[form].fullmatch(tensor.name)
        if found is None or len(tensor.shape) != 2 or tensor.dtype not in ("F16", "BF16", "F32"):
            raise ModelLoadFailed(f"{folder / FILES[form]}: the tensor {tensor.name} is not supported")
        pairs.setdefault(found["layer"], {})[found["part"].lower()] = tensor
    if not pairs:
        raise ModelLoadFailed(f"{folder / FILES[form]} holds no layer")
    return {layer: _layer(folder, form, layer, parts) for layer, parts in pairs.items()}


def _layer(folder: Path, form: Form, layer: str, parts: Mapping[str, StoredTensor]) -> AdaptedLayer:
    if layer.endswith(("embed_tokens", "wte", "tok_embeddings")):
        raise ModelLoadFailed(f"{folder / FILES[form]}: an adapted embedding ({layer}) is not supported")
    if set(parts) != {"a", "b"}:
        raise ModelLoadFailed(f"{folder / FILES[form]}: {layer} has only one of its two matrices")
    a, b = (parts[part].shape if form == "mlx-lm" else parts[part].shape[::-1] for part in "ab")
    if a[1] != b[0] or not 0 < a[1] <= _LARGEST_RANK:
        raise ModelLoadFailed(f"{folder / FILES[form]}: the matrices of {layer} have the ranks {a[1]} and {b[0]}")
    return AdaptedLayer(a[0], b[1], a[1], parts["a"].name, parts["b"].name)


@functools.lru_cache(maxsize=256)
def _read(
    folder: Path, form: Form, states: tuple[tuple[int, int], ...]
) -> tuple[Mapping[str, AdaptedLayer], float, str]:
    """The layers, the scale and the fingerprint.

    `states` are change times and sizes of the files, which name their contents.
    """
    config, _ = read_object(folder / CONFIG)
    tensors, header = read_header(folder / FILES[form])
    scale = _mlx_scale(folder, config) if form == "mlx-lm" else _peft_scale(folder, config)
    layers = MappingProxyType(_layers(folder, form, tensors))
    return layers, scale, hashlib.sha256(repr((sorted(config.items()), states)).encode() + header).hexdigest()
