"""What a ResNet of the family is made of, as data."""

from dataclasses import dataclass
from typing import Literal

Blocks = tuple[int, ...] | Literal["all"]
Normalize = Literal["softmax", "softmax_both", "l2", "none"]


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
        squeeze_excite: For each stage whether its convolution blocks end in squeeze-and-excitation, or which
            of them (counted from 0). Blocks of another operator never do.
        squeeze_reduction: Output channels of a block over the channels that they are squeezed to.
        num_heads: Heads of the operator (lambda layers and attention).
        scope: Side of the square of positions that each query has embeddings for (lambda layers), or that it
            attends to (local attention); for lambda layers also "global", every position (Table 11).
        image_size: Side of the images that global position tables are made for: those of lambda layers of
            global scope, of global and of axial attention. Images of other sizes work.
        dim_k: Query and key depth of lambda layers (Table 9).
        dim_u: Intra-depth of lambda layers (Table 9).
        content: Whether lambdas have a content part (Table 10).
        position: Whether lambdas have a position part (Table 10); without it `scope` has no effect.
        normalize: How lambda layers normalise keys, and queries with "softmax_both" (Table 12).
        norm: What follows the projections to queries and values of lambda layers: "batch", a batch norm;
            "rms", an RMS norm over channels at each position; or "none" (Table 12).
        position_bias: Whether lambda layers add one learned lambda to the position lambdas of all, as the
            position convolutions of other implementations do.
        pool_padding: Whether the pooling after a strided operator averages over zeros beyond the border too,
            as PyTorch's does unasked, rather than over the pixels that exist.
        shared_positions: Whether the lambda layers of a stage share one table (Table 4).
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
    squeeze_excite: tuple[bool | tuple[int, ...], ...] = (False, False, False, False)
    squeeze_reduction: int = 4
    num_heads: int = 4
    scope: int | Literal["global"] = 23
    image_size: int = 224
    dim_k: int = 16
    dim_u: int = 1
    content: bool = True
    position: bool = True
    normalize: Normalize = "softmax"
    norm: Literal["batch", "rms", "none"] = "batch"
    position_bias: bool = False
    pool_padding: bool = False
    shared_positions: bool = False
    kernel: str = "auto"

    def __post_init__(self):
        for name in ("widths", "operator_blocks", "squeeze_excite"):
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(
                    f"{name} must have one entry for each of the {len(self.depths)} stages of depths="
                    f"{self.depths}, got {getattr(self, name)!r}"
                )
        for name, known in (
            ("stem", ("conv7", "deep", "conv3")),
            ("shortcut", ("conv", "pool")),
            ("norm", ("batch", "rms", "none")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("operator_blocks", "squeeze_excite"):
            for stage, (depth, blocks) in enumerate(zip(self.depths, getattr(self, name), strict=True)):
                named = () if blocks == "all" or isinstance(blocks, bool) else blocks
                if not all(0 <= block < depth for block in named):
                    raise ValueError(
                        f"{name} of stage {stage} must name blocks 0 to {depth - 1}, got {blocks!r}"
                    )
        if isinstance(self.scope, str) and self.scope != "global":
            raise ValueError(f"scope must be a number of positions or 'global', got {self.scope!r}")
        for name in ("squeeze_reduction", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def operator_of(self, stage: int, block: int) -> str:
        """Says which operator a block holds, both counted from 0."""
        blocks = self.operator_blocks[stage]
        return self.operator if blocks == "all" or block in blocks else "conv"

    def squeezes(self, stage: int, block: int) -> bool:
        """Says whether a block ends in squeeze-and-excitation, both counted from 0."""
        blocks = self.squeeze_excite[stage]
        named = blocks if isinstance(blocks, bool) else block in blocks
        return named and self.operator_of(stage, block) == "conv"

    @property
    def num_feature_maps(self) -> int:
        """Number of feature maps that can be taken: the stages, and the stem where it has its own stride."""
        return len(self.depths) + (self.stem != "conv3")

    @property
    def reduction(self) -> int:
        """Side of the image over the side of the final features."""
        return (1 if self.stem == "conv3" else 4) * 2 ** (len(self.depths) - 1)
