"""The kernels: independent implementations of the position part, each a module of this folder.

A kernel module has a `NAME`, `output` (which writes the position part where it is told) and `gradients`,
plain functions of tensors, `unsupported` (sentences, empty if it can serve a problem) and `cost`. Adding one
is a new file and its line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..problem import Cost, Problem
from . import attention, conv, fft, reference, triton

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Kernel(Protocol):
    """What the planner and the operator need of a kernel."""

    @property
    def NAME(self) -> str: ...

    @property
    def APPLIES_CONTENT(self) -> bool:
        """Whether content lambdas (b k v), or None, follow the arguments of `output` and of `gradients`.

        Such a kernel adds their product with q to its output, and to the gradient of q its share.
        """
        ...

    @property
    def output(self) -> Callable[..., None]:
        """Of q, v, e, problem, y."""
        ...

    @property
    def gradients(self) -> Callable[..., Gradients]:
        """Of g, q, v, e, problem, wanted."""
        ...

    def unsupported(self, problem: Problem) -> list[str]: ...

    def cost(self, problem: Problem, *, backward: bool = False) -> Cost: ...


_MODULES: tuple[Kernel, ...] = (reference, conv, attention, fft, triton)
KERNELS: dict[str, Kernel] = {kernel.NAME: kernel for kernel in _MODULES}
