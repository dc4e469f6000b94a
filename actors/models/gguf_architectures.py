"""The model families that GGUF import knows: mlx-lm's tensor names, and config.json out of GGUF fields.

Facts that differ between the two worlds: ggml's llama family stores the rows of q and k interleaved for its
own rotary embedding; the gemma families store norm weights with one added; Llama 3's rope scaling is stored
as a tensor of factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.errors import ModelLoadFailed
from mlx_serving.actors.models.gguf_fields import Fields
from mlx_serving.actors.models.gguf_file import GGUFFile

Config = dict[str, Any]


@attrs.frozen
class Slot:
    """A tensor of a family: its name in mlx-lm, its shape, and what import must do to it."""

    target: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0
    """Number of heads whose rows ggml interleaved for rotary embedding; 0 leaves the rows as they are."""
    subtract_one: bool = False
    required: bool = True


@attrs.frozen
class Family:
    """What sets one `general.architecture` apart."""

    model_type: str
    norms_plus_one: bool = False
    interleaved: bool = False
    attention_bias: bool | None = False
    """None: the file decides."""
    head_norms: bool = False
    sandwich_norms: bool = False
    own_head: bool = True
    """Whether the output matrix may differ from the embedding."""
    float16: bool = True
    """False where activations outgrow float16, so that weights must stay in a wider type."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", interleaved=True, attention_bias=None),
    "qwen2": Family("qwen2", attention_bias=True),
    "qwen3": Family("qwen3", head_norms=True),
    "gemma": Family("gemma", norms_plus_one=True, own_head=False),
    "gemma2": Family("gemma2", norms_plus_one=True, sandwich_norms=True, own_head=False, float16=False),
    "gemma3": Family("gemma3_text", norms_plus_one=True, sandwich_norms=True, head_norms=True),
}
IGNORED = ("rope_freqs.weight", ".attn_rot_embd")
"""Tensors whose meaning goes into config.json, or that are computed at load."""


