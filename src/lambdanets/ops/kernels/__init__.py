"""The kernels: independent implementations of the position part, each a module of this folder.

A kernel module has a `NAME`, `output` (which writes the position part where it is told) and `gradients`,
plain functions of tensors, `unsupported` (sentences, empty if it can serve a problem) and `cost`. Adding one
is a new file and its line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..problem import Cost, Problem
from . import attention, conv, fft, reference, triton

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Kernel(Protocol):
    """What the planner and the operator need of a kernel."""

    @property
    def NAME(self) -> str: ...

    def output(self, q: Tensor, v: Tensor, e: Tensor, problem: Problem, y: Tensor) -> None: ...

    def gradients(
        self, g: Tensor, q: Tensor, v: Tensor, e: Tensor, problem: Problem, wanted: Sequence[bool]
    ) -> Gradients: ...

    def unsupported(self, problem: Problem) -> list[str]: ...

    def cost(self, problem: Problem, *, backward: bool = False) -> Cost: ...


_MODULES: tuple[Kernel, ...] = (reference, conv, attention, fft, triton)
KERNELS = {kernel.NAME: kernel for kernel in _MODULES}
