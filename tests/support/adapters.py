"""LoRA adapters with random matrices, as mlx-lm saves them and as PEFT does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.tuner.utils
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
EVERYTHING = (*ATTENTION, "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def make_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int = 1,
    rank: int = 4,
    scale: float = 8.0,
    keys: tuple[str, ...] = ATTENTION,
    layers: int = 2,
    strength: float = 0.3,
) -> Path:
    """An adapter of the last `layers` layers, made by mlx-lm's own layers; its B is random instead of zero."""
    model: Any
    model, _ = load_model(base)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(keys)}
    mx.random.seed(seed)
    mlx_lm.tuner.utils.linear_to_lora_layers(model, layers, parameters)
    tensors: Any = tree_flatten(model.parameters())
    found = {name: array for name, array in tensors if name.endswith(("lora_a", "lora_b"))}
    for name, array in found.items():
        if name.endswith("lora_b"):
            found[name] = strength * mx.random.normal(array.shape) / rank
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), found)
    config = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def as_peft(folder: Path, adapter: Path) -> Path:
    """The same adapter in the form of PEFT."""
    config = json.loads((adapter / "adapter_config.json").read_text())["lora_parameters"]
    arrays: Any = mx.load(str(adapter / "adapters.safetensors"))
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
    turned = {}
    for name, array in arrays.items():
        layer, _, part = name.rpartition(".")
        turned[f"base_model.model.{layer}.{names[part]}"] = mx.contiguous(array.T)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), turned)
    peft = {"peft_type": "LORA", "r": config["rank"], "lora_alpha": config["rank"] * config["scale"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(peft), encoding="utf-8")
    return folder
