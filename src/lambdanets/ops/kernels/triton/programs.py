"""Every program's launch for a problem, on tensors without memory: what is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...problem import Problem
from . import by_position, lambda_first, skewed
from .call import Call


def every_call(problem: Problem) -> Iterator[Call]:
    b, h, n, m = problem.batch, problem.num_heads, problem.num_queries, problem.num_context

    def sized(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=problem.dtype, device="meta")

    y = sized(b, h, n, problem.dim_v)
    q, v = sized(b, h, n, problem.dim_k), sized(b, m, problem.dim_v, problem.dim_u)
    e = sized(*problem.context.table_shape, problem.dim_k, problem.dim_u)
    yield lambda_first.output_call(q, v, e, problem, y)
    yield by_position.output_call(q, v, e, problem, y)
    yield skewed.output_call(q, v, e, problem, y)
    yield skewed.query_gradient_call(y, v, e, problem, q)
    yield skewed.value_gradient_call(y, q, e, problem, v)
    yield skewed.table_gradient_call(y, q, v, problem, skewed.table_parts(e, problem))
