"""`export_language_model` and `export_step`: the step of a recurrent network, with its state in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lambdanets.data import Vocabulary
from lambdanets.exporting.format import ExportError
from lambdanets.exporting.network import Exported, compare_outputs, export_network
from lambdanets.models import LambdaLM
from lambdanets.nn.states import SequenceState
from lambdanets.text.config import TextConfig
from lambdanets.train import Run
from lambdanets.utils.text import json_text

NEXT = "next."
"""Prefix of the state's names among the outputs of an ONNX file, whose inputs and outputs share one scope."""
LENGTH = 50  # elements before the states of the compared examples


def export_language_model(
    run: Run[TextConfig],
    file: str | Path,
    *,
    format: Literal["torch", "onnx"],
    weights: Literal["best", "last"] = "best",
    batch_size: int | None = None,
    opset: int | None = None,
) -> Exported:
    """Write the step of a run's language model as one file that runs without this package.

    The file takes `tokens` [b] and the state before them, and returns `logits` [b, vocabulary] and the state
    after them; see `export_step`. The metadata have the `vocabulary`, the `context` of the training and all
    that is needed to create the initial `state`.

    Args:
        run: The run.
        file: Path that ends in .pt2 for format "torch", .onnx for "onnx". Its folder is created if missing.
        format: "torch" (torch.export) or "onnx" (for onnxruntime and others).
        weights: The best weights of the run by validation, or those of its last epoch.
        batch_size: Fixed number of texts in a batch; None accepts any number.
        opset: Version of ONNX's operators; None takes PyTorch's default.

    Returns:
        The file with the largest difference from the network's outputs.

    Raises:
        RunError: The run has no such weights.
        ExportError: The state of the network grows with the text, the file exists, the format or a package
            for it is missing, or the outputs of the file differ from those of the network.

    Example:
        >>> export_language_model(load_run("runs/book"), "book.onnx", format="onnx")
    """
    metadata: dict[str, object] = {
        "model": run.config.model.name,
        "unit": "byte" if Vocabulary(run.classes).of_bytes else "character",
        "vocabulary": run.classes,
        "context": run.config.data.context,
    }
    return export_step(
        run.model(weights), file, format=format, batch_size=batch_size, opset=opset, metadata=metadata
    )


