"""The report on a step whose loss or weights became NaN or infinite."""

import json
import math
from collections.abc import ValuesView
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.train.checkpoint import save_weights, write_text
from lambdanets.utils.files import parse_json

NAMES = ("batch.safetensors", "weights.safetensors", "report.json", "report.txt")
SHOWN = 8  # entries of each list in report.txt


@dataclass(frozen=True, kw_only=True)
class BadStep:
    """A step whose loss or weights are not finite.

    Attributes:
        details: Description of the failure and of its position in the run, as plain values; `step` is that of
            the first bad loss.
        losses: (step, loss) of the last batches, the bad one included.
        seed: Seed of PyTorch's generators just before the forward pass of the batch.
        tensors: Tensors of the newest batch, by name; None without a batch.
        inputs: Arguments of the network's forward pass for that batch.
        stale: Reason why `tensors` and the present weights do not reproduce the bad loss; "" if they do.
        collective: Reason why this process cannot run the network alone; "" if it can.
        context: Context manager of the forward pass that sets the precision of the run.
    """

    details: dict[str, Any]
    losses: list[tuple[int, float]]
    seed: int
    tensors: dict[str, Tensor] | None
    inputs: tuple[Any, ...] = ()
    stale: str = ""
    collective: str = ""
    context: AbstractContextManager[Any] = field(default_factory=nullcontext)


@torch.no_grad()
def locate_nonfinite(network: nn.Module, bad_step: BadStep, folder: Path) -> None:
    """Write the batch, the weights, and a report on the first module whose output is NaN or infinite.

    Call it at the end of training: the network's statistics and PyTorch's generators are not restored.

    Args:
        network: The trained network, in training mode.
        bad_step: The step.
        folder: Folder of the files; those of an earlier step are removed.

    Raises:
        CheckpointError: A file cannot be written.
    """
    clear_report(folder)
    parameters = dict(network.named_parameters())
    broken = [name for name, tensor in network.state_dict().items() if not _finite(tensor)]
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    report: dict[str, Any] = bad_step.details | {"seed": bad_step.seed, "nonfinite_weights": broken}
    notes = []
    if bad_step.tensors is None:
        notes.append("there was no batch at hand")
    else:
        save_weights(bad_step.tensors, folder / NAMES[0], {})
    if bad_step.collective:
        notes.append(f"weights and activations are left out: {bad_step.collective}")
    elif any(name in parameters for name in broken):
        notes.append("weights.safetensors is left out: the weights are NaN or infinite; see last.ckpt")
    else:
        # Before the network runs again: a pass in training mode changes its statistics.
        save_weights(network.state_dict(), folder / NAMES[1], {"step": str(bad_step.details["step"])})
    if bad_step.stale:
        notes.append(bad_step.stale)
    elif bad_step.tensors is not None and not bad_step.collective:
        torch.manual_seed(bad_step.seed)
        with bad_step.context:
            first, largest = largest_outputs(network, bad_step.inputs)
        report |= {"first_nonfinite_output": first, "largest_activations": largest}
    report["weight_norms"] = {name: float(p.norm()) for name, p in parameters.items()}
    report["last_gradient_norms"] = {name: float(g.norm()) for name, g in gradients.items()}
    report |= {"losses": bad_step.losses, "notes": notes}
    write_text(folder / NAMES[2], json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    write_text(folder / NAMES[3], _describe(report))


def clear_report(folder: Path) -> None:
    """Remove the files of `locate_nonfinite`."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)


def reported_step(folder: Path) -> int:
    """Return the step of the report in a folder, -1 without a report."""
    try:
        return int(parse_json((folder / NAMES[2]).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def largest_outputs(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[str | None, dict[str, float]]:
    """Run a network and record the outputs of all its modules.

    Returns:
        The name of the first module whose output is not finite, None if all are; and the largest absolute
        value of each module's output, in the order of the calls. The whole network is called "network".
    """
    largest: dict[str, float] = {}
    first: list[str] = []

    def record(name: str, output: Any) -> None:
        parts = output.values() if isinstance(output, dict) else output
        for tensor in parts if isinstance(parts, tuple | list | ValuesView) else [parts]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                value = float(tensor.abs().max())
                # A NaN stays the largest value, as comparisons with it are false.
                present = largest.get(name, 0.0)
                largest[name] = value if math.isnan(value) or value > present else present
                if not math.isfinite(value) and not first:
                    first.append(name)

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: record(name, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        # `forward` is called directly: a compiled module would run without the hooks.
        record("network", network.forward(*inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return (first[0] if first else None), largest


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _plain(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _describe(report: dict[str, Any]) -> str:
    """Return the text of report.txt."""
    lines = [f"{report['what']} at step {report['step']}", ""]
    scalars = {name: value for name, value in report.items() if isinstance(value, int | float | str | None)}
    lines += [f"{name.replace('_', ' '):<24}{value}" for name, value in scalars.items() if name != "what"]
    lines += [f"{len(report['nonfinite_weights'])} tensors of the network are NaN or infinite"]
    lines += [f"  {name}" for name in report["nonfinite_weights"][:SHOWN]]
    for title in ("largest_activations", "weight_norms", "last_gradient_norms"):
        values: dict[str, float] = report.get(title, {})
        if values:
            lines += ["", f"{title.replace('_', ' ')} (the largest of {len(values)})"]
            order = sorted(values, key=lambda name: (math.isnan(values[name]), values[name]), reverse=True)
            lines += [f"  {values[name]:<12.4g}{name}" for name in order[:SHOWN]]
    lines += ["", "losses (step, loss)"]
    lines += [f"  {step:>8}  {loss:.6g}" for step, loss in report["losses"][-20:]]
    return "\n".join([*lines, "", *(f"{note}." for note in report["notes"])]).rstrip() + "\n"
