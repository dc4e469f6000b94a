"""Every family that is laid out in panels answers as it does with MLX's own layers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
import mlx_lm.utils
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_serving.native.kernels import panels
from mlx_serving.native.kernels.modules import install, uninstall
from mlx_serving.native.kernels.operations import OPERATIONS

nn: Any = mlx.nn
pytestmark = [
    pytest.mark.usefixtures("on_the_cpu"),
    pytest.mark.skipif(not OPERATIONS.takes_panels(), reason="this processor multiplies with no panels"),
]
_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 96,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}
_PARTICULARS: dict[str, dict[str, Any]] = {
    "cohere2": {"layer_norm_eps": 1e-5, "sliding_window": 8, "sliding_window_pattern": 2},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "granite": {
        "logits_scaling": 1.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "starcoder2": {"norm_epsilon": 1e-5},
}


def tiny(family: str, is_tied: bool) -> Any:
    config = {**_COMMON, **_PARTICULARS.get(family, {}), "model_type": family, "tie_word_embeddings": is_tied}
    kind, arguments = mlx_lm.utils._get_classes(config)
    mx.random.seed(11)
    model = kind(arguments.from_dict(config))
    nn.quantize(model, 32, 4)
    mx.eval(model.parameters())
    return model


def logits(model: Any) -> np.ndarray[Any, Any]:
    caches = make_prompt_cache(model)
    prompt = mx.random.randint(0, 96, (2, 11), key=mx.random.key(5))
    return np.array(mx.concatenate([model(prompt, cache=caches), model(prompt[:, :1], cache=caches)], axis=1))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("family", [name.rpartition(".")[2] for name in panels.FAMILIES])
def test_a_family_computes_the_same_in_panels(family: str, is_tied: bool) -> None:
    model = tiny(family, is_tied)
    expected = logits(model)
    install(model)
    laid_out = [module for module in model.modules() if getattr(module, "bits", None) and module.weight.ndim == 3]
    assert len(laid_out) > 2
    np.testing.assert_allclose(logits(model), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    uninstall(model)
    assert not any(getattr(module, "bits", None) and module.weight.ndim == 3 for module in model.modules())
