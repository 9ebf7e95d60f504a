"""The position part as fused GPU programs in Triton: a prototype, which the planner does not know yet.

`skewed` swaps the sums (queries meet the table first) and has gradients; `lambda_first` forms position lambdas
in registers. Neither writes lambdas, maps or embeddings of pairs to memory.
"""
