"""Classifiers of recordings: residual networks on sequences, with lambda layers or another operator.

A block is the bottleneck of `lambdanets.nn.blocks` on one axis, as in TC-ResNet (Choi et al., 2019) and the
LambdaResNet for keywords of Escur et al. (2021): 1x1 projection, operator, 1x1 projection, each followed by a
batch norm. Recordings differ in length: in training the norms see the elements of recordings alone, and
operators get the mask, so padding changes neither outputs nor gradients nor running statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from .int8 import dequantise
from .operators import SEQUENCE_OPERATORS
from .registry import check_options, register_entrypoints
from .shipped import shipped_cfg


@dataclass(frozen=True, kw_only=True)
class AudioResNetConfig:
    """Architecture of an `AudioResNet`.

    Args:
        widths: Channels of each stage.
        depths: Blocks of each stage.
        strides: Stride of the first block of each stage.
        stem_strides: Strides of the convolutions of the stem, which have 2 * stride + 1 taps: (8, 5, 2) takes
            raw samples.
        operator: Operator of the blocks, a name in `SEQUENCE_OPERATORS`.
        num_heads: Heads of lambda and attention layers.
        dim_k: Lambda: depth of queries and keys.
        scope: Lambda: positions of the window of the position table.
        content: Lambda: whether lambdas have a content part.
        position: Lambda: whether lambdas have a position part.
        taps: Convolutions: positions of the kernel.
        depthwise: Convolutions: whether each channel is convolved separately.
    """

    widths: tuple[int, ...] = (40, 56, 64)
    depths: tuple[int, ...] = (2, 2, 2)
    strides: tuple[int, ...] = (1, 2, 2)
    stem_strides: tuple[int, ...] = (2,)
    operator: str = "lambda"
    num_heads: int = 4
    dim_k: int = 16
    scope: int = 23
    content: bool = True
    position: bool = True
    taps: int = 9
    depthwise: bool = False

    def __post_init__(self) -> None:
        stages = ("widths", "depths", "strides")
        for name in (*stages, "stem_strides"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if not value or min(value) < 1:
                raise ValueError(f"{name} must be numbers of 1 or more, got {value}")
        if len({len(getattr(self, name)) for name in stages}) > 1:
            raise ValueError(
                "widths, depths and strides must have one number for each stage, got "
                f"{self.widths}, {self.depths} and {self.strides}"
            )
        if self.operator not in SEQUENCE_OPERATORS:
            raise ValueError(
                f"operator must be one of {', '.join(SEQUENCE_OPERATORS)}, got {self.operator!r}"
            )

    def operator_options(self) -> dict[str, Any]:
        """Return the options of the operator's layers."""
        if self.operator == "lambda":
            scope = self.scope if self.position else None
            return {
                "dim_k": self.dim_k, "scope": scope, "content": self.content, "position": self.position
            }  # fmt: skip
        return {"taps": self.taps, "depthwise": self.depthwise} if self.operator == "conv" else {}


