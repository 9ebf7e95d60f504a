"""What is kept of the step at which a loss became NaN or infinite, so that it can be studied."""

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
SHOWN = 8  # of the largest activations and norms, in the text


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A step that went wrong.

    Attributes:
        facts: what was wrong and where in the run, in plain types: `step` is that of the first bad loss.
        losses: (step, loss) of the last batches, the bad one among them.
        seed: of torch's generators, just before the forward pass of the batch.
        tensors: of the batch at hand, by name; None where there is none.
        inputs: what the network is called with for that batch.
        stale: why that batch with the weights as they are now says nothing, "" when it gives the bad loss.
        collective: why this process cannot run the network alone, "" when it can.
        context: the precision of the run.
    """

    facts: dict[str, Any]
    losses: list[tuple[int, float]]
    seed: int
    tensors: dict[str, Tensor] | None
    inputs: tuple[Any, ...] = ()
    stale: str = ""
    collective: str = ""
    context: AbstractContextManager[Any] = field(default_factory=nullcontext)


@torch.no_grad()
def dissect(network: nn.Module, moment: Moment, folder: Path) -> None:
    """Write the batch, the weights, and a report on where the first NaN or infinity comes from.

    Training is over when this is called: the network's statistics and torch's generators are not put back.

    Args:
        network: what was trained, in training mode.
        moment: the step.
        folder: where the files go; those of an earlier step are removed.

    Raises:
        CheckpointError: a file cannot be written.
    """
    clear(folder)
    parameters = dict(network.named_parameters())
    broken = [name for name, tensor in network.state_dict().items() if not _finite(tensor)]
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    report: dict[str, Any] = moment.facts | {"seed": moment.seed, "nonfinite_weights": broken}
    notes = []
    if moment.tensors is None:
        notes.append("there was no batch at hand")
    else:
        save_weights(moment.tensors, folder / NAMES[0], {})
    if moment.collective:
        notes.append(f"weights and activations are left out: {moment.collective}")
    elif any(name in parameters for name in broken):
        notes.append("weights.safetensors is left out: the weights are NaN or infinite; see last.ckpt")
    else:
        # Before the network runs again: a pass in training mode moves its statistics.
        save_weights(network.state_dict(), folder / NAMES[1], {"step": str(moment.facts["step"])})
    if moment.stale:
        notes.append(moment.stale)
    elif moment.tensors is not None and not moment.collective:
        torch.manual_seed(moment.seed)
        with moment.context:
            first, largest = trace(network, moment.inputs)
        report |= {"first_nonfinite_output": first, "largest_activations": largest}
    report["weight_norms"] = {name: float(p.norm()) for name, p in parameters.items()}
    report["last_gradient_norms"] = {name: float(g.norm()) for name, g in gradients.items()}
    report |= {"losses": moment.losses, "notes": notes}
    write_text(folder / NAMES[2], json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    write_text(folder / NAMES[3], _describe(report))


def clear(folder: Path) -> None:
    """Remove what `dissect` wrote."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)


def bad_step(folder: Path) -> int:
    """The step that a report in this folder is about, -1 when there is none."""
    try:
        return int(parse_json((folder / NAMES[2]).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def trace(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[str | None, dict[str, float]]:
    """Run a network and look at what every module in it gives out.

    Returns:
        The name of the first module whose output is not finite, None where all are, and the largest absolute
        value of each module's output, in the order of the calls. The network as a whole is "network".
    """
    largest: dict[str, float] = {}
    first: list[str] = []

    def look(name: str, output: Any) -> None:
        parts = output.values() if isinstance(output, dict) else output
        for tensor in parts if isinstance(parts, tuple | list | ValuesView) else [parts]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                value = float(tensor.abs().max())
                # NaN stays: it is larger than any number here.
                seen = largest.get(name, 0.0)
                largest[name] = value if math.isnan(value) or value > seen else seen
                if not math.isfinite(value) and not first:
                    first.append(name)

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: look(name, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        # Not called as a module: a compiled one would run without the hooks.
        look("network", network.forward(*inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return (first[0] if first else None), largest


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _plain(value: Any) -> Any:
    """JSON has no word for NaN and infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _describe(report: dict[str, Any]) -> str:
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
