"""The architecture of a ResNet as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Blocks = tuple[int, ...] | Literal["all"]
"""Some blocks of a stage, counted from 0, or all of them."""
Normalize = Literal["softmax", "softmax_both", "l2", "none"]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet of bottleneck blocks, some of which contain another operator than a 3x3 convolution.

    Attributes:
        depths: Number of blocks of each stage.
        widths: Channels inside the blocks of each stage; the output has `expansion` times as many.
        expansion: Output channels of a block divided by its inner channels.
        stem: "conv7": the 7x7 stride-2 convolution and the max-pool of the vanilla ResNet. "deep", as in
            ResNet-RS: three 3x3 convolutions, the first with stride 2, and a strided 3x3 convolution in place
            of the max-pool. "conv3": one 3x3 convolution that keeps the resolution, for small images.
        stem_width: Output channels of the stem.
        shortcut: Change of shape on the identity branch: "conv" is a strided 1x1 convolution, "pool" a 2x2
            average pooling before a 1x1 convolution (ResNet-D).
        operator: Operator of the blocks in `operator_blocks`: a name in `lambdanets.models.OPERATORS`.
        operator_blocks: For each stage the blocks, counted from 0, that contain the operator, or "all". The
            other blocks contain a 3x3 convolution.
        squeeze_excite: For each stage whether its convolution blocks end in squeeze-and-excitation, or which
            of them do (counted from 0). Blocks with another operator never do.
        squeeze_reduction: Output channels of a block divided by the inner channels of its
            squeeze-and-excitation.
        num_heads: Heads of the operator (lambda layers and attention).
        scope: Side of the window of positions for which each query has embeddings (lambda layers), or to
            which it attends (local attention). Lambda layers also take "global", all positions (Table 11).
        image_size: Side of the images for which global position tables are made: those of lambda layers with
            global scope, of global and of axial attention. Images of other sizes work too.
        dim_k: Depth of queries and keys of lambda layers (Table 9).
        dim_u: Intra-depth of lambda layers (Table 9).
        content: Whether lambdas have a content part (Table 10).
        position: Whether lambdas have a position part (Table 10); without it `scope` has no effect.
        normalize: Normalisation of keys in lambda layers, and of queries with "softmax_both" (Table 12).
        norm: Norm after the projections to queries and values of lambda layers: "batch"; "rms", over the
            channels at each position; or "none" (Table 12).
        position_bias: Whether lambda layers add one learned lambda to all position lambdas, as the bias of
            the position convolution in other packages does.
        pool_padding: Whether the pooling after a strided operator also averages over zeros beyond the border,
            as PyTorch's does by default, rather than over existing pixels only.
        shared_positions: Whether the lambda layers of a stage share one position table (Table 4).
        kernel: Kernel of the lambda layers; see `lambdanets.lambda_layer`.

    Raises:
        ValueError: If the fields differ in the number of stages, or an option or a block does not exist.
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

    def __post_init__(self) -> None:
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

    def contents(self, stage: int, block: int) -> tuple[str, bool]:
        """Return the name of a block's operator, and whether the block ends in squeeze-and-excitation.

        Args:
            stage: Stage, counted from 0.
            block: Block of the stage, counted from 0.
        """
        blocks = self.operator_blocks[stage]
        operator = self.operator if blocks == "all" or block in blocks else "conv"
        squeezed = self.squeeze_excite[stage]
        squeezes = squeezed if isinstance(squeezed, bool) else block in squeezed
        return operator, squeezes and operator == "conv"

    @property
    def num_feature_maps(self) -> int:
        """Number of feature maps: one for each stage, and one for the stem if it has a stride."""
        return len(self.depths) + (self.stem != "conv3")

    @property
    def reduction(self) -> int:
        """Side of the image divided by the side of the final features."""
        return (1 if self.stem == "conv3" else 4) * 2 ** (len(self.depths) - 1)
