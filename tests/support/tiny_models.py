"""Model folders with small random weights: every architecture's shapes and caches, in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import tokenizers
from mlx.nn.layers.quantized import quantize
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
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
_LFM2 = {
    "layer_types": ["conv", "full_attention"],
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 32,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
}
_QWEN3_NEXT = {
    **_EXPERTS,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "shared_expert_intermediate_size": 32,
    "partial_rotary_factor": 0.5,
    "full_attention_interval": 2,
}
_FALCON_H1 = {
    "mamba_d_ssm": 64,
    "mamba_d_head": 16,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "tie_word_embeddings": True,
    # Those of the real model make the output of a small one almost constant.
    "lm_head_multiplier": 1.0,
    "attention_out_multiplier": 1.0,
    "ssm_out_multiplier": 1.0,
}
_WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 2}
"""Wide enough for groups of 64 weights, and heads of the usual size."""
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_4bit": {
        **_WIDE,
        "model_type": "llama",
        "num_key_value_heads": 1,
        "quantization": {"group_size": 32, "bits": 4},
    },
    "qwen2": {"tie_word_embeddings": True},
    "qwen2_4bit": {
        **_WIDE,
        "model_type": "qwen2",
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "quantization": {"group_size": 64, "bits": 4},
    },
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "phi3": {"tie_word_embeddings": True, "partial_rotary_factor": 0.5},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba2": _MAMBA,
    "lfm2": _LFM2,
    "falcon_h1": _FALCON_H1,
    "qwen3_next": _QWEN3_NEXT,
}
"""By name: what each sets besides or in place of the common values. `model_type` is the name unless it says so."""


def make_tiny_model(folder: Path, architecture: str, seed: int = 7) -> ModelRecord:
    """Write a folder that mlx-lm loads. Its tokenizer has one token for each byte, and `<eos>`."""
    config = {"model_type": architecture, **_COMMON, **CONFIGURATIONS[architecture]}
    kind, arguments = mlx_lm.utils._get_classes(config)
    mx.random.seed(seed)
    model = kind(arguments.from_dict(config))
    # Larger than the usual start, so that the next token depends on the ones before.
    model.update(tree_map(lambda weight: weight * 2.5 if weight.ndim > 1 else weight, model.parameters()))
    if "quantization" in config:
        quantize(model, **config["quantization"])
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
