"""The kernels that this machine runs, for tests that need results: Triton's where its interpreter runs them.

`ops/test_triton.py` runs those tests once more, by the interpreter, for kernel "triton" alone.
"""

import os

from lambdanets.ops import KERNELS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNNING = [name for name in KERNELS if name != "triton" or INTERPRETED]
