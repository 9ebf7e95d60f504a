"""A problem: the sizes and the geometry of one call of the operator, and the costs that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .content import MASKED_BLOCK, causal_chunks
from .context import (
    Context,
    GlobalContext,
    LocalContext,
    MaskedContext,
    RelativeContext,
    as_grid,
    as_sizes,
    default_centre,
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one pass of a kernel over the position part of a problem.

    Args:
        flops: Floating-point operations; a multiply-add counts as two.
        bytes: Bytes read and written, inputs and output included.
        peak_bytes: Peak bytes of temporaries, inputs and output excluded.
        seconds: Estimated wall time in seconds.
    """

    flops: int
    bytes: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The sizes, geometry, dtype and device of a call: all that the planner uses, without the tensors.

    Args:
        grid: Sizes of the query grid (int or tuple); n is their product.
        context_grid: Sizes of the context's grid, the query grid by default; (m,) without relative positions.
        scope: Table entries per axis for local positions, None for global ones.
        dilation: Distance between neighbouring table entries on the grid, per axis.
        centre: Index of the entry for offset 0 of a local table; None takes that of `LocalContext`.
        num_heads: Heads, h: queries per position.
        dim_k: Query and key depth.
        dim_v: Value depth per head.
        dim_u: Intra-depth.
        batch: Batch size.
        content: Whether the content lambda is computed.
        position: Whether position lambdas are computed.
        causal: Whether query n sees m <= n only.
        masked: Whether an n x m mask holds the visible pairs.
        dense: Whether the embeddings are dense [n, m, k, u] rather than a table.
        dtype: Dtype of q, k, v and e.
        device: Device type, such as "cpu" or "cuda".
        train: Whether a backward pass follows.
        normalize: The normalisation of the keys.

    Raises:
        ValueError: If a size is not a positive int (the batch may be empty), the dtype is not a real
            floating-point one, or arguments contradict each other.
    """

    grid: tuple[int, ...]
    context_grid: tuple[int, ...] | None = None
    scope: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    centre: tuple[int, ...] | None = None
    num_heads: int = 4
    dim_k: int = 16
    dim_v: int = 64
    dim_u: int = 1
    batch: int = 1
    content: bool = True
    position: bool = True
    causal: bool = False
    masked: bool = False
    dense: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    train: bool = False
    normalize: str = "softmax"

    def __post_init__(self) -> None:
        grid = as_grid(self.grid, "grid")
        object.__setattr__(self, "grid", grid)
        rank = len(grid)
        if self.context_grid is not None:
            object.__setattr__(self, "context_grid", as_grid(self.context_grid, "context_grid"))
            if self.relative and len(self.context_grid or grid) != rank:
                raise ValueError(
                    f"relative positions need a context_grid of {rank} axes like the grid {grid}; "
                    f"got {self.context_grid}"
                )
        for name in ("scope", "dilation"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_grid(value, name, rank))
        for name in ("batch", "num_heads", "dim_k", "dim_v", "dim_u"):
            value, least = getattr(self, name), 0 if name == "batch" else 1
            if type(value) not in (int, torch.SymInt):
                raise ValueError(f"{name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not self.dtype.is_floating_point:
            raise ValueError(f"dtype must be a real floating-point one, got {self.dtype}")
        if not self.content and not self.position:
            raise ValueError("a problem needs content or position, got neither")
        if self.causal and rank != 1:
            raise ValueError(f"a causal problem needs a grid of one axis, got {grid}")
        if self.scope is None and self.dilation is not None:
            raise ValueError("dilation needs a scope: only local positions are dilated")
        if self.scope is None and self.centre is not None:
            raise ValueError("centre needs a scope: it is an index of a local table")
        if (self.masked or self.dense or not self.position) and self.scope is not None:
            raise ValueError("only relative positions have a scope")
        if self.masked and self.causal:
            raise ValueError(
                "a masked problem cannot be causal: its n x m mask already determines the visible pairs"
            )

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        e: Tensor | None,
        context: Context,
        content: bool = True,
        train: bool = False,
        normalize: str = "softmax",
    ) -> Problem:
        """Return the problem of a call.

        Args:
            q: Queries [b, h, n, k].
            k: Keys [b, m, k, u].
            v: Values [b, m, v, u].
            e: Position embeddings, a table or dense; None without positions.
            context: The context.
            content: Whether the content lambda is computed.
            train: Whether a backward pass follows.
            normalize: The normalisation of the keys.
        """
        batch, num_heads, n, dim_k = as_sizes(q)
        _, m, dim_v, dim_u = as_sizes(v)
        relative = isinstance(context, RelativeContext)
        dense = e is not None and not (relative and context.is_table(e))
        local = context if isinstance(context, LocalContext) and e is not None else None
        return cls(
            grid=context.grid if relative else (n,),
            context_grid=context.key_grid if relative and context.num_context == m else (m,),
            scope=local.scope if local else None,
            dilation=local.step if local else None,
            centre=local.centre if local else None,  # pyright: ignore[reportArgumentType]
            num_heads=num_heads,
            dim_k=dim_k,
            dim_v=dim_v,
            dim_u=dim_u,
            batch=batch,
            content=content,
            position=e is not None,
            causal=relative and context.causal,
            masked=isinstance(context, MaskedContext),
            dense=dense,
            dtype=q.dtype,
            device=q.device.type,
            train=train,
            normalize=normalize,
        )

    @property
    def num_queries(self) -> int:
        """Number of queries, n."""
        return math.prod(self.grid)

    @property
    def num_context(self) -> int:
        """Number of context elements, m."""
        return math.prod(self.context_grid or self.grid)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize

    @property
    def relative(self) -> bool:
        """Whether positions come from a table of offsets."""
        return self.position and not self.dense and not self.masked

    @cached_property
    def context(self) -> RelativeContext:
        """The geometry of a problem with relative positions."""
        if self.scope is None:
            return GlobalContext(self.grid, context_grid=self.context_grid, causal=self.causal)
        return LocalContext(
            self.grid,
            self.scope,
            dilation=self.dilation or (1,) * len(self.grid),
            centre=self.centre,
            context_grid=self.context_grid,
            causal=self.causal,
        )

    @property
    def table_elements(self) -> int:
        """Number of elements of the position embeddings."""
        if not self.position:
            return 0
        shape = self.context.table_shape if self.relative else (self.num_queries, self.num_context)
        return math.prod(shape) * self.dim_k * self.dim_u

    def random_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return random tensors of this problem's sizes: g (a gradient of the output), q, v and e."""
        n, m = self.num_queries, self.num_context
        table = self.context.table_shape if self.relative else (n, m)
        shapes = [
            (self.batch, self.num_heads, n, self.dim_v),
            (self.batch, self.num_heads, n, self.dim_k),
            (self.batch, m, self.dim_v, self.dim_u),
            (*table, self.dim_k, self.dim_u),
        ]
        # A generator of its own leaves the global random state unchanged.
        generator = torch.Generator(self.device).manual_seed(0)
        options = {"dtype": self.dtype, "device": self.device, "generator": generator}
        g, q, v, e = (torch.randn(shape, **options) for shape in shapes)
        return g, q, v, e

    @property
    def io_bytes(self) -> int:
        """Bytes of q, k, v and y."""
        queries = self.num_heads * self.num_queries
        context = self.num_context * self.dim_u
        return self.itemsize * self.batch * (queries + context) * (self.dim_k + self.dim_v)

    @property
    def content_flops(self) -> int:
        """Floating-point operations of the content part: linear in n and m, except under an n x m mask.

        Where a causal order is computed in chunks, those of `chunk_flops` are to be added.
        """
        if not self.content:
            return 0
        per_head = 2 * self.batch * self.num_heads * self.num_queries
        if self.masked:
            return per_head * self.num_context * self.dim_u * (self.dim_k + self.dim_v)
        once = 2 * self.batch * self.num_context * self.dim_k * self.dim_v * self.dim_u
        return once + per_head * self.dim_k * self.dim_v

    @property
    def chunk_flops(self) -> int:
        """Floating-point operations of the pairs within chunks, under a causal order."""
        if not self.content or not self.causal:
            return 0
        chunk, _ = causal_chunks(self.num_queries)
        pairs = self.batch * self.num_heads * self.num_queries * chunk * self.dim_u
        return 2 * pairs * (self.dim_k + self.dim_v)

    def content_peak_bytes(self, *, definition: bool = False, recurrence: bool = False) -> int:
        """Return the peak bytes of the content part's temporaries, which are float32 at least.

        Args:
            definition: Whether kernel "reference" computes it, with a content lambda per query in memory.
            recurrence: Whether the native library computes it, under a causal order.
        """
        if not self.content:
            return 0
        itemsize = max(4, self.itemsize)
        n, columns = self.num_queries, self.dim_k * self.dim_u
        keys_and_values = self.num_context * self.dim_u * (2 * self.dim_k + self.dim_v)
        outputs = 2 * self.num_heads * n * self.dim_v
        pairs = 0
        if (self.masked or self.causal) and definition:
            pairs = 4 * n * self.num_context * columns + 2 * n * self.dim_k * self.dim_v
        elif self.masked:
            pairs = 4 * min(MASKED_BLOCK // max(1, self.batch), n * self.num_context * columns)
        elif recurrence:
            # Sums over the values of each position, and in half precision copies of the queries.
            pairs = n * (columns + self.num_heads * self.dim_k * (1 if self.itemsize < 4 else 0))
            # Gradients of queries and keys are summed over blocks of value channels (causal_content.h).
            blocks = min(-(-16 // max(1, self.batch)), self.dim_v // 32)
            if self.train and blocks > 1:
                pairs += blocks * n * (self.num_heads * self.dim_k + columns)
        elif self.causal:
            # Temporaries of `content._causal_softmax_content`: within chunks, between chunks, for each query.
            chunk, chunks = causal_chunks(n)
            inside = n * chunk * (3 * columns + 2 * self.num_heads * self.dim_u)
            between = chunks * columns * (3 * chunks + 3 * self.dim_v)
            pairs = inside + between + n * columns * (8 + self.num_heads)
        if self.train and (self.masked or (self.causal and not recurrence)):
            # Saved for the backward pass, or recomputed there while their gradients are in memory too.
            pairs += pairs // 2
        return itemsize * self.batch * (keys_and_values + outputs + pairs)

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.grid))]
        if self.context_grid not in (None, self.grid):
            parts.append("context " + "x".join(map(str, self.context_grid or ())))
        if self.masked:
            parts.append("masked")
        if not self.position:
            parts.append("content only")
        elif self.masked or self.dense:
            parts.append("dense positions")
        else:
            parts.append("global" if self.scope is None else "scope " + "x".join(map(str, self.scope)))
        if self.scope and self.centre not in (None, default_centre(self.scope, self.causal)):
            parts.append("offset 0 at " + "x".join(map(str, self.centre or ())))
        if self.dilation and any(d > 1 for d in self.dilation):
            parts.append("dilation " + "x".join(map(str, self.dilation)))
        if self.causal:
            parts.append("causal")
        if not self.content:
            parts.append("position only")
        parts.append(f"b={self.batch} h={self.num_heads} k={self.dim_k} v={self.dim_v} u={self.dim_u}")
        parts.append(f"{str(self.dtype).removeprefix('torch.')} on {self.device}")
        parts.append("training" if self.train else "inference")
        return ", ".join(parts)