@attrs.frozen
class Dimensions:
    """Sizes of a model, checked to be positive and consistent."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int


def family_of(file: GGUFFile) -> Family:
    name = file.fields.text("general.architecture")
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise file.fields.wrong(f"its architecture is {name}; the importable ones are {known}")
    if file.fields.integer(f"{name}.expert_count", 0):
        raise file.fields.wrong("it is a mixture of experts, which import does not support")
    if file.fields.integer("split.count", 0) > 1:
        raise file.fields.wrong("it is one part of several; merge the parts first (gguf-split --merge)")
    return FAMILIES[name]


def dimensions_of(file: GGUFFile) -> Dimensions:
    fields, prefix = file.fields, file.fields.text("general.architecture")
    hidden = fields.size(f"{prefix}.embedding_length")
    heads = fields.size(f"{prefix}.attention.head_count")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise fields.wrong("the tensor token_embd.weight is missing")
    layers = fields.size(f"{prefix}.block_count")
    if layers > len(file.tensors):
        raise fields.wrong(f"it lists {layers} layers and holds {len(file.tensors)} tensors")
    head_dim = fields.size(f"{prefix}.attention.key_length", max(1, hidden // heads))
    rotary = fields.size(f"{prefix}.rope.dimension_count", head_dim)
    if rotary != head_dim or fields.size(f"{prefix}.attention.value_length", head_dim) != head_dim:
        raise fields.wrong("keys, values and rotary embedding differ in size, which import does not support")
    return Dimensions(
        layers=layers,
        hidden=hidden,
        intermediate=fields.size(f"{prefix}.feed_forward_length"),
        heads=heads,
        kv_heads=fields.size(f"{prefix}.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary=embedding.shape[0],
        context=fields.size(f"{prefix}.context_length"),
    )


def slots(family: Family, sizes: Dimensions) -> Iterator[tuple[str, Slot]]:
    """Every tensor the family can have: its GGUF name and where it goes."""
    norm = {"subtract_one": family.norms_plus_one}
    yield "token_embd.weight", Slot("model.embed_tokens.weight", (sizes.vocabulary, sizes.hidden))
    yield "output_norm.weight", Slot("model.norm.weight", (sizes.hidden,), **norm)
    if family.own_head:
        yield "output.weight", Slot("lm_head.weight", (sizes.vocabulary, sizes.hidden), required=False)
    for layer in range(sizes.layers):
        for name, slot in _layer_slots(family, sizes):
            yield f"blk.{layer}.{name}", attrs.evolve(slot, target=f"model.layers.{layer}.{slot.target}")


def _layer_slots(family: Family, sizes: Dimensions) -> Iterator[tuple[str, Slot]]:
    yield from _attention_slots(family, sizes)
    for name in ("gate", "up"):
        yield f"ffn_{name}.weight", Slot(f"mlp.{name}_proj.weight", (sizes.intermediate, sizes.hidden))
    yield "ffn_down.weight", Slot("mlp.down_proj.weight", (sizes.hidden, sizes.intermediate))
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if family.sandwich_norms:
        norms |= {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    for name, target in norms.items():
        yield f"{name}.weight", Slot(f"{target}.weight", (sizes.hidden,), subtract_one=family.norms_plus_one)


def _attention_slots(family: Family, sizes: Dimensions) -> Iterator[tuple[str, Slot]]:
    for letter, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads)):
        rows = heads * sizes.head_dim
        interleaved = heads if family.interleaved and letter != "v" else 0
        target = f"self_attn.{letter}_proj"
        yield f"attn_{letter}.weight", Slot(f"{target}.weight", (rows, sizes.hidden), interleaved)
        if family.attention_bias is not False:
            required = bool(family.attention_bias)
            yield f"attn_{letter}.bias", Slot(f"{target}.bias", (rows,), interleaved, required=required)
        if family.head_norms and letter != "v":
            yield (
                f"attn_{letter}_norm.weight",
                Slot(f"self_attn.{letter}_norm.weight", (sizes.head_dim,), subtract_one=family.norms_plus_one),
            )
    yield "attn_output.weight", Slot("self_attn.o_proj.weight", (sizes.hidden, sizes.heads * sizes.head_dim))
    if family.attention_bias is None:
        yield "attn_output.bias", Slot("self_attn.o_proj.bias", (sizes.hidden,), required=False)


def config_of(file: GGUFFile, family: Family, sizes: Dimensions) -> Config:
    """config.json as mlx-lm reads it, less quantisation and token ids."""
    fields, prefix = file.fields, file.fields.text("general.architecture")
    return {
        "model_type": family.model_type,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "intermediate_size": sizes.intermediate,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": fields.number(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number(f"{prefix}.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file, prefix, sizes),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        **_gemma_settings(fields, family, sizes),
    }


def _gemma_settings(fields: Fields, family: Family, sizes: Dimensions) -> Config:
    # The 27B models, known by their depth, scale attention by hidden size over heads, others by head size.
    if family.model_type == "gemma2":
        return {
            "attn_logit_softcapping": fields.number("gemma2.attn_logit_softcapping", 50.0),
            "final_logit_softcapping": fields.number("gemma2.final_logit_softcapping", 30.0),
            "query_pre_attn_scalar": sizes.hidden / sizes.heads if sizes.layers == 46 else sizes.head_dim,
            "sliding_window": fields.size("gemma2.attention.sliding_window", 4096),
        }
    if family.model_type == "gemma3_text":
        return {
            "query_pre_attn_scalar": sizes.hidden / sizes.heads if sizes.layers == 62 else sizes.head_dim,
            "rope_local_base_freq": fields.number("gemma3.rope.freq_base_swa", 10000.0),
            "sliding_window": fields.size("gemma3.attention.sliding_window", 1024),
            "sliding_window_pattern": 6,
        }
    return {}


def _rope_scaling(file: GGUFFile, prefix: str, sizes: Dimensions) -> Config | None:
    fields = file.fields
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, fields.number(f"{prefix}.rope.freq_base", 10000.0), sizes.head_dim)
    kind = fields.text(f"{prefix}.rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling: Config = {"rope_type": kind, "factor": fields.number(f"{prefix}.rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = fields.size(f"{prefix}.rope.scaling.original_context_length")
    elif kind != "linear":
        raise fields.wrong(f"rope scaling of type {kind} is not supported (linear, yarn and Llama 3's are)")
    return scaling


def _llama3_scaling(file: GGUFFile, theta: float, head_dim: int) -> Config:
    """The settings that give the stored factors; published Llama 3 models differ only in `factor`."""
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.kind.name != "F32" or tensor.shape != (head_dim // 2,):
        raise file.fields.wrong(f"rope_freqs.weight must be {head_dim // 2} numbers of type F32")
    stored = np.frombuffer(file.raw(tensor, 0, 1).tobytes(), "<f4")
    scaling: Config = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not np.allclose(stored, llama3_factors(scaling, theta, head_dim), rtol=1e-3):
        raise file.fields.wrong("the rope factors in rope_freqs.weight do not follow Llama 3's rule")
    return scaling


def llama3_factors(scaling: Config, theta: float, head_dim: int) -> NDArray[np.float64]:
    """By how much Llama 3 slows each rotary frequency: fast ones not at all, slow ones by `factor`."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    mix = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - mix) / scaling["factor"] + mix))


def match(file: GGUFFile, family: Family, sizes: Dimensions) -> dict[str, Slot]:
    """The slot of each tensor that goes into the model; ModelLoadFailed names a missing or odd one."""
    matched = {}
    for name, slot in slots(family, sizes):
        tensor = file.tensors.get(name)
        if tensor is None:
            if slot.required:
                raise file.fields.wrong(f"the tensor {name} is missing")
            continue
        if tensor.shape != slot.shape:
            raise file.fields.wrong(f"{name} has the shape {list(tensor.shape)} instead of {list(slot.shape)}")
        matched[name] = slot
    unknown = [name for name in file.tensors if name not in matched and not name.endswith(IGNORED)]
    if unknown:
        raise _unknown_tensors(file, unknown)
    return matched


def _unknown_tensors(file: GGUFFile, names: list[str]) -> ModelLoadFailed:
    family = file.fields.text("general.architecture")
    return file.fields.wrong(f"the {family} family has no tensor {names[0]} ({len(names)} such tensors)")
