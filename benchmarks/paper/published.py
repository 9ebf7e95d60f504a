"""Published numbers of the networks of the tables and of the race, each with its source.

Nothing here was measured by this package. Tables and figures are those of arXiv 2102.08602v1.
"""

from __future__ import annotations

from collections.abc import Callable

from lambdanets.bench import NetworkSpec, Published

TABLE4, TABLE13, TABLE14, TABLE19 = (f"LambdaNetworks, Table {number}" for number in (4, 13, 14, 19))
FIGURE4 = "EfficientNet as read off LambdaNetworks, Figure 4 (within 0.03 s and 0.05 %)"
RESNET_RS = "ResNet-RS, README of its repository"

LAMBDA, EFFICIENT, RS = "LambdaResNet", "EfficientNet", "ResNet-RS with SE"
FAMILIES = (LAMBDA, EFFICIENT, RS)

# Memory as Table 4 of the paper counts it: attention maps or position tables, and nothing else. It is of a
# ResNet-50 at 224 whose 16 3x3 convolutions are replaced, with grids of 56, 28, 14 and 7 in 3, 4, 6 and 3
# layers (a comment in the paper's source). Maps are of 8 heads and a batch of 128; position tables E, of
# n x m x k, have no batch; all are float32. Other tensors, such as the lambdas, are not counted.
GRIDS = ((56, 3), (28, 4), (14, 6), (7, 3))  # side, layers
BATCH, HEADS, BYTES = 128, 8, 4
GIB = 2**30  # the paper's GB: 122.8 of these are its 120, 131.9 of the decimal ones would not be


def attention_gib() -> float:
    """Return the size of global self-attention: b h n² for each layer."""
    return _sum(lambda side: BATCH * HEADS * side**4)


def axial_gib() -> float:
    """Return the size of axial self-attention: two maps, each of b h n sqrt(n)."""
    return _sum(lambda side: 2 * BATCH * HEADS * side**3)


def local_attention_gib(scope: int) -> float:
    """Return the size of local self-attention: b h n m for each layer, m the window; not in the paper."""
    return _sum(lambda side: BATCH * HEADS * side**2 * scope**2)


def lambda_gib(dim_k: int) -> float:
    """Return the size of the lambda layer: k n² for each layer."""
    return _sum(lambda side: dim_k * side**4)


def shared_gib(dim_k: int) -> float:
    """Return the size of the lambda layer with embeddings shared in a stage: k n² for each resolution."""
    return sum(dim_k * side**4 for side, _ in GRIDS) * BYTES / GIB


def local_lambda_gib(dim_k: int, scope: int) -> float:
    """Return the size of the lambda convolution: k n m for each layer, m the window; not in the paper."""
    return _sum(lambda side: dim_k * side**2 * scope**2)


def _sum(elements: Callable[[int], int]) -> float:
    return sum(layers * elements(side) for side, layers in GRIDS) * BYTES / GIB