def export_step(
    network: nn.Module,
    file: str | Path,
    *,
    format: Literal["torch", "onnx"],
    batch_size: int | None = None,
    opset: int | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Exported:
    """Write the step of a language model or of a causal layer on sequences, with its state in and out.

    A program of torch.export takes the input and a dict of the state's tensors, and returns the output and
    such a dict. An ONNX file has an input for each tensor of the state and an output `next.NAME`. The input
    is `tokens` [b] of a language model, `x_t` [b, dim] of a layer; the output `logits` [b, vocabulary] or
    `y_t` [b, dim_out]. The names of the state are those of `state.tensors()`; one `length` serves all layers.

    The metadata entry `state` describes the initial state: for each name its `shape`, `dtype` and the value
    `initial` of all its elements. The file is compared with the network on the initial state and on states
    after random sequences.

    Args:
        network: A `LambdaLM`, or a causal layer such as `LambdaLayer1d`; in evaluation mode, on the CPU.
        file: Path that ends in .pt2 for format "torch", .onnx for "onnx". Its folder is created if missing.
        format: "torch" (torch.export) or "onnx" (for onnxruntime and others).
        batch_size: Fixed number of sequences in a batch; None accepts any number.
        opset: Version of ONNX's operators; None takes PyTorch's default.
        metadata: Further information for users of the file, by name, which is stored as JSON.

    Returns:
        The file with the largest difference from the network's outputs.

    Raises:
        ExportError: The state of the network grows with the sequence, the file exists, the format or a
            package for it is missing, or the outputs of the file differ from those of the network.

    Example:
        >>> layer = LambdaLayer1d(64, scope=32, causal=True, norm="rms").eval()
        >>> export_step(layer, "layer.onnx", format="onnx")
    """
    if batch_size is not None and batch_size < 1:
        raise ExportError(f"batch_size must be at least 1, got {batch_size}")
    recurrent: Any = network
    names = ("tokens", "logits") if isinstance(network, LambdaLM) else ("x_t", "y_t")
    initial: SequenceState = recurrent.initial_state(batch_size or 1)
    # The first example is traced, the last one begins with the initial state.
    counts = (2, 3, 1) if batch_size is None else (batch_size, batch_size)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for count in counts:
        sequence = _random_sequence(recurrent, count, generator)
        with torch.no_grad():
            _, state = recurrent(sequence[..., :-1], return_state=True)
        if _sizes(state) != _sizes(initial):
            raise ExportError(
                "a step is exported with a state of fixed size, and the state of this network grows with the "
                "sequence, as that of attention does"
            )
        examples.append((sequence[..., -1].contiguous(), _file_tensors(state)))
    examples[-1] = (examples[-1][0], _file_tensors(recurrent.initial_state(counts[-1])))
    state_names = list(examples[0][1])
    axes = {0: "batch"} if batch_size is None else {}
    plain = {**(metadata or {}), "state": _describe(_file_tensors(initial), batch_size or "batch")}
    return export_network(
        _Step(recurrent, initial),
        file,
        examples,
        format=format,
        inputs=dict.fromkeys([names[0], *state_names], axes),
        outputs=[names[1], *(NEXT + name for name in state_names)],
        metadata={name: json_text(value) for name, value in plain.items()},
        opset=opset,
        compare=_compare,
    )


class _Step(nn.Module):
    """The step of a network with tensors and dicts of tensors as its only arguments and outputs."""

    def __init__(self, network: nn.Module, state: SequenceState) -> None:
        super().__init__()
        self.network: Any = network
        self.state = state

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        given = {name: state[_source(name)] for name in self.state.tensors()}
        y, after = self.network.step(x, self.state.with_tensors(given))
        return y, _file_tensors(after)


def _source(name: str) -> str:
    """Return the name under which a file has a tensor of the state: all layers have the same length."""
    return "length" if name.endswith(".length") else name


def _file_tensors(state: SequenceState) -> dict[str, Tensor]:
    """Return the tensors of a state by their names in a file, contiguous: a program is traced for strides."""
    return {name: x.contiguous() for name, x in state.tensors().items() if _source(name) == name}


def _sizes(state: SequenceState) -> dict[str, torch.Size]:
    """Return the shapes of the tensors of a state without the batch."""
    return {name: x.shape[1:] for name, x in state.tensors().items()}


def _random_sequence(network: Any, batch: int, generator: torch.Generator) -> Tensor:
    """Return tokens `[b, n]` of a language model, or the input `[b, dim, n]` of a layer."""
    if isinstance(network, LambdaLM):
        return torch.randint(network.vocabulary, (batch, LENGTH + 1), generator=generator)
    dtype = next(network.parameters()).dtype
    return torch.randn(batch, network.dim, LENGTH + 1, generator=generator, dtype=dtype)


def _describe(state: Mapping[str, Tensor], batch: int | str) -> dict[str, dict[str, object]]:
    """Return shape, dtype and value of each tensor of an initial state; JSON has no number for infinity."""
    described: dict[str, dict[str, object]] = {}
    for name, x in state.items():
        value = x.flatten()[0].item() if x.numel() else 0
        described[name] = {
            "shape": (batch, *x.shape[1:]),
            "dtype": str(x.dtype).removeprefix("torch."),
            "initial": "-Infinity" if value == -torch.inf else value,
        }
    return described


def _compare(
    names: Sequence[str], actual: Sequence[Tensor], expected: Sequence[Tensor]
) -> tuple[float, float]:
    """Compare outputs as `compare_outputs`, which measures those that are floating and have elements."""
    for name, y, reference in zip(names, actual, expected, strict=True):
        if not reference.is_floating_point() and not torch.equal(y, reference):
            raise ExportError(f"the file gives other {name} than the network; nothing was written")
    measured = [y.is_floating_point() and y.numel() > 0 for y in expected]
    return compare_outputs(
        list(compress(names, measured)), list(compress(actual, measured)), list(compress(expected, measured))
    )
