"""One launch of a program, and the same program compiled for a device that is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class Call:
    """A program, how many instances of it run, its arguments in order and its constants by name."""

    program: Any
    instances: int
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def launch(self) -> None:
        self.program[(self.instances,)](*self.arguments, **self.constants, **self.options)

    def compile(self, capability: int) -> Any:
        """The program as Triton compiles it for this call on a device of this capability, as 80 or 90.

        What Triton takes for granted at a launch is so here: ones are constants, tensors and numbers that are
        multiples of 16 are known to be.
        """
        names = self.program.arg_names
        signature, constants, attributes = {}, dict(self.constants), {}
        for place, (name, value) in enumerate(zip(names, self.arguments, strict=False)):
            if isinstance(value, Tensor):
                signature[name] = "*" + TYPES[value.dtype]
            elif value == 1:
                constants[name] = value
            else:
                signature[name] = "i32" if value < 2**31 else "i64"
            if name in signature and (isinstance(value, Tensor) or value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        ordered = {name: signature.get(name, "constexpr") for name in names}
        source = ASTSource(self.program, ordered, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)
