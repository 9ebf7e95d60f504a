"""The lambda operator: its definition, its kernels, and the planner that selects one. Needs torch alone.

Read in this order: `reference` (the definition, and the letters of all shapes), `context` (the geometry),
`functional` (the operator), `problem` (the sizes of a call), `content` (the content part), `kernels` (the
protocol of a kernel, and the kernels), `planner` (the selection of a kernel), `position` (the PyTorch
operators around the kernels), `shared_content` and `causal_content` (those around the content part),
`projection` (the 1x1 projections before the operator, on CPUs). Helpers: `checks` (arguments),
`position_table` (indices into the table), `memory_layout` (strides), `hardware` (rates and free memory),
`matmul` (matrix products).
"""

from .context import Context as Context
from .context import GlobalContext as GlobalContext
from .context import LocalContext as LocalContext
from .context import MaskedContext as MaskedContext
from .functional import lambda_layer as lambda_layer
from .kernels import KERNELS as KERNELS
from .planner import Plan as Plan
from .planner import plan as plan
from .problem import Problem as Problem
