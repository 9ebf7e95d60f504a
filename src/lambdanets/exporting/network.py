"""`export_network`: trace a network, write it as one file, load the file and compare its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from lambdanets.exporting import onnx_format, torch_format
from lambdanets.exporting.format import ExportError, Format, Signature
from lambdanets.utils.files import move_into_place, naming

FORMATS: dict[str, Format] = {"torch": torch_format, "onnx": onnx_format}

TOLERANCE = 1e-4
"""The largest difference that counts as rounding, relative to the largest output: sums in another order
differ by about 1e-6 in float32, a wrong border or a wrong entry of a table by 1e-3 and more."""

Compare = Callable[[Sequence[str], Sequence[Tensor], Sequence[Tensor]], tuple[float, float]]
"""From the names of the outputs, the file's outputs and the network's to the largest difference and the
network's largest output; raises ExportError if they disagree."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file and its comparison with the network.

    Attributes:
        file: Path of the file.
        inputs: The shape of each input by its name; a dynamic axis has a name instead of its size.
        compared: The shapes of the inputs on which the file was compared with the network.
        difference: The largest difference between an output of the file and of the network.
        largest: The largest output of the network, as the scale of `difference`.
    """

    file: Path
    inputs: Mapping[str, tuple[int | str, ...]]
    compared: tuple[tuple[tuple[int, ...], ...], ...]
    difference: float
    largest: float


def export_network(
    network: nn.Module,
    file: str | Path,
    examples: Sequence[tuple[Any, ...]],
    *,
    format: str,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    compare: Compare | None = None,
) -> Exported:
    """Write a network as one file that runs without this package, and compare its outputs with the network's.

    The first example is traced. The file is then loaded again and run on all examples; it appears under its
    name only if its outputs agree with those of the network.

    Args:
        network: In evaluation mode, on the CPU.
        file: Path to write; its folder is created if missing.
        examples: Inputs, one tuple per example, of tensors or of dicts of tensors; they should differ in the
            sizes of dynamic axes.
        format: "torch" (torch.export; .pt2) or "onnx" (.onnx).
        inputs: The name of each tensor, in the order in which nested inputs are flattened, with its dynamic
            axes: axis -> name.
        outputs: The name of each output, in the order in which nested outputs are flattened.
        metadata: Information for users of the file, by name; stored as extra files (torch) or metadata
            (ONNX).
        opset: Version of ONNX's operators; None takes PyTorch's default.
        compare: Replaces `compare_outputs` where the sizes or the order of outputs depend on rounding.

    Returns:
        The file with the largest difference.

    Raises:
        ExportError: The format is unknown or a package for it is missing, the file exists, the network cannot
            be traced or translated, or the outputs of the file differ from those of the network.
        OSError: The disk is full, or the folder cannot be written.

    Example:
        >>> export_network(
        ...     network.eval(), "birds.onnx", [(torch.randn(2, 3, 64, 64),), (torch.randn(1, 3, 64, 64),)],
        ...     format="onnx", inputs={"images": {0: "batch"}}, outputs=["logits"],
        ... )
    """
    file = Path(file)
    file_format = _checked_format(format, file, opset)
    signature = Signature(inputs=inputs, outputs=tuple(outputs), metadata=metadata or {})
    expected = [_run(network, example, "the network") for example in examples]
    program = _trace(network, examples[0], signature)
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        unfinished = Path(folder) / file.name
        with naming(file, unfinished), _as_export_error(f"format {format!r} cannot hold this network"):
            file_format.write(program, unfinished, signature, opset)
            loaded = file_format.load(unfinished, signature)
        actual = [_run(loaded, example, "the file") for example in examples]
        differences = [
            (compare or compare_outputs)(outputs, *pair) for pair in zip(actual, expected, strict=True)
        ]
        move_into_place(unfinished, file)
    return Exported(
        file=file,
        inputs={
            name: tuple(axes.get(axis, size) for axis, size in enumerate(x.shape))
            for (name, axes), x in zip(inputs.items(), pytree.tree_leaves(examples[0]), strict=True)
        },
        compared=tuple(tuple(tuple(x.shape) for x in pytree.tree_leaves(example)) for example in examples),
        difference=max(difference for difference, _ in differences),
        largest=max(largest for _, largest in differences),
    )


def _checked_format(name: str, file: Path, opset: int | None) -> Format:
    if name not in FORMATS:
        raise ExportError(f"format must be {' or '.join(map(repr, FORMATS))}, got {name!r}")
    file_format = FORMATS[name]
    file_format.check(opset)
    if file.suffix != file_format.SUFFIX:
        raise ExportError(f"a file of format {name!r} ends in {file_format.SUFFIX}; got {str(file)!r}")
    if file.exists():
        raise ExportError(f"{file} exists already; remove it or name another file")
    return file_format


def _run(function: Callable[..., object], example: tuple[Any, ...], label: str) -> list[Tensor]:
    """Return the flattened outputs of the network or of the loaded file."""
    shapes = " and ".join(str(tuple(x.shape)) for x in pytree.tree_leaves(example))
    with _as_export_error(f"{label} cannot take inputs of shape {shapes}"), torch.no_grad():
        return pytree.tree_leaves(function(*example))


def _trace(network: nn.Module, example: tuple[Any, ...], signature: Signature) -> ExportedProgram:
    """Return the network as a graph of PyTorch's own operators."""
    axes = [dict.fromkeys(axes, Dim.DYNAMIC) for axes in signature.inputs.values()]
    dynamic = pytree.tree_unflatten(axes, pytree.tree_structure(example))
    names = dict.fromkeys(name for axes in signature.inputs.values() for name in axes.values())
    sizes = f" with any {', '.join(names)}" if names else ""
    with _as_export_error(f"the network cannot be traced{sizes}"), torch.no_grad():
        return torch.export.export(network, example, dynamic_shapes=dynamic)


@contextmanager
def _as_export_error(failure: str) -> Iterator[None]:
    """Raise errors of networks, tracers and runtimes as ExportError with the first line of their cause."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if cause := _os_error(error):
            raise cause from error
        # Translators wrap the cause in advice for their own developers.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        lines = [line.strip() for line in str(first).splitlines() if line.strip()]
        reason = lines[0].rstrip(".:") if lines else type(first).__name__
        raise ExportError(f"{failure}: {reason}") from error


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the first OSError in the chain of causes: a full disk is no fault of the network."""
    # A library may close the chain of causes to a cycle.
    visited: list[BaseException] = []
    while error is not None and error not in visited:
        if isinstance(error, OSError) and error.errno:
            return error
        visited.append(error)
        error = error.__cause__ or error.__context__
    return None


def compare_outputs(
    names: Sequence[str], actual: Sequence[Tensor], expected: Sequence[Tensor]
) -> tuple[float, float]:
    """Return the largest difference of a file's outputs from the network's, and the network's largest output.

    Raises:
        ExportError: The shapes differ, or the values differ by more than rounding.
    """
    shapes = [[tuple(y.shape) for y in outputs] for outputs in (actual, expected)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the file gives outputs of shapes {shapes[0]}, the network {shapes[1]}")
    difference = largest = 0.0
    for name, y, reference in zip(names, actual, expected, strict=True):
        distance = (y.double() - reference.double()).abs().max().item()
        scale = reference.double().abs().max().item()
        # Negated, so that NaN is refused.
        if not distance <= TOLERANCE * scale:
            raise ExportError(
                f"the file gives other {name} than the network: they differ by up to {distance:.2g} "
                f"where the largest is {scale:.2g}; nothing was written"
            )
        difference, largest = max(difference, distance), max(largest, scale)
    return difference, largest
