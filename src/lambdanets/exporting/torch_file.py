"""A program of torch.export as a file; the facts are its extra files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .interface import ExportError, Interface

SUFFIX = ".pt2"


def check(opset: int | None) -> None:
    """Raise ExportError where this format cannot be written as asked."""
    if opset is not None:
        raise ExportError(f"opset={opset} is a matter of format 'onnx'; format 'torch' has none")


def write(program: ExportedProgram, file: Path, interface: Interface, opset: int | None) -> None:
    """Write a program whose operators are PyTorch's own."""
    # Through memory: where a write fails, torch's writer ends the process, or hides the reason.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=dict(interface.facts))
    file.write_bytes(content.getbuffer())


def load(file: Path, interface: Interface) -> Callable[..., object]:
    """The file as a function of tensors."""
    module = torch.export.load(file).module()

    def run(*inputs: Tensor) -> object:
        with torch.no_grad():
            return module(*inputs)

    return run
