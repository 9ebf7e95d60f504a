"""Convolutions on sequences, dense or depthwise, causal or centred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sequence_layer import SequenceLayer
from .states import SequenceState


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvolutionState(SequenceState):
    """State of a causal convolution: its last inputs.

    Attributes:
        inputs: The last inputs `[b, dim, taps - 1]`, zeros before the first element.
    """

    inputs: Tensor


class Convolution1d(SequenceLayer):
    """Convolution on sequences, causal or centred, without bias.

    `y[b,:,n] = sum_t weight[:,:,t] x[b,:,n-taps+1+t]` if causal, with zeros before the first element.
    Parameters: dim * dim_out * taps weights, or dim * taps if depthwise.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; `dim` by default.
        taps: Positions that the kernel combines: a position and the `taps - 1` before it, or with
            `causal=False` `taps // 2` before it and the others after it.
        depthwise: Whether each channel is convolved separately, which needs `dim_out = dim`.
        causal: Whether each position sees only itself and earlier positions.
        gate: Whether the output is multiplied by the SiLU of a projection of the input.
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Example:
        >>> layer = Convolution1d(64, taps=9)
        >>> y, state = layer(torch.randn(2, 64, 100), return_state=True)
        >>> y_t, state = layer.step(torch.randn(2, 64), state)
        >>> y.shape, y_t.shape, state.inputs.shape
        (torch.Size([2, 64, 100]), torch.Size([2, 64]), torch.Size([2, 64, 8]))
    """

    state_type = ConvolutionState

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        taps: int = 3,
        depthwise: bool = False,
        causal: bool = True,
        gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim_out, causal=causal, gate=gate, device=device, dtype=dtype)
        if taps < 1:
            raise ValueError(f"taps must be at least 1, got {taps}")
        if depthwise and self.dim_out != dim:
            raise ValueError(f"depthwise=True needs dim_out = dim = {dim}, got {self.dim_out}")
        self.taps, self.depthwise = taps, depthwise
        channels = 1 if depthwise else dim
        self.weight = nn.Parameter(torch.empty(self.dim_out, channels, taps, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise with standard deviation fan_in^-1/2, so that outputs have the variance of the input."""
        super().reset_parameters()
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def _state_shapes(self, batch: int, state: SequenceState | None) -> dict[str, tuple[int, ...]]:
        return {"inputs": (batch, self.dim, self.taps - 1)}

    def _apply_rows(
        self, x: Tensor, state: ConvolutionState | None, lengths: Tensor | None, return_state: bool
    ) -> tuple[Tensor, ConvolutionState | None]:
        before = self.taps - 1 if self.causal else self.taps // 2
        if state is None:
            padded = F.pad(x, (0, 0, before, self.taps - 1 - before))  # [b, n + taps - 1, dim]
        else:
            padded = torch.cat([state.inputs.mT.to(x.dtype), x], 1)
        # As images of height 1 the rows are channels-last, which oneDNN convolves without copies.
        images = padded.mT.unsqueeze(2)  # [b, dim, 1, n + taps - 1]
        y = F.conv2d(images, self.weight.unsqueeze(2), groups=self.dim if self.depthwise else 1)
        y = y.squeeze(2).mT
        if not return_state:
            return y, None
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
            last = padded[:, x.shape[1] :]  # [b, taps - 1, dim]
        else:
            columns = lengths[:, None] + torch.arange(self.taps - 1, device=x.device)
            last = padded.take_along_dim(columns[..., None], 1)
        length = lengths if state is None else state.length + lengths
        # A copy: a view would keep all inputs in memory.
        inputs = last.mT.clone(memory_format=torch.contiguous_format).to(self.weight.dtype)
        return y, ConvolutionState(inputs=inputs, length=length)

    def _step(self, x: Tensor, state: ConvolutionState) -> tuple[Tensor, ConvolutionState]:
        window = torch.cat([state.inputs, x[..., None].to(state.inputs.dtype)], 2)  # [b, dim, taps]
        if self.depthwise:
            y = (window * self.weight[:, 0]).sum(2)
        else:
            y = F.linear(window.flatten(1), self.weight.flatten(1))
        return y, ConvolutionState(inputs=window[:, :, 1:], length=state.length + 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, taps={self.taps}, depthwise={self.depthwise}"
