"""The kernels that this machine runs, for tests that need results.

Triton's run where its interpreter runs them, the native kernel where its library is.
`ops/test_triton.py` runs those tests once more, by the interpreter, for kernel "triton" alone.
"""

import os

from lambdanets.ops import KERNELS, Problem

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNNING = [
    name
    for name, kernel in KERNELS.items()
    if (INTERPRETED if name == "triton" else not kernel.unsupported(Problem(grid=(1,))))
]
