"""A program of torch.export as an ONNX file; the facts are its metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .interface import ExportError, Interface

SUFFIX = ".onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LEAST_OPSET = 18  # that PyTorch's translations are written for


def check(opset: int | None) -> None:
    """Raise ExportError where this format cannot be written as asked."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ExportError(f"format 'onnx' needs {' and '.join(missing)}: pip install 'lambdanets[export]'")
    if opset is not None and opset < LEAST_OPSET:
        raise ExportError(f"opset must be at least {LEAST_OPSET}, which PyTorch translates to; got {opset}")


def write(program: ExportedProgram, file: Path, interface: Interface, opset: int | None) -> None:
    """Write a program whose operators are PyTorch's own; weights are inside the file."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    made = torch.onnx.export(
        program,
        input_names=list(interface.inputs),
        output_names=list(interface.outputs),
        dynamic_shapes=tuple(dict(axes) for axes in interface.inputs.values()),
        opset_version=opset,
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props.update(interface.facts)
    made.save(file, external_data=False)


def load(file: Path, interface: Interface) -> Callable[..., object]:
    """The file as a function of tensors, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it would print comes as an exception too
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> object:
        given = {name: x.numpy() for name, x in zip(interface.inputs, inputs, strict=True)}
        return [torch.from_numpy(y) for y in session.run(list(interface.outputs), given)]

    return run