# model, options, label, memory in GB, images per second (0: out of memory), top-1; maps by our formula.
_TABLE4 = (
    ("resnet50_attention", (), "Global self-attention", "120", 0, None, attention_gib()),
    ("resnet50_axial", (), "Axial self-attention", "4.8", 960, 77.5, axial_gib()),
    ("resnet50_local_attention", (), "Local self-attention 7x7", "", 440, 77.4, local_attention_gib(7)),
    ("resnet50_lambda", (), "Lambda layer", "1.9", 1160, 78.4, lambda_gib(16)),
    ("resnet50_lambda", (("dim_k", 8),), "Lambda layer, k=8", "0.95", 1640, 77.9, lambda_gib(8)),
    (
        "resnet50_lambda",
        (("shared_positions", True),),
        "Lambda layer, shared embeddings",
        "0.63",
        1210,
        78.0,
        shared_gib(16),
    ),
    ("resnet50_lambda", (("scope", 7),), "Lambda convolution 7x7", "", 1100, 78.1, local_lambda_gib(16, 7)),
)
# model, label (stages c2 to c5: C convolution, L lambda layer), parameters in M, images per second, top-1.
_TABLE13 = (
    ("resnet50_cccc", "C-C-C-C", 25.6, 7240, 76.9),
    ("resnet50_lccc", "L-C-C-C", 25.5, 1880, 77.3),
    ("resnet50_llcc", "L-L-C-C", 25.0, 1280, 77.2),
    ("resnet50_lllc", "L-L-L-C", 21.7, 1160, 77.8),
    ("resnet50_llll", "L-L-L-L", 15.0, 1160, 78.4),
    ("resnet50_clll", "C-L-L-L", 15.1, 2200, 78.3),
    ("resnet50_ccll", "C-C-L-L", 15.4, 4980, 78.3),
    ("resnet50_cccl", "C-C-C-L", 18.8, 7160, 77.3),
)
# model, size, label, parameters in millions, images per second, top-1.
_TABLE14 = (
    ("resnet101_rs", 224, "ResNet-101 without SE", 44.6, 4600, 81.3),
    ("resnet101_rs_se", 224, "ResNet-101 with SE", 63.6, 4000, 81.8),
    ("lambda_resnet101", 224, "LambdaResNet-101", 36.9, 4040, 82.3),
    ("lambda_resnet101_c4", 224, "LambdaResNet-101-C4", 26.0, 2560, 82.6),
    ("resnet152_rs", 256, "ResNet-152 without SE", 60.2, 2780, 82.5),
    ("resnet152_rs_se", 256, "ResNet-152 with SE", 86.6, 2400, 83.0),
    ("lambda_resnet152", 256, "LambdaResNet-152", 51.4, 2400, 83.4),
    ("lambda_resnet152_c4", 256, "LambdaResNet-152-C4", 35.1, 1480, 83.4),
)
# depth, size, seconds, top-1 of the supervised runs; 152 at 288 has no top-1 and is no point of the race.
_LAMBDA_RESNETS = (
    (50, 128, 0.058, 77.4),
    (50, 160, 0.089, 79.2),
    (101, 160, 0.14, 80.8),
    (101, 192, 0.20, 81.9),
    (152, 192, 0.28, 82.5),
    (152, 224, 0.38, 83.2),
    (152, 256, 0.49, 83.8),
    (270, 256, 0.91, 84.2),
    (350, 256, 1.16, 84.4),
    (350, 288, 1.48, 84.5),
    (350, 320, 1.91, 84.7),
    (420, 320, 2.25, 84.9),
)
# size, seconds, top-1 of B0 to B7.
_EFFICIENTNETS = (
    (224, 0.1, 77.1),
    (240, 0.15, 79.1),
    (260, 0.2, 80.1),
    (300, 0.34, 81.6),
    (380, 0.71, 82.9),
    (456, 1.5, 83.7),
    (528, 3.0, 84.0),
    (600, 6.0, 84.7),
)
# depth, size, seconds, top-1.
_RESNETS_RS = (
    (50, 160, 0.07, 78.8),
    (101, 160, 0.12, 80.3),
    (101, 192, 0.17, 81.2),
    (152, 192, 0.24, 82.0),
    (152, 224, 0.32, 82.2),
    (152, 256, 0.41, 83.0),
    (200, 256, 0.57, 83.4),
    (270, 256, 0.78, 83.8),
    (350, 256, 1.10, 84.0),
    (350, 320, 1.63, 84.2),
    (420, 320, 2.09, 84.4),
)

TABLES: dict[str, tuple[NetworkSpec, ...]] = {
    "table4": tuple(
        NetworkSpec(
            model=model,
            options=options,
            size=(224, 224),
            label=label,
            maps_gib=maps,
            published=Published(source=TABLE4, memory=memory, examples_per_s=speed, top1=top1),
        )
        for model, options, label, memory, speed, top1, maps in _TABLE4
    ),
    "table13": tuple(
        NetworkSpec(
            model=model,
            size=(224, 224),
            label=label,
            published=Published(source=TABLE13, parameters_m=parameters, examples_per_s=speed, top1=top1),
        )
        for model, label, parameters, speed, top1 in _TABLE13
    ),
    "table14": tuple(
        NetworkSpec(
            model=model,
            size=(size, size),
            label=label,
            published=Published(source=TABLE14, parameters_m=parameters, examples_per_s=speed, top1=top1),
        )
        for model, size, label, parameters, speed, top1 in _TABLE14
    ),
}
# The rows whose throughput is 1 in the ratios, in the paper's numbers and in ours.
REFERENCES = {"table4": "Lambda layer", "table13": "C-C-C-C", "table14": "ResNet-101 without SE"}


def race_networks() -> list[NetworkSpec]:
    """Return the points of the race, from the least accurate to the most accurate one."""
    made = [
        _race_network(LAMBDA, f"lambda_resnet{depth}", f"{depth}@{size}", size, TABLE19, seconds, top1)
        for depth, size, seconds, top1 in _LAMBDA_RESNETS
    ]
    made += [
        _race_network(EFFICIENT, f"efficientnet_b{number}", f"B{number}", size, FIGURE4, seconds, top1)
        for number, (size, seconds, top1) in enumerate(_EFFICIENTNETS)
    ]
    made += [
        _race_network(RS, f"resnet{depth}_rs_se", f"{depth}@{size}", size, RESNET_RS, seconds, top1)
        for depth, size, seconds, top1 in _RESNETS_RS
    ]
    return sorted(made, key=lambda network: network.published.top1)  # type: ignore[union-attr]


def _race_network(
    family: str, model: str, label: str, size: int, source: str, seconds: float, top1: float
) -> NetworkSpec:
    return NetworkSpec(
        model=model,
        size=(size, size),
        label=label,
        family=family,
        published=Published(source=source, seconds=seconds, top1=top1),
    )
