"""Memory as Table 4 of the paper counts it: attention maps or position tables, and nothing else.

A ResNet-50 at 224 whose 16 3x3 convolutions are replaced: grids of 56, 28, 14 and 7 with 3, 4, 6 and 3
layers. Maps are of 8 heads and a batch of 128; position tables E, of n x m x k, have no batch. All in
float32. What the layers themselves hold otherwise, the lambdas too, is not counted.

References:
    Table 4, and the comment in its source that states the grids and layers.
"""

from collections.abc import Callable

GRIDS = ((56, 3), (28, 4), (14, 6), (7, 3))  # side, layers
BATCH, HEADS, BYTES = 128, 8, 4
GIB = 2**30  # the paper's GB: 122.8 of these are its 120, 131.9 of the decimal ones would not be


def attention_gib() -> float:
    """Global self-attention: b h n² for each layer."""
    return _sum(lambda side: BATCH * HEADS * side**4)


def axial_gib() -> float:
    """Axial self-attention: two maps, each of b h n sqrt(n)."""
    return _sum(lambda side: 2 * BATCH * HEADS * side**3)


def local_attention_gib(scope: int) -> float:
    """Local self-attention: b h n m for each layer, m the window; the paper names no number."""
    return _sum(lambda side: BATCH * HEADS * side**2 * scope**2)


def lambda_gib(dim_k: int) -> float:
    """The lambda layer: k n² for each layer."""
    return _sum(lambda side: dim_k * side**4)


def shared_gib(dim_k: int) -> float:
    """The lambda layer with embeddings shared in a stage: k n² for each resolution."""
    return sum(dim_k * side**4 for side, _ in GRIDS) * BYTES / GIB


def local_lambda_gib(dim_k: int, scope: int) -> float:
    """The lambda convolution: k n m for each layer, m the window; the paper names no number."""
    return _sum(lambda side: dim_k * side**2 * scope**2)


def _sum(elements: Callable[[int], int]) -> float:
    return sum(layers * elements(side) for side, layers in GRIDS) * BYTES / GIB