class Layout:
    """The visible positions of a batch of sequences of different lengths.

    Args:
        mask: True at the positions of sequences, `[b, n]`; None if all are.
        packs: Whether `pack` leaves hidden positions out, as the statistics of batch norms in training need.
            Without it no shape depends on the values of the mask, as export needs.
    """

    def __init__(self, mask: Tensor | None, *, packs: bool) -> None:
        self.mask, self.packs = mask, packs
        self._rows = mask.flatten().nonzero()[:, 0] if packs and mask is not None else None

    def pack(self, x: Tensor) -> Tensor:
        """Return the positions of `[b, n, c]` as rows `[m, c]`."""
        rows = x.reshape(-1, x.shape[2])
        return rows if self._rows is None else rows.index_select(0, self._rows)

    def unpack(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return rows `[m, c]` as `[b, n, c]` for b and n of `like`, with zeros at positions left out."""
        b, n = like.shape[:2]
        if self._rows is not None:
            rows = rows.new_zeros(b * n, rows.shape[1]).index_copy(0, self._rows, rows)
        return rows.view(b, n, rows.shape[1])

    def hide(self, x: Tensor) -> Tensor:
        """Return `[b, n, c]` with zeros at hidden positions."""
        return x if self.mask is None else x.masked_fill(~self.mask[:, :, None], 0)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean `[b, c]` over the visible positions of `[b, n, c]`; zeros if there are none."""
        if self.mask is None:
            return x.mean(1)
        return self.hide(x).sum(1) / self.mask.sum(1, keepdim=True).clamp(min=1)

    def strided(self, stride: int, length: int) -> Layout:
        """Return the layout of every `stride`-th position, of which there are `length`."""
        if stride == 1 or self.mask is None:
            return self
        kept = torch.arange(length, device=self.mask.device) * stride
        return Layout(self.mask.index_select(1, kept), packs=self.packs)


def every(x: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th position of `[b, n, c]`."""
    if stride == 1:
        return x
    # Not a slice, whose strides torch.export would make a condition on n.
    return x.index_select(1, torch.arange(0, x.shape[1], stride, device=x.device))


class AudioBlock(nn.Module):
    """Residual block on `[b, n, dim]`.

    `relu(shortcut(x) + bn3(proj2(relu(bn2(operator(relu(bn1(proj1(x)))))))))`; with a stride, the output has
    every `stride`-th position.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output, and of the operator.
        config: The architecture.
        stride: Stride.
        factory: device and dtype of the parameters.
    """

    def __init__(
        self, dim: int, dim_out: int, config: AudioResNetConfig, stride: int, **factory: Any
    ) -> None:
        super().__init__()
        self.stride, self.masks = stride, config.operator != "conv"
        self.proj1 = nn.Linear(dim, dim_out, bias=False, **factory)
        self.bn1 = nn.BatchNorm1d(dim_out, **factory)
        build = SEQUENCE_OPERATORS[config.operator]
        self.operator = build(dim_out, config.num_heads, causal=False, **config.operator_options(), **factory)
        self.bn2 = nn.BatchNorm1d(dim_out, **factory)
        self.proj2 = nn.Linear(dim_out, dim_out, bias=False, **factory)
        self.bn3 = nn.BatchNorm1d(dim_out, **factory)
        self.shortcut = None
        if dim != dim_out or stride > 1:
            self.shortcut = nn.Linear(dim, dim_out, bias=False, **factory)
            self.bn_shortcut = nn.BatchNorm1d(dim_out, **factory)
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Return the output `[b, n', dim_out]`, zero at hidden positions in training, and its layout."""
        y = layout.unpack(F.relu(self.bn1(self.proj1(layout.pack(x)))), x)
        y = self._operate(y, layout)
        x, y = every(x, self.stride), every(y, self.stride)
        layout = layout.strided(self.stride, x.shape[1])
        rows = self.bn3(self.proj2(F.relu(self.bn2(layout.pack(y)))))
        kept = layout.pack(x)
        if self.shortcut is not None:
            kept = self.bn_shortcut(self.shortcut(kept))
        return layout.unpack(F.relu(rows + kept), x), layout

    def _operate(self, x: Tensor, layout: Layout) -> Tensor:
        if layout.mask is None or not self.masks:
            # Zeros around a sequence are what a convolution sees at its ends.
            return self.operator(layout.hide(x).mT).mT
        return self.operator(x.mT, mask=layout.mask).mT


class AudioResNet(nn.Module):
    """Residual network on sequences of features or samples, of any length.

    Args:
        config: The architecture.
        num_classes: Classes of the head; 0 for pooled features.
        in_chans: Channels of the input: mel bands, or 1 for samples.
        drop_rate: Dropout before the classifier.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an option of the architecture is out of range.

    Example:
        >>> model = create_model("lambda_audio", num_classes=10, in_chans=40)
        >>> lengths = torch.tensor([[100], [60]])
        >>> model(torch.randn(2, 40, 100), mask=torch.arange(100) < lengths).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        config: AudioResNetConfig,
        num_classes: int = 35,
        in_chans: int = 40,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config, self.num_classes, self.in_chans = config, num_classes, in_chans
        width = config.widths[0]
        channels = (in_chans, *(width for _ in config.stem_strides[1:]))
        self.stem = nn.ModuleList(
            nn.Conv1d(c, width, 2 * stride + 1, stride=stride, padding=stride, bias=False, **factory)
            for c, stride in zip(channels, config.stem_strides, strict=True)
        )
        self.stem_norms = nn.ModuleList(nn.BatchNorm1d(width, **factory) for _ in config.stem_strides)
        self.blocks = nn.ModuleList()
        for dim_out, depth, stride in zip(config.widths, config.depths, config.strides, strict=True):
            for number in range(depth):
                block = AudioBlock(width, dim_out, config, 1 if number else stride, **factory)
                self.blocks.append(block)
                width = dim_out
        self.num_features = self.head_hidden_size = width
        self.drop = nn.Dropout(drop_rate)
        self.fc = self._head(**factory)

    def _head(self, **factory: Any) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        return nn.Linear(self.num_features, self.num_classes, **factory)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the position tables, which have no weight decay."""
        return {name for name, _ in self.named_parameters() if name.endswith(".positions")}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int, int]]:
        """Return a function from a parameter's name to its depth, for layer-wise learning rates and freezing.

        Args:
            coarse: One depth for all blocks of the same width, instead of one for each block.
        """
        stages = [stage for stage, depth in enumerate(self.config.depths) for _ in range(depth)]

        def depth_of(name: str) -> tuple[int, int]:
            part, number, *_ = name.split(".")
            if part != "blocks":
                return (0, 0) if part.startswith("stem") else (2, 0)
            return 1, stages[int(number)] if coarse else int(number)

        return depth_of

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by one with random weights for another number of classes; 0 removes it."""
        self.num_classes = num_classes
        weight = next(self.parameters())
        self.fc = self._head(device=weight.device, dtype=weight.dtype)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Layout]:
        """Return the last feature map `[b, n', c]` and its layout; arguments as for `forward`."""
        if x.ndim != 3 or x.shape[1] != self.in_chans:
            raise ValueError(f"x must be of shape (b {self.in_chans} n), got {tuple(x.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (x.shape[0], x.shape[2])):
            raise ValueError(
                f"mask must be a bool tensor of shape (b, n) = {(x.shape[0], x.shape[2])}, True at the "
                f"elements of sequences; got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        layout, x = Layout(mask, packs=self.training), x.mT
        parts = zip(self.stem, self.stem_norms, self.config.stem_strides, strict=True)
        for conv, norm, stride in parts:
            x = conv(layout.hide(x).mT).mT
            layout = layout.strided(stride, x.shape[1])
            x = layout.unpack(F.relu(norm(layout.pack(x))), x)
        for block in self.blocks:
            x, layout = block(x, layout)
        return x, layout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify sequences.

        Args:
            x: Features or samples `[b, in_chans, n]`, with padding at the end.
            mask: True at the elements of sequences, `[b, n]`; None if there is no padding.

        Returns:
            Logits `[b, num_classes]`.

        Raises:
            ValueError: If a shape does not match the network or the mask.
        """
        x, layout = self.forward_features(x, mask)
        return self.fc(self.drop(layout.mean(x)))


