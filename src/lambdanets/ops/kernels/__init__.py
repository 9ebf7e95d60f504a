"""The kernels: independent implementations of the position part, one module each.

A kernel computes, for every problem that it supports, the position part of `lambda_layer` and its gradients:

    y[b,h,n,v] = sum_k q[b,h,n,k] * sum_{m,u} E[n,m,k,u] v[b,m,v,u]

To add a kernel, write a module with the members of `Kernel` (or of `FusedKernel`) and register it at the end
of this file. The planner then ranks it by its cost, and the tests of all kernels run for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .. import reference
from ..problem import Cost, Problem
from . import attention, conv, fft, native, triton

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Kernel(Protocol):
    """The members of a kernel's module.

    Shapes are q [b, h, n, k], v [b, m, v, u], y (output) and g (its gradient) [b, h, n, v]; e is a table of
    relative offsets [*offsets, k, u], or dense embeddings [n, m, k, u] if `problem.dense`, which are zero
    where a mask hides the pair. Tensors have any strides; the batch may be empty. All but y have the dtype of
    `problem`. y has the dtype of the call, which may be narrower: on a CPU that is slow in a half precision,
    kernels get float32 copies of its tensors (`hardware.compute_dtype`). Autograd and autocast are off. A
    kernel changes no tensor but y.

    `unsupported` and `cost` are called for problems without positions too, `output` and `gradients` are not.
    """

    @property
    def NAME(self) -> str:
        """The kernel's name, as in `lambda_layer(kernel=NAME)`."""
        ...

    def output(self, q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None:
        """Write the position part into y, every element of it."""
        ...

    def gradients(
        self, g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, needs_grad: Sequence[bool]
    ) -> Gradients:
        """Return the gradients of q, v and e from g, that of the output; None where not needed.

        They have the shapes of their tensors; strides and floating-point dtype are free, the caller converts.
        `needs_grad` has a bool for each of the three.
        """
        ...

    def unsupported(self, problem: Problem) -> list[str]:
        """Return the reasons for which the kernel cannot serve a problem, as phrases; empty if it can."""
        ...

    def cost(self, problem: Problem, *, backward: bool = False) -> Cost:
        """Return the estimated cost of one pass, forward or backward, of a supported problem."""
        ...


class FusedKernel(Kernel, Protocol):
    """A kernel that applies the content lambda [b, k, v] too, in the same pass over the queries.

    `output` adds q times the content lambda to y; `gradients` adds g times its transpose to the gradient of
    q, and computes the gradient of the content lambda.
    """

    def output(
        self,
        q: Tensor,
        v: Tensor,
        e: Tensor,
        problem: Problem,
        y: Tensor,
        content_lambda: Tensor | None = None,
    ) -> None:
        """Write the position part plus q times the content lambda, if given, into y."""
        ...

    def gradients(
        self,
        g: Tensor,
        q: Tensor,
        v: Tensor,
        e: Tensor,
        problem: Problem,
        needs_grad: Sequence[bool],
        content_lambda: Tensor | None = None,
        d_lambda: Tensor | None = None,
    ) -> Gradients:
        """Return the gradients of q, v and e; to that of q, add g times the transposed content lambda.

        If `d_lambda` [b, k, v] is given, in float32 at least, write the content lambda's gradient into it.
        """
        ...


FUSED_KERNELS: dict[str, FusedKernel] = {native.NAME: native, triton.NAME: triton}
KERNELS: dict[str, Kernel] = {
    reference.NAME: reference,
    conv.NAME: conv,
    attention.NAME: attention,
    fft.NAME: fft,
    **FUSED_KERNELS,
}
