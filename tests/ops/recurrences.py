"""Random sequences in parts, with a state and decay, for `differential.py`."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cases import Case
from lambdanets.ops.causal_content import causal_content
from oracles import causal_content_loops

STATE = ("log_norm", "summary")


@dataclass(frozen=True, kw_only=True)
class DrawnSequence:
    """A causal content part with its inputs.

    Args:
        tensors: q, k, v and, if drawn, log_norm, summary and decay.
        needs: The names of those that need gradients.
        upstream: Gradients of the output and of the parts of the final state that have one.
        cuts: Positions at which another call begins.
        mask: Booleans [b, n], or None.
        normalize: The normalisation of the keys.
    """

    tensors: dict[str, Tensor]
    needs: tuple[str, ...]
    upstream: dict[str, Tensor]
    cuts: list[int]
    mask: Tensor | None
    normalize: str

    def __str__(self) -> str:
        return f"{', '.join(self.tensors)}, cuts {self.cuts}, {self.normalize}"


def draw(
    case: Case,
    inputs: dict[str, Tensor],
    upstream: Tensor,
    r: random.Random,
    lay_out: Callable[[Tensor], Tensor],
) -> DrawnSequence:
    """Return a sequence of the inputs of a problem with as many queries as context elements."""
    dtype = torch.promote_types(inputs["q"].dtype, torch.float32)
    columns, normalize = (case.dim_k, case.dim_u), case.normalize
    shapes = {"log_norm": (case.batch, *columns), "summary": (case.batch, case.dim_k, case.dim_v, case.dim_u)}
    tensors = {name: inputs[name] for name in "qkv"}
    needs = tuple(name for name in "qkv" if name in case.needs)
    if r.random() < 0.7:
        log_norm = torch.randn(shapes["log_norm"], dtype=torch.float64)
        summary = torch.randn(shapes["summary"], dtype=dtype)
        if normalize == "none":
            log_norm = torch.zeros_like(log_norm)
        log_norm, summary = lay_out(log_norm), lay_out(summary)
        if normalize != "none" and r.random() < 0.4:
            empty = torch.rand(log_norm.shape) < 0.5
            log_norm = log_norm.masked_fill(empty, -torch.inf)
            summary = summary.masked_fill(empty[:, :, None], 0)
        tensors |= {"log_norm": log_norm, "summary": summary}
        needs += STATE
    if r.random() < 0.7:
        tensors["decay"] = lay_out(torch.rand(columns, dtype=dtype) * r.choice([0.0, 0.01, 1.0, 50.0]))
        needs += ("decay",)
    given = {"y": upstream}
    for name in STATE if normalize != "none" else STATE[1:]:
        if r.random() < 0.7:
            given[name] = torch.randn(shapes[name])
    cuts = sorted(r.sample(range(1, case.n), min(case.n - 1, r.choice([0, 0, 1, 4]))))
    return DrawnSequence(
        tensors=tensors, needs=needs, upstream=given, cuts=cuts, mask=case.mask(), normalize=normalize
    )


def run(sequence: DrawnSequence, by_loops: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the output, the final state, and the gradients by name; columns without elements are zero.

    Args:
        sequence: The sequence.
        by_loops: Whether the loops of the oracle compute it, in one call.
        dtype: dtype of all inputs, None for their own.
    """
    leaves = {
        name: x.detach().to(dtype or x.dtype).requires_grad_(name in sequence.needs)
        for name, x in sequence.tensors.items()
    }
    call, n, mask = (
        (causal_content_loops if by_loops else causal_content),
        leaves["q"].shape[2],
        sequence.mask,
    )
    bounds = [0, n] if by_loops else [0, *sequence.cuts, n]
    state, outputs = {name: leaves.get(name) for name in STATE}, []
    for first, last in itertools.pairwise(bounds):
        y, *after = call(
            leaves["q"][:, :, first:last],
            leaves["k"][:, first:last],
            leaves["v"][:, first:last],
            None if mask is None else mask[:, first:last],
            decay=leaves.get("decay"),
            normalize=sequence.normalize,
            **state,
        )
        outputs.append(y)
        state = dict(zip(STATE, after, strict=True))
    found = {"y": torch.cat(outputs, dim=2), **state}
    empty = found["log_norm"].isinf()
    found["empty"] = empty.double()
    found["log_norm"] = found["log_norm"].masked_fill(empty, 0)
    loss = sum((found[name].double() * x.double()).sum() for name, x in sequence.upstream.items())
    needs = [name for name in sequence.needs if isinstance(loss, Tensor) and loss.requires_grad]
    if needs:
        assert isinstance(loss, Tensor)
        gradients = torch.autograd.grad(loss, [leaves[name] for name in needs], allow_unused=True)
        for name, x in zip(needs, gradients, strict=True):
            found[f"d{name}"] = torch.zeros_like(leaves[name]) if x is None else x
    if "dsummary" in found:
        # The summary of no elements is zero by definition: its gradient has no meaning.
        found["dsummary"] = found["dsummary"].masked_fill(leaves["log_norm"].isinf()[:, :, None], 0)
    return {name: x.detach() for name, x in found.items()}
