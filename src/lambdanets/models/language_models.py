"""The language models of this package: literal arguments of `LambdaLM` for each name.

To add one, add its arguments to `LANGUAGE_MODELS`; no other file changes.
"""

from __future__ import annotations

import inspect
from typing import Any

from lambdanets.ops.checks import unknown_name

from .sequence import LambdaLM

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    # nanoGPT's setting for a laptop: 4 blocks, 4 heads, 128 channels, with 65 tokens 0.80 million parameters.
    # The width of the MLP makes up for the parameters of the layer.
    "lambda_lm_mini": {"operator": "lambda", "options": {"gate": True}, "mlp_dim": 384},
    "attention_lm_mini": {"operator": "attention", "mlp_dim": 344},
    "linear_attention_lm_mini": {"operator": "linear_attention", "mlp_dim": 344},
    "conv3_lm_mini": {"operator": "conv", "options": {"taps": 3}, "mlp_dim": 344},
    "conv9_lm_mini": {"operator": "conv", "options": {"taps": 9}, "mlp_dim": 88},
    "depthwise_lm_mini": {"operator": "conv", "options": {"taps": 23, "depthwise": True}, "mlp_dim": 464},
    "gru_lm_mini": {"operator": "gru", "mlp_dim": 216},
}
"""Arguments of `LambdaLM` by the name of a model."""


def create_language_model(name: str, *, vocabulary: int, **options: Any) -> LambdaLM:
    """Create a language model by name.

    Args:
        name: Name in `LANGUAGE_MODELS`.
        vocabulary: Number of tokens.
        **options: Arguments of `LambdaLM` or of its layer, such as `dropout=0.1` or `scope=32`, which replace
            those of the model. Another `operator` begins with the layer's own defaults.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: If there is no such model or option, or an option is out of range.

    Example:
        >>> model = create_language_model("lambda_lm_mini", vocabulary=65, depth=2, scope=32)
        >>> model(torch.randint(65, (1, 8))).shape
        torch.Size([1, 8, 65])
    """
    if name not in LANGUAGE_MODELS:
        raise unknown_name("language model", name, LANGUAGE_MODELS)
    config = LANGUAGE_MODELS[name]
    of_model = inspect.signature(LambdaLM).parameters
    layer = {key: options.pop(key) for key in list(options) if key not in of_model}
    if options.get("operator", config["operator"]) == config["operator"]:
        layer = {**config.get("options", {}), **layer}
    layer |= options.pop("options", None) or {}
    return LambdaLM(vocabulary, **{**config, **options, "options": layer})
