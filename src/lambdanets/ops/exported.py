"""The position part as it stands in a graph of torch.export: in PyTorch's own operators.

Such a graph is made to run elsewhere, where the library operator (`position`) is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .context import RelativeContext
from .tables import pair_entries, read


def exported_output(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext | None) -> Tensor:
    """The position part of shape b h n v from q (b h n k), v (b m v u) and a table e (*offsets k u).

    Without a context, e is dense (n m k u).
    """
    embeddings = e.mT if context is None else read(e, pair_entries(context, e.device))  # n m u k
    pairs = torch.einsum("bhnk,nmuk->bhnmu", q, embeddings)
    return torch.einsum("bhnmu,bmvu->bhnv", pairs, v)
