"""Residual blocks around an exchangeable operator."""

import torch
from torch import nn


class Bottleneck(nn.Module):
    """Bottleneck residual block around an operator on its inner width.

    y = relu(shortcut(x) + drop_path(gate(bn3(conv3(relu(bn2(pool(operator(relu(bn1(conv1(x)))))))))))

    conv1 and conv3 are 1x1 convolutions; the operator replaces the 3x3 convolution. The parameters have the
    names that timm and torchvision use (the operator is always `conv2`), so the weights of a published
    ResNet load without conversion.

    Args:
        dim: Channels of the input.
        width: Channels inside the block: of the input and the output of the operator.
        dim_out: Channels of the output.
        operator: Module from images `[b, width, h, w]` to images with as many channels.
        pool: Module after the operator, for operators without a stride of their own.
        shortcut: Module on the identity branch, where the shape changes.
        gate: Channel gate on the residual branch, such as squeeze-and-excitation.
        drop_path: Stochastic depth on the residual branch.
        device: Device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        dim_out: int,
        operator: nn.Module,
        *,
        pool: nn.Module | None = None,
        shortcut: nn.Module | None = None,
        gate: nn.Module | None = None,
        drop_path: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, width, 1, bias=False, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(width, device=device, dtype=dtype)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = operator
        self.pool = pool
        self.bn2 = nn.BatchNorm2d(width, device=device, dtype=dtype)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, dim_out, 1, bias=False, device=device, dtype=dtype)
        self.bn3 = nn.BatchNorm2d(dim_out, device=device, dtype=dtype)
        self.se = gate
        self.drop_path = drop_path
        self.downsample = shortcut
        self.act3 = nn.ReLU(inplace=True)

    def zero_init_last(self) -> None:
        """Set the weight of the last norm to zero, as in the paper, so that the residual branch is zero."""
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block.

        Args:
            x: Images `[b, dim, height, width]`.

        Returns:
            Images `[b, dim_out, height', width']`.
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.conv2(x)
        if self.pool is not None:
            x = self.pool(x)
        x = self.act2(self.bn2(x))
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        return self.act3(x + shortcut)


class LightweightBottleneck(nn.Module):
    """Inverted bottleneck without expansion, in which an operator replaces the depthwise convolution.

    y = x + drop_path(bn3(conv_pwl(relu6(bn2(operator(relu6(bn1(conv_pw(x)))))))))

    Args:
        dim: Channels of input and output, and of the operator.
        operator: Module from images `[b, dim, h, w]` to images with as many channels.
        drop_path: Stochastic depth on the residual branch.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    References:
        LambdaNetworks (Bello, 2021), appendix D.3.2.
    """

    def __init__(
        self,
        dim: int,
        operator: nn.Module,
        *,
        drop_path: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.conv_pw = nn.Conv2d(dim, dim, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(dim, **factory)
        self.act1 = nn.ReLU6(inplace=True)
        self.operator = operator
        self.bn2 = nn.BatchNorm2d(dim, **factory)
        self.act2 = nn.ReLU6(inplace=True)
        self.conv_pwl = nn.Conv2d(dim, dim, 1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(dim, **factory)
        self.drop_path = drop_path
        for convolution in (self.conv_pw, self.conv_pwl):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to images `[b, dim, height, width]`."""
        y = self.act1(self.bn1(self.conv_pw(x)))
        y = self.act2(self.bn2(self.operator(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + (y if self.drop_path is None else self.drop_path(y))
