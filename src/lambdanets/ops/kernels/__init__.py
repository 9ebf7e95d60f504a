"""The kernels: independent implementations of one function, each a module of this folder.

A kernel module has a `NAME`, `apply` (the operator), `unsupported` (sentences, empty if it can serve a
problem), `cost`, and `RATE`: for each device type the operations per second that its inner loop reaches, in a
forward pass and in a forward and backward pass together. Adding one is a new file and its line here.
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

    @property
    def RATE(self) -> dict[str, tuple[float, float]]: ...

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


_MODULES: tuple[Kernel, ...] = (reference, conv, attention)
KERNELS = {kernel.NAME: kernel for kernel in _MODULES}
