"""Exact maps of lambda layers: what each position of a layer sums up, and with which weights.

`explanation` has `explain` and the class of its result. Below it, `layer_maps` computes the map of a query,
`recording` finds the layers and records their operands by hooks. `page` (one HTML file), `sheet` (PNG) and
`files` (npz, json) write the result, `scenes` makes pictures of inputs, `approximate` attributes across all
layers with captum. The room has this name since `lambdanets.explain` is the function.
"""

from .explanation import Approximation as Approximation
from .explanation import Explanation as Explanation
from .explanation import Mark as Mark
from .explanation import Scene as Scene
from .explanation import explain as explain
