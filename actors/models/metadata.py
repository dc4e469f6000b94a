"""Describes a model folder from config.json and the headers of its weight files, without loading a weight."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.record import ModelRecord, Quantization
from mlx_serving.actors.models.safetensors_file import StoredTensor, read_header, read_samples
from mlx_serving.actors.models.tokenizer import chat_templates, tokenizer_file, written_eos_ids

Config = Mapping[str, Any]
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "model_max_length",
)
_NO_ATTENTION = ("linear_attention", "mamba", "recurrent", "conv")


def describe_folder(folder: Path, name: str, source: str) -> ModelRecord:
    """ModelLoadFailed names the file that is missing, damaged or does not say what it must.

    Its tokenizer is not read: for up to half a second no other thread of the process would run.
    """
    config, raw_config = read_object(folder / "config.json")
    text = _text_config(config)
    files = weight_files(folder)
    headers = [read_header(path) for path in files]
    tensors = [tensor for listed, _ in headers for tensor in listed]
    quantization = _quantization(folder, config, text)
    dtype = _float_type(tensors)
    tokenizer_file(folder)
    return ModelRecord(
        name=name,
        path=folder,
        source=source,
        architecture=_text(folder, config, "model_type"),
        parameter_count=_parameter_count(folder, tensors, config, quantization),
        dtype=dtype,
        quantization=quantization,
        context_length=_first_integer(folder, text, _CONTEXT_KEYS),
        vocab_size=_vocabulary(folder, text, tensors),
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        num_layers=_layers(folder, text),
        kv_bytes_per_token=_kv_bytes(folder, text, _ITEM_BYTES[dtype]),
        eos_token_ids=tuple(sorted(written_eos_ids(folder))),
        is_vision="vision_config" in config or "vision_tower" in config,
        has_chat_template=bool(chat_templates(folder)),
        fingerprint=_fingerprint(raw_config, files, headers),
    )


def read_object(path: Path) -> tuple[dict[str, Any], bytes]:
    """A file of one JSON object, and its bytes. ModelLoadFailed names the file."""
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
    except OSError as error:
        raise ModelLoadFailed(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadFailed(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadFailed(f"{path} must hold a JSON object")
    return value, raw


def weight_files(folder: Path) -> list[Path]:
    """The files mlx_lm loads, all of those that the index lists among them."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelLoadFailed(f"{folder} holds no model*.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadFailed(f"{index} is not a valid index: {error}") from error
        missing = sorted(listed - {path.name for path in files})
        if missing:
            raise ModelLoadFailed(f"{folder} lacks {missing[0]}, which {index.name} lists")
    return files


def _text_config(config: Config) -> Config:
    """Settings of the language model, which models with vision keep in an object of their own."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return {**config, **config[key]}
    return config


def _text(folder: Path, config: Config, key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str):
        raise ModelLoadFailed(f"{folder / 'config.json'} must name its {key}")
    return value


def _first_integer(folder: Path, config: Config, keys: Sequence[str], default: int | None = None) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelLoadFailed(f"{folder / 'config.json'} must say {keys[0]} as a positive integer, not {value!r}")
    return value


def _quantization(folder: Path, config: Config, text: Config) -> Quantization | None:
    for holder in (config, text):
        for key in ("quantization", "quantization_config"):
            setting = holder.get(key)
            if isinstance(setting, dict) and "bits" in setting:
                return _width(folder, setting)
    return None


def _width(folder: Path, setting: Config) -> Quantization:
    mode = setting.get("mode") or setting.get("quant_method") or "affine"
    bits = _first_integer(folder, setting, ("bits",))
    return Quantization(bits, _first_integer(folder, setting, ("group_size",)), str(mode))


def _float_type(tensors: Sequence[StoredTensor]) -> str:
    """The type of most floating point numbers; beside packed weights these are their scales."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in _FLOATS:
            sizes[_FLOATS[tensor.dtype]] += tensor.bytes
    return sizes.most_common(1)[0][0] if sizes else "float16"


def _parameter_count(folder: Path, tensors: Sequence[StoredTensor], config: Config, usual: Quantization | None) -> int:
    """Packed weights count as many as they stand for; what serves to unpack them does not count."""
    if usual is None:
        return sum(tensor.elements for tensor in tensors)
    setting = config.get("quantization") or config.get("quantization_config") or {}
    own = {name: _width(folder, value) for name, value in setting.items() if isinstance(value, dict)}
    modules: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        module, _, part = tensor.name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    return sum(_module_count(parts, own.get(module, usual)) for module, parts in modules.items())


def _module_count(parts: Mapping[str, StoredTensor], width: Quantization) -> int:
    """MLX packs a module's `weight` beside its `scales`; AWQ and GPTQ call the packed one `qweight`."""
    packed, scales = parts.get("qweight", parts.get("weight")), parts.get("scales")
    if packed is None or scales is None:
        return sum(tensor.elements for tensor in parts.values())
    extra = parts["bias"].elements if "bias" in parts else 0
    if "qweight" in parts:
        return packed.elements * 32 // width.bits + extra
    return scales.elements * width.group_size + extra


def _vocabulary(folder: Path, text: Config, tensors: Sequence[StoredTensor]) -> int:
    """The width of the logits."""
    for tensor in tensors:
        if tensor.name.endswith(("embed_tokens.weight", "wte.weight", "tok_embeddings.weight")):
            return tensor.shape[0]
    return _first_integer(folder, text, ("vocab_size",))


def _layers(folder: Path, text: Config) -> int:
    return _first_integer(folder, text, ("num_hidden_layers", "n_layers", "n_layer", "num_layers"))


def _kv_bytes(folder: Path, text: Config, item_bytes: int) -> int:
    """Keys and values of all layers that attend, or the one compressed row of latent attention."""
    kinds = text.get("layer_types")
    layers = _layers(folder, text)
    if isinstance(kinds, list) and len(kinds) == layers:
        layers = sum(kind not in _NO_ATTENTION for kind in kinds)
    if text.get("kv_lora_rank") is not None:
        latent = _first_integer(folder, text, ("kv_lora_rank",))
        return layers * (latent + _first_integer(folder, text, ("qk_rope_head_dim",))) * item_bytes
    heads = _first_integer(folder, text, ("num_attention_heads", "n_heads", "n_head"))
    kv_heads = _first_integer(folder, text, ("num_key_value_heads", "n_kv_heads", "num_kv_heads"), heads)
    hidden = _first_integer(folder, text, ("hidden_size", "d_model", "n_embd", "dim"))
    head_dim = _first_integer(folder, text, ("head_dim",), hidden // heads)
    return 2 * layers * kv_heads * head_dim * item_bytes


def _fingerprint(config: bytes, files: Sequence[Path], headers: Sequence[tuple[list[StoredTensor], bytes]]) -> str:
    """Names the contents: fine-tunes of one model differ in nothing but the numbers, so some of each tensor count."""
    digest = hashlib.sha256(config)
    for path, (tensors, header) in zip(files, headers, strict=True):
        digest.update(f"{path.name}:{path.stat().st_size}:{len(header)}:".encode())
        digest.update(header)
        for sample in read_samples(path, tensors, len(header)):
            digest.update(sample)
    return digest.hexdigest()
