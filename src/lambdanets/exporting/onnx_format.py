"""ONNX files, written by torch.onnx and run by onnxruntime; the metadata are `metadata_props`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lambdanets.exporting.format import ExportError, Signature

SUFFIX = ".onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# PyTorch's translations of operators target this version.
MIN_OPSET = 18


def check(opset: int | None) -> None:
    """Raise ExportError if a package is missing or `opset` is too old."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ExportError(f"format 'onnx' needs {' and '.join(missing)}: pip install 'lambdanets[export]'")
    if opset is not None and opset < MIN_OPSET:
        raise ExportError(f"opset must be at least {MIN_OPSET}, which PyTorch translates to; got {opset}")


def write(program: ExportedProgram, file: Path, signature: Signature, opset: int | None) -> None:
    """Write a program of PyTorch's own operators, with its weights inside the file."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # PyTorch 2.12 uses a class that it deprecates itself.
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec", FutureWarning)
        # Two inputs share axes, such as the batch.
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        exported = torch.onnx.export(
            program,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            dynamic_shapes=tuple(dict(axes) for axes in signature.inputs.values()),
            opset_version=opset,
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(signature.metadata)
    exported.save(file, external_data=False)


def load(file: Path, signature: Signature) -> Callable[..., object]:
    """Return the file as a function of tensors, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # onnxruntime prints errors that it also raises.
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Any) -> object:
        tensors: list[Tensor] = pytree.tree_leaves(inputs)
        feed = {name: x.numpy() for name, x in zip(signature.inputs, tensors, strict=True)}
        return [torch.from_numpy(y) for y in session.run(list(signature.outputs), feed)]

    return run
