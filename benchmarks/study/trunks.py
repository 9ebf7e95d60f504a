"""Trunks as literal data: one network each, with other operators in the same blocks as contenders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BASELINE = "conv"  # of the differences in a report


@dataclass(frozen=True, kw_only=True)
class StudyContender:
    """A model of the registry with its options.

    Attributes:
        name: In the command, the rows and the folders.
        title: In tables and figures.
        model: Its name in the registry.
        options: Arguments of `create_model`, added to those of the recipe.
    """

    name: str
    title: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A network for images of one size, its recipe and its contenders.

    Attributes:
        recipe: Name of the recipe with the optimizer, schedule, loss and augmentation of all cells.
        epochs: Default number of epochs.
        options: Arguments of `create_model` of all contenders.
        contenders: In the order in which they are run.
    """

    recipe: str
    epochs: int
    contenders: tuple[StudyContender, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def choose(self, names: Sequence[str] | None) -> tuple[StudyContender, ...]:
        """Return the contenders with these names, all when None; in the order of the trunk.

        Raises:
            ValueError: A name is unknown.
        """
        known = [contender.name for contender in self.contenders]
        for name in names or ():
            if name not in known:
                raise ValueError(f"there is no contender {name!r}; there are {', '.join(known)}")
        return tuple(contender for contender in self.contenders if names is None or contender.name in names)


def _lambda_variants(model: str, stages: int, last: int) -> tuple[StudyContender, ...]:
    """Return the lambda networks of a trunk: Table 11 (scope), 10 (content, position) and 13 (which blocks).

    Args:
        model: The trunk's own lambda network.
        stages: Number of its stages.
        last: Number of blocks of its last stage.
    """
    convolutions: tuple[tuple[int, ...], ...] = ((),) * (stages - 1)
    return (
        StudyContender(name="lambda", title="lambda", model=model),
        StudyContender(name="lambda_scope7", title="lambda, scope 7", model=model, options={"scope": 7}),
        StudyContender(
            name="lambda_content",
            title="lambda, content only",
            model=model,
            options={"position": False},
        ),
        StudyContender(
            name="lambda_position",
            title="lambda, position only",
            model=model,
            options={"content": False},
        ),
        StudyContender(
            name="lambda_last_stage",
            title="lambda, all of the last stage",
            model=model,
            options={"operator_blocks": (*convolutions, "all")},
        ),
        StudyContender(
            name="lambda_last_block",
            title="lambda, last block alone",
            model=model,
            options={"operator_blocks": (*convolutions, (last - 1,))},
        ),
    )  # fmt: skip


# Other operators in the blocks of the lambda layers: name, title, options.
_COUNTERPARTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("linear_attention", "linear attention", {"num_heads": 8}),
    ("attention", "global relative attention", {"num_heads": 8}),
    ("axial", "axial attention", {"num_heads": 8}),
    ("local_attention", "local attention 7x7", {"num_heads": 8, "scope": 7}),
)
_CIFAR = (
    StudyContender(name="conv", title="3x3 convolution", model="resnet_cifar_conv"),
    StudyContender(name="se", title="convolution and SE", model="resnet_cifar_se"),
    *(
        StudyContender(name=name, title=title, model=f"resnet_cifar_{name}")
        for name, title, _ in _COUNTERPARTS
    ),
    # Its scope of 15 covers every offset of the 8x8 grid of its two lambda layers: it is global.
    *_lambda_variants("lambda_resnet_cifar", stages=3, last=3),
)
_MINI = (
    StudyContender(name="conv", title="3x3 convolution", model="resnet_mini_conv"),
    StudyContender(
        name="se",
        title="convolution and SE",
        model="resnet_mini_conv",
        options={"squeeze_excite": (True, True, True, True)},
    ),
    *(
        StudyContender(
            name=name, title=title, model="lambda_resnet_mini", options={"operator": name, **options}
        )
        for name, title, options in _COUNTERPARTS
    ),
    *_lambda_variants("lambda_resnet_mini", stages=4, last=2),
)
_DIGITS = (
    StudyContender(name="conv", title="3x3 convolution", model="resnet_digits_conv"),
    *(
        contender
        for contender in _lambda_variants("lambda_resnet_digits", stages=2, last=2)
        if contender.name != "lambda_scope7"  # its own scope is 7
    ),
)

TRUNKS: dict[str, Trunk] = {
    # Half the width and few epochs: all twelve with three seeds take a night on two cores without bfloat16.
    "cifar_half": Trunk(
        recipe="cifar",
        epochs=8,
        options={"widths": (16, 32, 64), "stem_width": 32},
        contenders=_CIFAR,
    ),
    # The registered models and the recipe's own epochs: for a GPU, or days.
    "cifar": Trunk(recipe="cifar", epochs=36, contenders=_CIFAR),
    "mini": Trunk(recipe="folder", epochs=30, contenders=_MINI),
    # Takes minutes, to try a study. Its seed also decides the split of the digits.
    "digits": Trunk(recipe="digits", epochs=15, contenders=_DIGITS),
}
