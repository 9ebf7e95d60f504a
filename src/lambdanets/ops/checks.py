"""Checks of the operator's arguments. Errors name the argument, the expected shape and the given one."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lambdanets.utils.text import did_you_mean

from .context import Context, GlobalContext, MaskedContext, RelativeContext

NORMALIZATIONS = ("softmax", "l2", "none")
"""The normalisations of the keys."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for an unknown name, with the nearest known ones.

    Args:
        kind: The kind of the name, such as "kernel".
        name: The unknown name.
        known: The known names.
    """
    known = sorted(known)
    hint = did_you_mean(str(name), known) or f"; known: {', '.join(known)}"
    return ValueError(f"unknown {kind} {name!r}{hint}")


def _shape(tensor: torch.Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"


def _expect(tensor: torch.Tensor, name: str, letters: str, sizes: dict[str, int]) -> None:
    """Raise ValueError unless a tensor has these axes, such as "b h n k", with the sizes known for them.

    `sizes` maps letters to sizes; letters that it lacks are added.
    """
    axes = letters.split()
    if tensor.ndim != len(axes):
        raise ValueError(
            f"{name} must have the axes '{letters}', got {tensor.ndim} of shape {_shape(tensor)}"
        )
    for letter, size in zip(axes, tensor.shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            raise ValueError(
                f"{name} must have the axes '{letters}' with {letter}={sizes[letter]}, "
                f"got shape {_shape(tensor)}"
            )


def check_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    e: torch.Tensor | None,
    context: Context,
    mask: torch.Tensor | None,
    content: bool,
    normalize: str,
) -> None:
    """Check that the arguments of `lambda_layer` match each other.

    Raises:
        ValueError: If they do not.
    """
    if normalize not in NORMALIZATIONS:
        raise unknown_name("normalize", normalize, NORMALIZATIONS)
    if not content and normalize != "softmax":
        raise ValueError(
            f"normalize={normalize!r} applies to the content part, which content=False leaves out"
        )
    if not isinstance(context, Context):
        raise ValueError(
            f"context must be a GlobalContext, LocalContext or MaskedContext, got {type(context).__name__}"
        )
    given = {"q": q, "k": k, "v": v} | {name: x for name, x in (("e", e), ("mask", mask)) if x is not None}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    sizes: dict[str, int] = {}
    _expect(q, "q", "b h n k", sizes)
    _expect(k, "k", "b m k u", sizes)
    _expect(v, "v", "b m v u", sizes)
    if not content and e is None:
        raise ValueError("content=False needs e: without content and positions nothing is left to compute")
    tensors = {"q": q, "k": k, "v": v} | ({} if e is None else {"e": e})
    for name, tensor in tensors.items():
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"q, k, v and e must share dtype and device: q is {q.dtype} on {q.device}, "
                f"{name} is {tensor.dtype} on {tensor.device}"
            )
    if not q.is_floating_point() or q.dtype.itemsize < 2:
        raise ValueError(
            f"q, k, v and e must be real floating-point tensors of 16 bits or more, got {q.dtype}"
        )
    if context.num_queries != sizes["n"]:
        raise ValueError(f"q has n={sizes['n']} queries, but the context describes {context.num_queries}")
    if mask is not None:
        if mask.dtype != torch.bool or mask.device != q.device:
            raise ValueError(f"mask must be a bool tensor on {q.device}, got {mask.dtype} on {mask.device}")
        _expect(mask, "mask", "b m", sizes)
    if isinstance(context, MaskedContext):
        _check_masked(context, e, sizes, q.device)
    elif isinstance(context, RelativeContext):
        _check_relative(context, e, sizes)


def _check_masked(
    context: MaskedContext, e: torch.Tensor | None, sizes: dict[str, int], device: torch.device
) -> None:
    """Check a mask [n, m] and dense embeddings against the sizes of q and k."""
    if context.mask.device != device:
        raise ValueError(f"the context's mask is on {context.mask.device}, the tensors on {device}")
    if context.mask.shape[1] != sizes["m"]:
        raise ValueError(f"the context's mask is of shape {_shape(context.mask)}, but k has m={sizes['m']}")
    if e is not None:
        _expect(e, "e", "n m k u", sizes)


def _check_relative(context: RelativeContext, e: torch.Tensor | None, sizes: dict[str, int]) -> None:
    """Check a table, or dense embeddings with a `GlobalContext`, against the context and the sizes of k."""
    if context.causal and context.num_context != sizes["m"]:
        raise ValueError(
            f"k has m={sizes['m']} elements, but the causal context describes {context.num_context}; "
            "give context_grid"
        )
    if e is None:
        return
    expected = (*context.table_shape, sizes["k"], sizes["u"])
    if tuple(e.shape) == expected:
        if context.num_context != sizes["m"]:
            raise ValueError(
                f"k has m={sizes['m']} elements, but relative positions need one for each of the "
                f"{context.num_context} positions of the context grid {context.context_grid}"
            )
        return
    if isinstance(context, GlobalContext) and e.ndim == 4:
        dense = (sizes["n"], sizes["m"], sizes["k"], sizes["u"])
        if tuple(e.shape) == dense:
            return
        raise ValueError(
            f"e must be a table '*offsets k u' of shape {expected} or dense 'n m k u' of shape {dense}, "
            f"got shape {_shape(e)}"
        )
    raise ValueError(f"e must be a table '*offsets k u' of shape {expected}, got shape {_shape(e)}")
