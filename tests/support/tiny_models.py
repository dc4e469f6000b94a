"""Model folders with small random weights: every architecture's shapes and caches, in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import tokenizers
from mlx.utils import tree_flatten, tree_map
from tokenizers import decoders, models, pre_tokenizers

from mlx_serving.actors.models.metadata import describe_folder
from mlx_serving.actors.models.record import ModelRecord

EOS = 256
VOCAB_SIZE = 264
_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB_SIZE,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": EOS,
}
_MAMBA = {
    "num_heads": 4,
    "head_dim": 16,
    "expand": 2,
    "state_size": 8,
    "conv_kernel": 4,
    "n_groups": 1,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_limit": [0.0, 100.0],
    "time_step_rank": 4,
    "layer_norm_epsilon": 1e-5,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba2": _MAMBA,
}


def make_tiny_model(folder: Path, architecture: str) -> ModelRecord:
    """Write a folder that mlx-lm loads. Its tokenizer has one token for each byte, and `<eos>`."""
    config = {"model_type": architecture, **_COMMON, **CONFIGURATIONS[architecture]}
    kind, arguments = mlx_lm.utils._get_classes(config)
    mx.random.seed(7)
    model = kind(arguments.from_dict(config))
    # Larger than the usual start, so that the next token depends on the ones before.
    model.update(tree_map(lambda weight: weight * 2.5 if weight.ndim > 1 else weight, model.parameters()))
    weights: Any = tree_flatten(model.parameters())
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}), encoding="utf-8")
    return describe_folder(folder, architecture, "random weights")


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Token id i is byte i; 256 is `<eos>`."""
    letters = byte_letters()
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letters[i]: i for i in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<eos>", special=True, normalized=False)])
    return tokenizer


def byte_letters() -> list[str]:
    """The printable letter by which byte-level tokenizers write each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
