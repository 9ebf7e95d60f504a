"""What a ResNet of the family is made of, as data."""

from dataclasses import dataclass
from typing import Literal

Blocks = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet of bottleneck blocks, some of which hold another operator than a 3x3 convolution.

    Attributes:
        depths: Blocks of each stage.
        widths: Channels inside the blocks of each stage; a stage returns `expansion` times as many.
        expansion: Output channels of a block over its inner channels.
        stem: "conv7" is the 7x7 stride-2 convolution and max-pool of the vanilla ResNet. "deep" is that of
            ResNet-RS: three 3x3 convolutions, the first with stride 2, and a strided 3x3 convolution in
            place of the max-pool. "conv3" is one 3x3 convolution that keeps the resolution, for small images.
        stem_width: Channels the stem returns.
        shortcut: How the identity branch changes shape: "conv" is a strided 1x1 convolution, "pool" a 2x2
            average pooling before a 1x1 convolution (ResNet-D).
        operator: What fills the blocks named by `operator_blocks`; see `lambdanets.models.parts.OPERATORS`.
        operator_blocks: For each stage the blocks, counted from 0, that hold the operator, or "all".
            The others hold a 3x3 convolution.
        squeeze_excite: For each stage whether its convolution blocks end in squeeze-and-excitation (ratio
            1/4 of the output channels). Blocks of another operator never do.
        dim_k: Query and key depth of the operator.
        num_heads: Heads of the operator.
        dim_u: Intra-depth of the operator.
        scope: Side of the square of positions that each query has embeddings for.
        kernel: Kernel of the lambda layers.

    Raises:
        ValueError: If the stages do not agree in number, or a block that does not exist is named.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    expansion: int = 4
    stem: Literal["conv7", "deep", "conv3"] = "conv7"
    stem_width: int = 64
    shortcut: Literal["conv", "pool"] = "conv"
    operator: str = "lambda"
    operator_blocks: tuple[Blocks, ...] = ((), (), (), ())
    squeeze_excite: tuple[bool, ...] = (False, False, False, False)
    dim_k: int = 16
    num_heads: int = 4
    dim_u: int = 1
    scope: int = 23
    kernel: str = "auto"

    def __post_init__(self):
        for name in ("widths", "operator_blocks", "squeeze_excite"):
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(
                    f"{name} must have one entry for each of the {len(self.depths)} stages of depths="
                    f"{self.depths}, got {getattr(self, name)!r}"
                )
        for name, known in (("stem", ("conv7", "deep", "conv3")), ("shortcut", ("conv", "pool"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for stage, (depth, blocks) in enumerate(zip(self.depths, self.operator_blocks, strict=True)):
            if blocks != "all" and not all(0 <= block < depth for block in blocks):
                raise ValueError(
                    f"operator_blocks of stage {stage} must name blocks 0 to {depth - 1}, got {blocks!r}"
                )

    def operator_of(self, stage: int, block: int) -> str:
        """Says which operator a block holds, both counted from 0."""
        blocks = self.operator_blocks[stage]
        return self.operator if blocks == "all" or block in blocks else "conv"

    @property
    def num_feature_maps(self) -> int:
        """Number of feature maps that can be taken: the stages, and the stem where it has its own stride."""
        return len(self.depths) + (self.stem != "conv3")

    @property
    def reduction(self) -> int:
        """Side of the image over the side of the final features."""
        return (1 if self.stem == "conv3" else 4) * 2 ** (len(self.depths) - 1)
