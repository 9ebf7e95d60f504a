"""Programs of torch.export as .pt2 files; the metadata are `extra_files`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lambdanets.exporting.format import ExportError, Signature

SUFFIX = ".pt2"


def check(opset: int | None) -> None:
    """Raise ExportError if `opset` is given, which this format does not have."""
    if opset is not None:
        raise ExportError(f"opset={opset} belongs to format 'onnx'; format 'torch' has none")


def write(program: ExportedProgram, file: Path, signature: Signature, opset: int | None) -> None:
    """Write a program of PyTorch's own operators."""
    # Serialized in memory: if a write to disk fails, torch's writer aborts the process or hides the reason.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=dict(signature.metadata))
    file.write_bytes(content.getbuffer())


def load(file: Path, signature: Signature) -> Callable[..., object]:
    """Return the file as a function of tensors."""
    module = torch.export.load(file).module()

    def run(*inputs: Any) -> object:
        with torch.no_grad():
            return module(*inputs)

    return run
