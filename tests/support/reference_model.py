"""A plain float32 forward pass of the importable families that shares nothing with the product."""

from __future__ import annotations

import math

import numpy as np
from support.gguf_files import HEAD_DIM, HEADS, KV_HEADS, Floats, TinyModel

EPS = 1e-5


def logits(model: TinyModel, ids: list[int]) -> Floats:
    """[tokens, vocabulary] for one sequence."""
    weights, gemma = model.weights, model.family.startswith("gemma")
    hidden = weights["model.embed_tokens.weight"][ids]
    if gemma:
        hidden = hidden * np.float32(math.sqrt(hidden.shape[1]))
    for layer in range(model.layers):
        hidden = _layer(model, f"model.layers.{layer}.", hidden, layer)
    hidden = _norm(hidden, weights["model.norm.weight"], gemma)
    out = hidden @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T
    return np.tanh(out / 30.0) * 30.0 if model.family == "gemma2" else out


def _layer(model: TinyModel, name: str, hidden: Floats, index: int) -> Floats:
    weights, gemma = model.weights, model.family.startswith("gemma")

    def norm(values: Floats, which: str) -> Floats:
        return _norm(values, weights[f"{name}{which}_layernorm.weight"], gemma)

    attended = _attention(model, name, norm(hidden, "input"), index)
    if model.family in ("gemma2", "gemma3"):
        hidden = hidden + norm(attended, "post_attention")
        return hidden + norm(_feed_forward(model, name, norm(hidden, "pre_feedforward")), "post_feedforward")
    hidden = hidden + attended
    return hidden + _feed_forward(model, name, norm(hidden, "post_attention"))


def _norm(values: Floats, weight: Floats, gemma: bool) -> Floats:
    scale = weight + 1 if gemma else weight
    normed: Floats = values / np.sqrt((values**2).mean(-1, keepdims=True) + EPS) * scale
    return normed


def _attention(model: TinyModel, name: str, values: Floats, index: int) -> Floats:
    queries = _heads(model, f"{name}self_attn.q", values, HEADS, index)
    keys = np.repeat(_heads(model, f"{name}self_attn.k", values, KV_HEADS, index), HEADS // KV_HEADS, 0)
    rows = values @ model.weights[f"{name}self_attn.v_proj.weight"].T
    rows = rows + model.weights.get(f"{name}self_attn.v_proj.bias", np.float32(0))
    vectors = np.repeat(rows.reshape(len(values), KV_HEADS, HEAD_DIM).swapaxes(0, 1), HEADS // KV_HEADS, 0)
    scores = queries @ keys.swapaxes(1, 2) / math.sqrt(HEAD_DIM)
    if model.family == "gemma2":
        scores = np.tanh(scores / 50.0) * 50.0
    scores = np.where(np.tri(len(values), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ vectors
    out: Floats = mixed.swapaxes(0, 1).reshape(len(values), -1) @ model.weights[f"{name}self_attn.o_proj.weight"].T
    return out


def _heads(model: TinyModel, name: str, values: Floats, heads: int, index: int) -> Floats:
    rows = values @ model.weights[f"{name}_proj.weight"].T
    rows = rows + model.weights.get(f"{name}_proj.bias", np.float32(0))
    split = rows.reshape(len(values), heads, HEAD_DIM).swapaxes(0, 1)
    if f"{name}_norm.weight" in model.weights:
        split = _norm(split, model.weights[f"{name}_norm.weight"], model.family.startswith("gemma"))
    local = model.family == "gemma3" and (index + 1) % 6 != 0
    return _rotated(split, 10000.0 if local else 50000.0)


def _rotated(values: Floats, theta: float) -> Floats:
    half = HEAD_DIM // 2
    angles = np.outer(np.arange(values.shape[1]), theta ** (-np.arange(half) / half))
    first, second = values[..., :half], values[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(np.float32)


def _feed_forward(model: TinyModel, name: str, values: Floats) -> Floats:
    gate = values @ model.weights[f"{name}mlp.gate_proj.weight"].T
    if model.family.startswith("gemma"):
        gate = gate * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    else:
        gate = gate / (1 + np.exp(-gate))
    inner = gate * (values @ model.weights[f"{name}mlp.up_proj.weight"].T)
    out: Floats = inner @ model.weights[f"{name}mlp.down_proj.weight"].T
    return out