CONFIGS = {
    "lambda_audio": AudioResNetConfig(),
    "lambda_audio_small": AudioResNetConfig(widths=(24, 40, 56), depths=(1, 1, 1)),
}
_ARCHITECTURE_OPTIONS = frozenset(field.name for field in fields(AudioResNetConfig))
_OPTIONS = _ARCHITECTURE_OPTIONS | {
    "num_classes", "in_chans", "drop_rate", "device", "dtype",
    "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir",
}  # fmt: skip


def _entrypoint(name: str) -> Any:
    """Return the function that creates a model, in the form in which timm's registry expects it."""

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        check_options(name, options, _OPTIONS)
        architecture = {key: options.pop(key) for key in _ARCHITECTURE_OPTIONS & options.keys()}
        config = replace(CONFIGS[name], **architecture)
        return build_model_with_cfg(
            AudioResNet,
            name,
            pretrained,
            config=config,
            pretrained_filter_fn=lambda weights, _: dequantise(weights),
            **options,
        )

    create.__doc__ = f"Create {name}; its options are the fields of `AudioResNetConfig`."
    return create


_CFG = {
    "url": "",
    "num_classes": 35,
    "input_size": (40, 1, 100),  # timm expects three sizes: bands, 1, elements
    "mean": (0.0,) * 40,  # recordings are normalised by their own statistics
    "std": (1.0,) * 40,
    "first_conv": "stem.0",
    "classifier": "fc",
    "license": "apache-2.0",
    "paper_ids": "arXiv:2104.08086",
}
default_cfgs = generate_default_cfgs({name: {**_CFG, **shipped_cfg(name)} for name in CONFIGS})
register_entrypoints(
    {name: _entrypoint(name) for name in CONFIGS},
    __name__,
    {
        name: f"{'-'.join(map(str, config.depths))} blocks on sequences; lambda in all; scope {config.scope}"
        for name, config in CONFIGS.items()
    },
)
