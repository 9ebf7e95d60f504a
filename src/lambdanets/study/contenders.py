"""Who takes part, as literal data: for each trunk one network with other operators in the same blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BASELINE = "conv"  # the differences of a report are to this one


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model of the registry with its options.

    Attributes:
        name: in the command, the rows and the folders.
        title: in tables and figures.
        model: its name in the registry.
        options: of `create_model`, beside those that the recipe gives to all.
    """

    name: str
    title: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A network for images of one size, the recipe for all that is put into it, and the contenders.

    Attributes:
        recipe: whose optimizer, schedule, loss and augmentation all cells share.
        epochs: of every cell, unless others are asked for.
        options: of `create_model`, for all contenders.
        contenders: in the order in which they are run.
    """

    recipe: str
    epochs: int
    contenders: tuple[Contender, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def choose(self, names: Sequence[str] | None) -> tuple[Contender, ...]:
        """Return the contenders of these names, all when None; in the order of the trunk.

        Raises:
            ValueError: a name is unknown.
        """
        known = [contender.name for contender in self.contenders]
        for name in names or ():
            if name not in known:
                raise ValueError(f"there is no contender {name!r}; there are {', '.join(known)}")
        return tuple(contender for contender in self.contenders if names is None or contender.name in names)


def _lambda_variants(model: str, stages: int, last: int) -> tuple[Contender, ...]:
    """The lambda layers of a trunk: Table 11 (scope), Table 10 (content, position), Table 13 (which blocks).

    Args:
        model: the trunk's own lambda network.
        stages: of the trunk.
        last: blocks of its last stage.
    """
    convolutions: tuple[tuple[int, ...], ...] = ((),) * (stages - 1)
    return (
        Contender(name="lambda", title="lambda", model=model),
        Contender(name="lambda_scope7", title="lambda, scope 7", model=model, options={"scope": 7}),
        Contender(
            name="lambda_content",
            title="lambda, content only",
            model=model,
            options={"position": False},
        ),
        Contender(
            name="lambda_position",
            title="lambda, position only",
            model=model,
            options={"content": False},
        ),
        Contender(
            name="lambda_last_stage",
            title="lambda, all of the last stage",
            model=model,
            options={"operator_blocks": (*convolutions, "all")},
        ),
        Contender(
            name="lambda_last_block",
            title="lambda, last block alone",
            model=model,
            options={"operator_blocks": (*convolutions, (last - 1,))},
        ),
    )  # fmt: skip


# Counterparts that stand in the lambda layers' blocks: name of the operator, title, its options.
_COUNTERPARTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("linear_attention", "linear attention", {"num_heads": 8}),
    ("attention", "global relative attention", {"num_heads": 8}),
    ("axial", "axial attention", {"num_heads": 8}),
    ("local_attention", "local attention 7x7", {"num_heads": 8, "scope": 7}),
)
_CIFAR = (
    Contender(name="conv", title="3x3 convolution", model="resnet_cifar_conv"),
    Contender(name="se", title="convolution and SE", model="resnet_cifar_se"),
    *(Contender(name=name, title=title, model=f"resnet_cifar_{name}") for name, title, _ in _COUNTERPARTS),
    # Its scope of 15 holds every offset of the 8x8 grid that its two lambda layers work on: global.
    *_lambda_variants("lambda_resnet_cifar", stages=3, last=3),
)
_MINI = (
    Contender(name="conv", title="3x3 convolution", model="resnet_mini_conv"),
    Contender(
        name="se",
        title="convolution and SE",
        model="resnet_mini_conv",
        options={"squeeze_excite": (True, True, True, True)},
    ),
    *(
        Contender(name=name, title=title, model="lambda_resnet_mini", options={"operator": name, **options})
        for name, title, options in _COUNTERPARTS
    ),
    *_lambda_variants("lambda_resnet_mini", stages=4, last=2),
)
_DIGITS = (
    Contender(name="conv", title="3x3 convolution", model="resnet_digits_conv"),
    *(
        contender
        for contender in _lambda_variants("lambda_resnet_digits", stages=2, last=2)
        if contender.name != "lambda_scope7"  # its own scope is 7
    ),
)

TRUNKS: dict[str, Trunk] = {
    # Half the width and few epochs: the twelve with three seeds end overnight on two cores without bfloat16.
    "cifar_half": Trunk(
        recipe="cifar",
        epochs=8,
        options={"widths": (16, 32, 64), "stem_width": 32},
        contenders=_CIFAR,
    ),
    # The registered models and the recipe's own epochs: for a GPU, or days.
    "cifar": Trunk(recipe="cifar", epochs=36, contenders=_CIFAR),
    "mini": Trunk(recipe="folder", epochs=30, contenders=_MINI),
    # Minutes, to see how a study works. Its seeds divide the digits anew, and so tell more than one thing.
    "digits": Trunk(recipe="digits", epochs=15, contenders=_DIGITS),
}
