"""The position part as fused GPU programs in Triton: a prototype, which the planner does not know yet.

`lambda_first` forms position lambdas in registers. `by_position` and `skewed` swap the sums: queries meet the
table first, and the map between is turned or shifted; `skewed` has gradients. None writes lambdas, maps or
embeddings of pairs to memory.
"""
