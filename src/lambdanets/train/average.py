"""The exponential moving average (EMA) of a network's weights and statistics."""

import torch
from torch import Tensor, nn

Pairs = tuple[list[Tensor], list[Tensor]]  # tensors of the average, and those of the network


def pair_ema_tensors(average: nn.Module, network: nn.Module) -> list[Pairs]:
    """Pair the tensors of a moving average with those of the network.

    The pairs stay valid while neither module moves to another device or replaces a tensor; `load_state_dict`
    copies in place.

    Returns:
        Two pairs of lists: the floating-point tensors, which are averaged, and all others, which are copied.
    """
    both = average.state_dict(keep_vars=True), network.state_dict(keep_vars=True)
    named = zip(*(states.values() for states in both), strict=True)
    # A tensor that several layers share has several names and is updated once.
    pairs = list({id(mean): (mean, new) for mean, new in named}.values())
    kinds = ([p for p in pairs if p[0].is_floating_point() is floating] for floating in (True, False))
    return [([mean for mean, _ in kind], [new for _, new in kind]) for kind in kinds]


@torch.no_grad()
def update_ema(pairs: list[Pairs], decay: float) -> None:
    """Update an average of weights and statistics in place: decay * average + (1 - decay) * new."""
    (means, news), (counts, new_counts) = pairs
    torch._foreach_lerp_(means, news, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    if counts:
        torch._foreach_copy_(counts, new_counts)  # pyright: ignore[reportPrivateImportUsage]
