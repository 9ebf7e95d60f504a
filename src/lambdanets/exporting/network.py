"""`export_network`: trace, lower, write, read again, compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from lambdanets.utils.files import naming

from . import onnx_file, torch_file
from .interface import ExportError, Interface

TOLERANCE = 1e-4
"""The largest difference that is taken for rounding, as a part of the largest output: sums in another order
differ by about 1e-6 in float32, a wrong border or a wrong entry of a table by 1e-3 and more."""


Compare = Callable[[Sequence[str], Sequence[Tensor], Sequence[Tensor]], tuple[float, float]]


class Format(Protocol):
    """What a format of files knows."""

    @property
    def SUFFIX(self) -> str: ...

    def check(self, opset: int | None) -> None: ...

    def write(
        self, program: ExportedProgram, file: Path, interface: Interface, opset: int | None
    ) -> None: ...

    def load(self, file: Path, interface: Interface) -> Callable[..., object]: ...


FORMATS: dict[str, Format] = {"torch": torch_file, "onnx": onnx_file}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        file: Where.
        inputs: The shape of each input by its name; an axis of any size has a name instead of its size.
        compared: The shapes of the inputs on which the file was compared with the network.
        difference: The largest difference between an output of the file and of the network.
        largest: The largest output of the network, to judge it by.
    """

    file: Path
    inputs: Mapping[str, tuple[int | str, ...]]
    compared: tuple[tuple[tuple[int, ...], ...], ...]
    difference: float
    largest: float


def export_network(
    network: nn.Module,
    file: str | Path,
    examples: Sequence[tuple[Tensor, ...]],
    *,
    format: str,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    facts: Mapping[str, str] | None = None,
    opset: int | None = None,
    compare: Compare | None = None,
) -> Exported:
    """Write a network as one file that needs nothing of this package, and compare what it gives.

    The first example is traced. Then the file is loaded again and run on all of them; it appears under its
    name when the outputs are those of the network.

    Args:
        network: In evaluation mode, on the CPU.
        file: Where; its folder is made if it is not there.
        examples: Inputs, one tensor for each; they should differ in the sizes that are to be free.
        format: "torch" (torch.export; .pt2) or "onnx" (.onnx).
        inputs: The name of each input, with its axes of any size: axis -> name.
        outputs: The name of each output, in the order in which nested outputs are flattened.
        facts: What whoever runs the file has to know, by name; kept as extra files or as metadata.
        opset: Version of ONNX's operators; None leaves it to PyTorch.
        compare: How outputs are held against those of the network, as `compare_outputs` does, which it is
            unless said; for outputs whose sizes or order hang on rounding.

    Returns:
        What was written, and the largest difference.

    Raises:
        ExportError: The format is unknown or a package for it is missing, the file exists, the network cannot
            be traced or translated, or the file gives something else than the network.
        OSError: The disk is full, or the folder cannot be written.

    Example:
        >>> export_network(
        ...     network.eval(), "birds.onnx", [(torch.randn(2, 3, 64, 64),), (torch.randn(1, 3, 64, 64),)],
        ...     format="onnx", inputs={"images": {0: "batch"}}, outputs=["logits"],
        ... )
    """
    form = _format(format, opset)
    file = Path(file)
    if file.suffix != form.SUFFIX:
        raise ExportError(f"a file of format {format!r} ends in {form.SUFFIX}; got {str(file)!r}")
    if file.exists():
        raise ExportError(f"{file} exists already; remove it or name another file")
    interface = Interface(inputs=inputs, outputs=tuple(outputs), facts=facts or {})
    expected = [_outputs(network, example) for example in examples]
    program = _traced(network, examples[0], interface)
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        unfinished = Path(folder) / file.name
        with naming(file, unfinished), _telling(f"format {format!r} cannot hold this network"):
            form.write(program, unfinished, interface, opset)
            run = form.load(unfinished, interface)
        found = [_outputs(run, example) for example in examples]
        apart = [(compare or compare_outputs)(outputs, *each) for each in zip(found, expected, strict=True)]
        os.replace(unfinished, file)
    return Exported(
        file=file,
        inputs={
            name: tuple(axes.get(axis, size) for axis, size in enumerate(x.shape))
            for (name, axes), x in zip(inputs.items(), examples[0], strict=True)
        },
        compared=tuple(tuple(tuple(x.shape) for x in example) for example in examples),
        difference=max(difference for difference, _ in apart),
        largest=max(largest for _, largest in apart),
    )


def _format(name: str, opset: int | None) -> Format:
    if name not in FORMATS:
        raise ExportError(f"format must be {' or '.join(map(repr, FORMATS))}, got {name!r}")
    FORMATS[name].check(opset)
    return FORMATS[name]


def _outputs(run: Callable[..., object], example: tuple[Tensor, ...]) -> list[Tensor]:
    shapes = " and ".join(str(tuple(x.shape)) for x in example)
    who = "the network" if isinstance(run, nn.Module) else "the file"
    with _telling(f"{who} cannot take inputs of shape {shapes}"), torch.no_grad():
        return pytree.tree_leaves(run(*example))


def _traced(network: nn.Module, example: tuple[Tensor, ...], interface: Interface) -> ExportedProgram:
    """The network as a graph of PyTorch's own operators."""
    free = tuple(dict.fromkeys(axes, Dim.DYNAMIC) for axes in interface.inputs.values())
    names = [name for axes in interface.inputs.values() for name in axes.values()]
    sizes = f" with any {', '.join(names)}" if names else ""
    with _telling(f"the network cannot be traced{sizes}"), torch.no_grad():
        return torch.export.export(network, example, dynamic_shapes=free)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Say what failed and the first line of why: networks, tracers and runtimes raise errors of any kind."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if cause := _disk_error(error):
            raise cause from error
        first: BaseException = error
        while first.__cause__ is not None:  # translators wrap the reason in advice to their developers
            first = first.__cause__
        lines = [line.strip() for line in str(first).splitlines() if line.strip()]
        reason = lines[0].rstrip(".:") if lines else type(first).__name__
        raise ExportError(f"{what}: {reason}") from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """The first error of the operating system among those that led to this one: no matter of the network."""
    seen: list[BaseException] = []  # a library may close the chain of errors to a ring
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno:
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def compare_outputs(
    names: Sequence[str], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> tuple[float, float]:
    """Return the largest difference of the outputs of a file from a network's, and the network's largest.

    Raises:
        ExportError: Outputs are of other shapes, or further apart than rounding is.
    """
    shapes = [[tuple(y.shape) for y in outputs] for outputs in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the file gives outputs of shapes {shapes[0]}, the network {shapes[1]}")
    difference = largest = 0.0
    for name, y, truth in zip(names, found, expected, strict=True):
        apart = (y.double() - truth.double()).abs().max().item()
        scale = truth.double().abs().max().item()
        if not apart <= TOLERANCE * scale:  # NaN is no agreement
            raise ExportError(
                f"the file gives other {name} than the network: they differ by up to {apart:.2g} "
                f"where the largest is {scale:.2g}; nothing was written"
            )
        difference, largest = max(difference, apart), max(largest, scale)
    return difference, largest
