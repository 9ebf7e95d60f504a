"""Networks on the meta device, which tests share: only gradients may be added."""

from functools import cache

from lambdanets.models import ResNet, create_model


@cache
def on_meta(name: str) -> ResNet:
    return create_model(name, device="meta")
