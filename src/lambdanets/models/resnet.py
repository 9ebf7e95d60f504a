"""ResNets whose bottlenecks hold a convolution, a lambda layer, or any other operator of one table."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.classifier import create_classifier
from timm.layers.drop import DropPath
from timm.models import checkpoint_seq
from torch import nn

from ..nn import LambdaLayer2d
from ..nn.blocks import Bottleneck
from .config import ResNetConfig
from .parts import OPERATORS, bottleneck, stem_conv, stem_pool


class ResNet(nn.Module):
    """A ResNet with timm's contract for a backbone, at any image size.

    Parameters are named as in timm and torchvision, so the weights of their ResNets load into the
    configurations without lambda layers.

    Args:
        config: The architecture.
        num_classes: Classes of the head; 0 for pooled features.
        in_chans: Channels of the images.
        global_pool: Pooling before the head, as in timm; "" for none.
        output_stride: 8, 16 or 32. Stages that would exceed it keep their resolution and are dilated instead,
            lambda layers too; attention cannot be.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.

    Raises:
        ValueError: If the output stride or the operator is unknown, or the operator cannot be dilated.

    Differences from the paper: the pooling that follows a strided lambda layer averages over the pixels that
    exist, as TensorFlow's does, rather than over zeros beyond the border, unless the config says otherwise.
    """

    def __init__(
        self,
        config: ResNetConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
        if config.operator not in OPERATORS:
            raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, got {config.operator!r}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        dim = config.stem_width
        self.conv1 = stem_conv(config, in_chans, factory)
        self.bn1 = nn.BatchNorm2d(dim, **factory)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = stem_pool(config, factory)
        self.feature_info: list[dict[str, Any]] = []
        reduction = 1
        if config.stem != "conv3":
            self.feature_info.append({"num_chs": dim, "reduction": 2, "module": "act1"})
            reduction = 4

        last = max(sum(config.depths) - 1, 1)
        dilation = 1
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            stride, first_dilation = (1 if stage == 0 else 2), dilation
            if reduction * stride > output_stride:
                dilation, stride = dilation * stride, 1
            before, reduction = reduction, reduction * stride
            blocks = nn.Sequential()
            for block in range(depth):
                drop = drop_path_rate * (sum(config.depths[:stage]) + block) / last
                blocks.append(
                    bottleneck(
                        config,
                        dim,
                        stage,
                        block,
                        stride=stride if block == 0 else 1,
                        dilation=dilation,
                        first_dilation=first_dilation if block == 0 else dilation,
                        grid=-(-config.image_size // (before if block == 0 else reduction)),
                        drop_path=DropPath(drop) if drop > 0 else None,
                        **factory,
                    )
                )
                dim = width * config.expansion
            name = f"layer{stage + 1}"
            self.add_module(name, blocks)
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": name})

        self.num_features = dim
        self.global_pool, *_, self.fc = create_classifier(dim, num_classes, pool_type=global_pool, **factory)
        self.head_hidden_size = dim * self.global_pool.feat_mult()
        self.init_weights()

    def init_weights(self) -> None:
        """Gives every parameter and buffer its initial value; also makes a model whose memory is empty whole.

        Convolutions of the trunk get He's initialisation (fan out). A module that has its own
        `reset_parameters`, such as a lambda layer, keeps what that gives it.
        """
        if self.config.shared_positions:
            self._share_positions()
        _initialise(self)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.zero_init_last()

    def _share_positions(self) -> None:
        """Makes one table of those of a stage: its first, which is the largest.

        Memory that is made anew, as by `to_empty`, takes sharing apart: this is part of the initialisation.
        """
        for name in self._stages():
            layers = [m for m in self.get_submodule(name).modules() if isinstance(m, LambdaLayer2d)]
            for layer in layers:
                layer.positions = layers[0].positions

    def no_weight_decay(self) -> set[str]:
        """Names the parameters that weight decay should spare: the position tables."""
        return {name for name, _ in self.named_parameters() if ".positions" in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Returns the patterns that order parameters by depth, for layer-wise learning rates."""
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^(?:conv1|bn1|maxpool)\b", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: the activations inside each block are computed again in the backward."""
        self.grad_checkpointing = enable

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Returns the classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a fresh one.

        Args:
            num_classes: Number of classes; 0 for none.
            global_pool: New pooling; None keeps the present one.
        """
        parameter = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool, *_, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            device=parameter.device,
            dtype=parameter.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the final features and those on the way.

        Args:
            x: Images of shape (b in_chans height width).
            indices: Entries of `feature_info` to return; n stands for the last n, None for all.
            norm: Accepted for timm's sake: these features need no norm.
            stop_early: Whether to stop behind the last entry asked for.
            output_fmt: "NCHW".
            intermediates_only: Whether to return the list alone.

        Raises:
            ValueError: If an index does not exist or the format is another.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take = self._take(indices)
        last = self.feature_info[max(take)]["module"] if stop_early else None
        taps = {self.feature_info[index]["module"] for index in take}
        intermediates = []
        x = self.act1(self.bn1(self.conv1(x)))
        if "act1" in taps:
            intermediates.append(x)
        if last != "act1":
            x = self.maxpool(x)
            for name in self._stages():
                stage = self.get_submodule(name)
                x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
                if name in taps:
                    intermediates.append(x)
                if name == last:
                    break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the entries of `feature_info` asked for do not need, and returns their indices.

        Args:
            indices: Entries to keep; n stands for the last n.
            prune_norm: Accepted for timm's sake: there is no final norm.
            prune_head: Whether to remove the classifier even where the last stage is kept.
        """
        take = self._take(indices)
        last = self.feature_info[max(take)]
        names = self._stages()
        kept = 0 if last["module"] == "act1" else names.index(last["module"]) + 1
        for name in names[kept:]:
            setattr(self, name, nn.Sequential())
        if kept == 0:
            self.maxpool = nn.Identity()
        if kept < len(names):
            self.num_features = last["num_chs"]
        if prune_head or kept < len(names):
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the final features (b num_features h w) of images (b in_chans height width)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for name in self._stages():
            stage = self.get_submodule(name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pools the final features and classifies them, or stops before the classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits of shape (b num_classes) for images of shape (b in_chans height width)."""
        return self.forward_head(self.forward_features(x))

    def _stages(self) -> list[str]:
        return [f"layer{stage + 1}" for stage in range(len(self.config.depths))]

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_info)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            indices = range(-indices, 0)
        if not indices or not all(-count <= index < count for index in indices):
            raise ValueError(f"indices must name some of the {count} feature maps, got {list(indices)}")
        return [index % count for index in indices]


def _initialise(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return
    for child in module.children():
        _initialise(child)
