"""ResNets whose bottleneck blocks contain a convolution, a lambda layer, or another of `OPERATORS`."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.classifier import create_classifier
from timm.layers.drop import DropPath
from timm.layers.squeeze_excite import SqueezeExcite
from timm.models import checkpoint_seq
from timm.models.resnet import downsample_avg, downsample_conv
from torch import nn

from lambdanets.nn import LambdaLayer2d
from lambdanets.nn.blocks import Bottleneck

from .config import ResNetConfig
from .operators import OPERATORS, BlockPosition, build_operator


class ResNet(nn.Module):
    """ResNet for images of any size, with the interface of timm's backbones.

    Parameters have the names that timm and torchvision use, so the weights of their ResNets load into
    configurations without lambda layers.

    Args:
        config: The architecture.
        num_classes: Classes of the head; 0 for pooled features.
        in_chans: Channels of the images.
        global_pool: Pooling before the head, as in timm; "" for none.
        output_stride: 8, 16 or 32. Stages that would exceed it keep their resolution and are dilated instead;
            not all operators support that.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 at the first block.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If the output stride or the operator is unknown, or the operator cannot be dilated.

    Differences from the paper:
        The pooling after a strided lambda layer averages over existing pixels, as TensorFlow's does, and not
        over zeros beyond the border; `config.pool_padding` changes that.
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
    ) -> None:
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
        self.conv1 = _stem_conv(config, in_chans, factory)
        self.bn1 = nn.BatchNorm2d(dim, **factory)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = _stem_pool(config, factory)
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
                    _bottleneck(
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
        """Initialise all parameters and buffers, also those of a model that `to_empty` has allocated.

        Convolutions get He's initialisation (fan out). Other modules with a `reset_parameters`, such as
        lambda layers, are initialised by that method.
        """
        if self.config.shared_positions:
            self._share_positions()
        _initialise(self)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.zero_init_last()

    def _share_positions(self) -> None:
        """Let the lambda layers of a stage share one position table: that of the first, the largest.

        Part of the initialisation, since `to_empty` allocates separate tables.
        """
        for name in self._stages():
            layers = [m for m in self.get_submodule(name).modules() if isinstance(m, LambdaLayer2d)]
            for layer in layers:
                layer.positions = layers[0].positions

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay: the position tables."""
        return {name for name, _ in self.named_parameters() if ".positions" in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns that group parameters by depth, for layer-wise learning rates."""
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^(?:conv1|bn1|maxpool)\b", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether the backward pass recomputes the activations of each block, which saves memory."""
        self.grad_checkpointing = enable

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a newly initialised one.

        Args:
            num_classes: Number of classes; 0 for no classifier.
            global_pool: New pooling; None keeps the current one.
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
        """Return the final features and the intermediate feature maps.

        Args:
            x: Images `[b, in_chans, height, width]`.
            indices: Entries of `feature_info` to return: their indices, an int n for the last n, or None for
                all.
            norm: Has no effect, as there is no final norm; part of timm's interface.
            stop_early: Whether to stop after the last of these entries.
            output_fmt: "NCHW".
            intermediates_only: Whether to return only the list of feature maps.

        Returns:
            The final features and the list of feature maps, or only the list.

        Raises:
            ValueError: If an index does not exist, or the format is not "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        selected = self._feature_indices(indices)
        last = self.feature_info[max(selected)]["module"] if stop_early else None
        modules = {self.feature_info[index]["module"] for index in selected}
        intermediates = []
        x = self.act1(self.bn1(self.conv1(x)))
        if "act1" in modules:
            intermediates.append(x)
        if last != "act1":
            x = self.maxpool(x)
            for name in self._stages():
                stage = self.get_submodule(name)
                x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
                if name in modules:
                    intermediates.append(x)
                if name == last:
                    break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the modules that the given feature maps do not need.

        Args:
            indices: Entries of `feature_info` to keep: their indices, or an int n for the last n.
            prune_norm: Has no effect, as there is no final norm; part of timm's interface.
            prune_head: Whether to remove the classifier even if the last stage is kept.

        Returns:
            The indices of the entries that are kept.
        """
        selected = self._feature_indices(indices)
        last = self.feature_info[max(selected)]
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
        return selected

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return final features `[b, num_features, h, w]` of images `[b, in_chans, height, width]`."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for name in self._stages():
            stage = self.get_submodule(name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool final features and classify them; with `pre_logits`, only pool them."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `[b, num_classes]` for images `[b, in_chans, height, width]`."""
        return self.forward_head(self.forward_features(x))

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the module that torch.jit.script compiles: the same modules, one after the other."""
        modules = OrderedDict(self.named_children())
        head = modules.pop("fc")
        drop = nn.Dropout(self.drop_rate).train(self.training)
        return nn.Sequential(OrderedDict([*modules.items(), ("head_drop", drop), ("fc", head)]))

    def _stages(self) -> list[str]:
        return [f"layer{stage + 1}" for stage in range(len(self.config.depths))]

    def _feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the indices in `feature_info`: of all for None, of the last n for an int n."""
        count = len(self.feature_info)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            indices = range(-indices, 0)
        if not indices or not all(-count <= index < count for index in indices):
            raise ValueError(f"indices must name some of the {count} feature maps, got {list(indices)}")
        return [index % count for index in indices]


def _initialise(module: nn.Module) -> None:
    """Initialise a module by its `reset_parameters`, if it has one, or else its children."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return
    for child in module.children():
        _initialise(child)


def count_parameters(config: ResNetConfig, num_classes: int, in_chans: int) -> int:
    """Return the number of parameters of a ResNet without building all of it.

    Blocks of a stage, except the first one, have equally many parameters if they have the same operator. One
    block of each kind is built on the meta device, and counted as often as the kind occurs.

    Args:
        config: The architecture.
        num_classes: Classes of the head.
        in_chans: Channels of the images.
    """
    stages = [
        Counter(
            # A shared position table belongs to one block, so no two blocks are of the same kind.
            (block if config.shared_positions else block == 0, *config.contents(stage, block))
            for block in range(depth)
        )
        for stage, depth in enumerate(config.depths)
    ]
    distinct = replace(
        config,
        depths=tuple(len(kinds) for kinds in stages),
        operator_blocks=tuple(
            tuple(block for block, (_, operator, _) in enumerate(kinds) if operator == config.operator)
            for kinds in stages
        ),
        squeeze_excite=tuple(
            tuple(block for block, (_, _, squeezes) in enumerate(kinds) if squeezes) for kinds in stages
        ),
    )
    model = ResNet(distinct, num_classes=num_classes, in_chans=in_chans, device="meta")
    total = sum(parameter.numel() for parameter in model.parameters())
    for stage, kinds in enumerate(stages, start=1):
        for block, count in zip(model.get_submodule(f"layer{stage}").children(), kinds.values(), strict=True):
            total += (count - 1) * sum(parameter.numel() for parameter in block.parameters())
    return total


def _stem_conv(config: ResNetConfig, in_chans: int, factory: dict[str, Any]) -> nn.Module:
    dim = config.stem_width
    if config.stem == "conv7":
        return nn.Conv2d(in_chans, dim, 7, stride=2, padding=3, bias=False, **factory)
    if config.stem == "conv3":
        return nn.Conv2d(in_chans, dim, 3, padding=1, bias=False, **factory)
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride=2, padding=1, bias=False, **factory),
        nn.BatchNorm2d(half, **factory),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False, **factory),
        nn.BatchNorm2d(half, **factory),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, dim, 3, padding=1, bias=False, **factory),
    )


def _stem_pool(config: ResNetConfig, factory: dict[str, Any]) -> nn.Module:
    dim = config.stem_width
    if config.stem == "conv7":
        return nn.MaxPool2d(3, stride=2, padding=1)
    if config.stem == "conv3":
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False, **factory),
        nn.BatchNorm2d(dim, **factory),
        nn.ReLU(inplace=True),
    )


def _bottleneck(
    config: ResNetConfig,
    dim: int,
    stage: int,
    block: int,
    *,
    stride: int,
    dilation: int,
    first_dilation: int,
    grid: int,
    drop_path: nn.Module | None,
    **factory: Any,
) -> Bottleneck:
    """Create a block; `stage` and `block` are counted from 0, `dim` are the channels of the input."""
    width = config.widths[stage]
    dim_out = width * config.expansion
    operator, squeezes = config.contents(stage, block)
    # The modules of a block must not depend on whether output_stride replaces its stride by a dilation, so
    # that weights load into the network for any output_stride.
    reduces = stage > 0 and block == 0
    shortcut = None
    if reduces or dim != dim_out:
        make = downsample_avg if config.shortcut == "pool" else downsample_conv
        shortcut = make(
            dim, dim_out, 1, stride=stride, dilation=dilation, first_dilation=first_dilation, **factory
        )
    pool = None
    if reduces and operator != "conv":
        pool = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=config.pool_padding)
    gate = None
    if squeezes:
        gate = SqueezeExcite(dim_out, rd_channels=max(1, dim_out // config.squeeze_reduction), **factory)
    position = BlockPosition(stride=stride, dilation=first_dilation, grid=grid)
    return Bottleneck(
        dim,
        width,
        dim_out,
        build_operator(operator, width, position, config, **factory),
        pool=pool,
        shortcut=shortcut,
        gate=gate,
        drop_path=drop_path,
        **factory,
    )
