"""Tiny random GGUF files of every importable family, and an independent float32 forward pass to compare with.

Weights are made in the layout of the published checkpoints and turned into ggml's here, by the rules of its
own converter, so that a test sees both layouts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@attrs.define
class TinyModel:
    """Weights by mlx-lm's names as float32, exactly what the file means after its quantisation."""

    family: str
    path: Path
    layers: int
    weights: dict[str, Floats] = attrs.field(factory=dict)
    vocabulary: int = 0
    hidden: int = 64
    intermediate: int = 96


def write_tiny(
    path: Path,
    family: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    *,
    tied: bool = True,
    hidden: int = 64,
    intermediate: int = 96,
    rope_freqs: Floats | None = None,
    extra: dict[str, Any] | None = None,
) -> TinyModel:
    """Writes a model whose matrices are of type `kind`; `extra` adds or replaces text and integer fields.

    A matrix whose rows do not divide into blocks of `kind` is F16, as in files that llama.cpp writes.
    """
    layers = 6 if family == "gemma3" else 2
    model = TinyModel(family, path, layers, hidden=hidden, intermediate=intermediate)
    writer = gguf.GGUFWriter(path, family)
    _settings(writer, model)
    tokens = _gemma_vocabulary(writer) if family.startswith("gemma") else _byte_vocabulary(writer)
    model.vocabulary = len(tokens)
    for key, value in (extra or {}).items():
        writer.kv_data[0].pop(key, None)
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    _Tensors(model, writer, kind).write(tied)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _settings(writer: gguf.GGUFWriter, model: TinyModel) -> None:
    writer.add_block_count(model.layers)
    writer.add_context_length(512)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)


def _byte_vocabulary(writer: gguf.GGUFWriter) -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]
    tokens = [*SPECIALS, *letters, *(left + right for left, right in merges)]
    tokens += [f"<filler{index}>" for index in range(-len(tokens) % 32)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    return tokens


def _gemma_vocabulary(writer: gguf.GGUFWriter) -> list[str]:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁", "h", "e", "l", "o", "w", "he", "ll", "hell", "hello", "▁w", "▁hello"]
    scores = [0.0] * (len(specials) + 256) + [-float(index) for index in range(len(pieces))]
    tokens = [*specials, *byte_tokens, *pieces]
    filler = -len(tokens) % 32
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"<filler{index}>" for index in range(filler))])
    writer.add_token_scores([*scores, *([-1000.0] * filler)])
    writer.add_token_types([3, 3, 3, 2, 3] + [6] * 256 + [1] * len(pieces) + [5] * filler)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_space_prefix(False)
    return [*tokens, *([""] * filler)]


class _Tensors:
    def __init__(self, model: TinyModel, writer: gguf.GGUFWriter, kind: GGMLQuantizationType) -> None:
        self.model, self.writer, self.kind = model, writer, kind
        self.random = np.random.default_rng(7)
        self.gemma = model.family.startswith("gemma")

    def write(self, tied: bool) -> None:
        self.matrix("token_embd.weight", "model.embed_tokens.weight", self.model.vocabulary, self.model.hidden)
        self.norm("output_norm.weight", "model.norm.weight", self.model.hidden)
        if not tied:
            self.matrix("output.weight", "lm_head.weight", self.model.vocabulary, self.model.hidden)
        for layer in range(self.model.layers):
            self._layer(f"blk.{layer}.", f"model.layers.{layer}.")

    def _layer(self, ours: str, theirs: str) -> None:
        for letter, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            interleaved = heads if self.model.family == "llama" and letter != "v" else 0
            target = f"{theirs}self_attn.{letter}_proj"
            self.matrix(
                f"{ours}attn_{letter}.weight",
                f"{target}.weight",
                heads * HEAD_DIM,
                self.model.hidden,
                interleaved,
            )
            if self.model.family == "qwen2":
                self.vector(f"{ours}attn_{letter}.bias", f"{target}.bias", heads * HEAD_DIM)
            if self.model.family in ("qwen3", "gemma3") and letter != "v":
                self.norm(f"{ours}attn_{letter}_norm.weight", f"{theirs}self_attn.{letter}_norm.weight", HEAD_DIM)
        self.matrix(
            f"{ours}attn_output.weight",
            f"{theirs}self_attn.o_proj.weight",
            self.model.hidden,
            HEADS * HEAD_DIM,
        )
        self.matrix(
            f"{ours}ffn_gate.weight",
            f"{theirs}mlp.gate_proj.weight",
            self.model.intermediate,
            self.model.hidden,
        )
        self.matrix(f"{ours}ffn_up.weight", f"{theirs}mlp.up_proj.weight", self.model.intermediate, self.model.hidden)
        self.matrix(
            f"{ours}ffn_down.weight",
            f"{theirs}mlp.down_proj.weight",
            self.model.hidden,
            self.model.intermediate,
        )
        sandwich = self.model.family in ("gemma2", "gemma3")
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        if sandwich:
            norms = {
                "attn_norm": "input_layernorm",
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            }
        for name, target in norms.items():
            self.norm(f"{ours}{name}.weight", f"{theirs}{target}.weight", self.model.hidden)

    def matrix(self, name: str, target: str, rows: int, columns: int, interleaved: int = 0) -> None:
        kind = GGMLQuantizationType.F16 if columns % gguf.GGML_QUANT_SIZES[self.kind][0] else self.kind
        values = (self.random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        raw = quantized(values, kind, self.random)
        self.model.weights[target] = gguf.quants.dequantize(raw, kind).astype(np.float32)
        if interleaved:
            raw = raw.reshape(interleaved, 2, -1, raw.shape[1]).swapaxes(1, 2).reshape(raw.shape)
        self.writer.add_tensor(name, np.ascontiguousarray(raw), raw_dtype=kind)

    def vector(self, name: str, target: str, size: int) -> None:
        values = self.random.standard_normal(size).astype(np.float16).astype(np.float32)
        self.model.weights[target] = values
        self.writer.add_tensor(name, values)

    def norm(self, name: str, target: str, size: int) -> None:
        values = (self.random.standard_normal(size) / 8).astype(np.float16).astype(np.float32)
        values += 0.0 if self.gemma else 1.0
        self.model.weights[target] = values.astype(np.float16).astype(np.float32)
        self.writer.add_tensor(name, self.model.weights[target] + np.float32(1.0 if self.gemma else 0.0))


def quantized(values: Floats, kind: GGMLQuantizationType, random: np.random.Generator) -> NDArray[Any]:
    """Rows of `values` in ggml's form; for types without an encoder in Python, random blocks of like size."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (*values.shape[:-1], values.shape[-1] // block, size), dtype=np.uint8)
        small = np.array([0.002, 0.003], "<f2").view(np.uint8)
        for at in _SCALE_BYTES[kind.name]:
            blocks[..., at : at + 2] = small[:2]
        return np.ascontiguousarray(blocks).reshape(*values.shape[:-1], -1)


_SCALE_BYTES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
}
"""Where a block keeps its float16 scales."""
