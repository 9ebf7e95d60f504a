"""The kernels: independent implementations of one function, each a module of this folder.

A kernel module has a `NAME`, `apply` (the operator), `unsupported` (sentences, empty if it can serve a
problem), `cost`, and `rate`: the operations per second that it reaches on a problem, in training those of the
forward and backward pass together. Adding one is a new file and its line here.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..context import Context
from ..problem import Cost, Problem
from . import attention, conv, reference


class Kernel(Protocol):
    """What the planner and the operator need of a kernel."""

    @property
    def NAME(self) -> str: ...

    def apply(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        e: Tensor | None,
        *,
        context: Context,
        mask: Tensor | None,
        content: bool,
    ) -> Tensor: ...

    def unsupported(self, problem: Problem) -> list[str]: ...

    def cost(self, problem: Problem) -> Cost: ...

    def rate(self, problem: Problem) -> float: ...


_MODULES: tuple[Kernel, ...] = (reference, conv, attention)
KERNELS = {kernel.NAME: kernel for kernel in _MODULES}
