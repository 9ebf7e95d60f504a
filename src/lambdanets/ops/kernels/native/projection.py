"""1x1 projections of one input in C++ (source/projection.h): outputs and gradients, batch norms fused."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from . import Call, TensorStruct, invoke_complete

MAX_PARTS = 4


class Norm(NamedTuple):
    """A batch norm in evaluation, by its tensors `[o]`; without scale and shift it only normalises."""

    mean: Tensor
    variance: Tensor
    scale: Tensor | None
    shift: Tensor | None
    epsilon: float


class _Part(ctypes.Structure):
    """`LambdanetsProjectionPart` of source/interface.h."""

    _fields_ = (
        ("outputs", ctypes.c_int64),
        ("weight", TensorStruct),
        ("y", TensorStruct),
        *((name, ctypes.c_void_p) for name in Norm._fields[:-1]),
        ("epsilon", ctypes.c_double),
        ("g", TensorStruct),
        ("d_weight", TensorStruct),
    )


class _ProjectionCall(Call):
    """`LambdanetsProjection` of source/interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "positions", "parts")),
        ("x", TensorStruct),
        ("dx", TensorStruct),
        ("part", _Part * MAX_PARTS),
    )


_PACK_CALL = struct.Struct("=4q6q6q").pack_into  # the fields from `batch` on
_PACK_PART = struct.Struct("=q6q6q4qd6q6q").pack_into
_NO_TENSOR = (0,) * 6
_NO_NORM = (0, 0, 0, 0, 0.0)


def has_native_strides(x: Tensor) -> bool:
    """Return whether the library can read an input `[b, d, *grid]`.

    Its grid has to be one axis of positions in memory. Either positions are adjacent, or channels are and
    the distance of positions is constant over the whole batch.
    """
    strides = _strides(x)
    if strides is None:
        return False
    batch, channel, position = strides
    positions = math.prod(x.shape[2:])
    return position == 1 or (
        (channel == 1 or x.shape[1] == 1) and (batch == positions * position or x.shape[0] == 1)
    )


def output(x: Tensor, weights: Sequence[Tensor], y: Sequence[Tensor], norms: Sequence[Norm | None]) -> None:
    """Write the projections of x into y, with the norms that follow them.

    Args:
        x: Input `[b, d, *grid]`; it is copied unless `has_native_strides`.
        weights: Weight of each projection, `[o, d]`, maybe with further axes of size 1.
        y: Outputs, dense `[b, o, *grid]` each.
        norms: Norm of each projection, or None.
    """
    if not x.numel():
        return
    x, weights = _readable(x), [weight.contiguous() for weight in weights]
    parts = []
    for weight, target, norm in zip(weights, y, norms, strict=True):
        fields = _NO_NORM
        if norm is not None:
            fields = *(0 if t is None else t.data_ptr() for t in norm[:-1]), norm.epsilon
        parts.append((len(weight), *_matrix(weight), *_images(target), *fields, *_NO_TENSOR, *_NO_TENSOR))
    _run("output", x, None, parts)


def gradients(
    g: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    dx: Tensor | None,
    d_weights: Sequence[Tensor | None],
) -> None:
    """Write the gradients that are given: of the input, and of each weight.

    Args:
        g: Gradients of the outputs, `[b, o, *grid]` each.
        x: Input, as for `output`.
        weights: Weight of each projection, as for `output`.
        dx: Gradient of x, in the memory format of x.
        d_weights: Gradient of each weight, contiguous.
    """
    if not x.numel():
        for d_weight in d_weights:
            if d_weight is not None:
                d_weight.zero_()
        return
    x, weights = _readable(x), [weight.contiguous() for weight in weights]
    g = [each if _strides(each) else each.contiguous() for each in g]
    parts = [
        (len(weight), *_matrix(weight), *_NO_TENSOR, *_NO_NORM, *_images(upstream), *_matrix(d_weight))
        for weight, upstream, d_weight in zip(weights, g, d_weights, strict=True)
    ]
    _run("gradients", x, dx, parts)


def _readable(x: Tensor) -> Tensor:
    """Return an input that the library can read, a copy if necessary."""
    return x if has_native_strides(x) else x.contiguous()


def _run(function: str, x: Tensor, dx: Tensor | None, parts: Sequence[Iterable[float]]) -> None:
    """Call a function of the library with the fields of each `_Part`."""
    call = _ProjectionCall()
    sizes = x.shape[0], x.shape[1], math.prod(x.shape[2:]), len(parts)
    # Packed in a tenth of the time of assignments to the fields.
    _PACK_CALL(call, _ProjectionCall.batch.offset, *sizes, *_images(x), *_images(dx))
    for i, part in enumerate(parts):
        _PACK_PART(call, _ProjectionCall.part.offset + i * ctypes.sizeof(_Part), *part)
    if not invoke_complete(f"projection_{function}", call, x.dtype, x.device.type):
        raise MemoryError(f"the projections of x {tuple(x.shape)} found no memory for their temporaries")


def _strides(x: Tensor) -> tuple[int, int, int] | None:
    """Return the strides of x `[b, c, *grid]` as `[b, c, n]`; None if the grid is not one axis in memory."""
    position = None
    expected = 0
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size == 1:
            continue
        if position is None:
            position = stride
        elif stride != expected:
            return None
        expected = size * stride
    # With one position per example the positions of the batch are the examples.
    return x.stride(0), x.stride(1), x.stride(0) if position is None else position


def _images(x: Tensor | None) -> tuple[int, ...]:
    """Return a tensor `[b, c, *grid]` as `[b, c, n]` in the fields of a `TensorStruct`."""
    if x is None:
        return _NO_TENSOR
    strides = _strides(x)
    assert strides is not None
    return x.data_ptr(), *strides, 0, 0


def _matrix(weight: Tensor | None) -> tuple[int, ...]:
    """Return a weight `[o, d, *1]` as `[o, d]` in the fields of a `TensorStruct`."""
    return _NO_TENSOR if weight is None else (weight.data_ptr(), *weight.stride()[:2], 0, 0, 0)
