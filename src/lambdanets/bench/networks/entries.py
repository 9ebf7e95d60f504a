"""Who is measured: a network at an image size, by name, by pattern, or with options of its config."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch

from lambdanets.models import create_model
from lambdanets.models.summary import summarise
from lambdanets.utils.text import first_line

Option = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publication says about a network; shown as such beside what is measured here.

    Attributes:
        source: The publication, and where in it.
        top1: Accuracy on ImageNet, percent.
        parameters_m: Millions of parameters.
        examples_per_s: Images per second in inference, on 8 TPUv3 cores, float32; 0: out of memory.
        seconds: Seconds for a training step of 1024 images on 8 TPUv3 cores, bfloat16.
        memory: GB as the paper counts them, in its words.
    """

    source: str
    top1: float | None = None
    parameters_m: float | None = None
    examples_per_s: float | None = None
    seconds: float | None = None
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network at one image size.

    Attributes:
        model: Its name in timm's registry.
        size: Height and width of the images.
        options: What `create_model` is given besides the name.
        label: How tables call it; the name and size when "".
        family: The curve that it is a point of, "" where it stands alone.
        published: What is published about it, if anything.
        maps_gib: Its maps or position tables as the paper's Table 4 counts them.
    """

    model: str
    size: tuple[int, int]
    options: tuple[Option, ...] = ()
    label: str = ""
    family: str = ""
    published: Published | None = None
    maps_gib: float | None = None

    @property
    def title(self) -> str:
        """How tables call it."""
        return self.label or f"{self.model}@{sides(self.size)}"

    @property
    def settings(self) -> str:
        """The options in words."""
        return ", ".join(f"{name}={value}" for name, value in self.options)

    def at(self, size: tuple[int, int]) -> Entry:
        """Return the network at another size, of which nothing is published and no formula tells the maps."""
        return self if size == self.size else replace(self, size=size, published=None, maps_gib=None)

    def __str__(self) -> str:
        return f"{self.model}{f'({self.settings})' if self.options else ''} at {sides(self.size)}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is known about a network before it runs.

    Attributes:
        parameters: How many.
        macs: Multiply-adds of a forward pass for one image, as our kernels do them.
        channels: Of its images.
    """

    parameters: int
    macs: int
    channels: int


def sides(size: tuple[int, int]) -> str:
    """Return a size as people write it: 224, or 160x224."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def read_size(text: str) -> tuple[int, int]:
    """Return the height and width that 224 or 160x224 stands for.

    Raises:
        ValueError: It stands for nothing.
    """
    words = text.strip().lower().split("x")
    if not (1 <= len(words) <= 2 and all(word.isdecimal() and int(word) > 0 for word in words)):
        raise ValueError(f"an image size is 224 or 160x224 (height x width), got {text!r}")
    return int(words[0]), int(words[-1])


def entries(names: Iterable[str], sizes: Iterable[str] = ()) -> list[Entry]:
    """Return the networks that names and sizes stand for, each once.

    Args:
        names: Names or patterns of timm's registry; `name@size` is at that size alone.
        sizes: Image sizes of all who name none; each one's own where there are none.

    Raises:
        ValueError: A name fits no model, or a size is none.
    """
    common = [read_size(text) for text in sizes]
    found: dict[Entry, None] = {}
    for word in names:
        name, _, size = word.strip().partition("@")
        for model in _models(name):
            own = [read_size(size)] if size else common or [own_size(model)]
            found |= dict.fromkeys(Entry(model=model, size=each) for each in own)
    return list(found)


def own_size(model: str) -> tuple[int, int]:
    """Return the image size that a model was made for."""
    cfg = timm.get_pretrained_cfg(model, allow_unregistered=False)
    _, height, width = cfg.input_size if cfg is not None else (3, 224, 224)
    return height, width


@functools.cache
def cost(entry: Entry, *, batch: int = 1, train: bool = False) -> Cost:
    """Return what a network costs, found without memory or arithmetic.

    Args:
        entry: The network and its image size.
        batch: Of a training step that must be possible.
        train: Whether a training step must be possible, too: a batch norm refuses a single value.

    Raises:
        ValueError: The network does not take these options or this size.
    """
    _models(entry.model)
    options = dict(entry.options)
    try:
        with torch.device("meta"):
            network: Any = create_model(entry.model, **options)
    except (NotImplementedError, RuntimeError):
        network = create_model(entry.model, **options)  # some need numbers to be built
    except TypeError as error:
        raise ValueError(f"{entry.model} does not take {entry.settings}: {error}") from error
    try:
        found = summarise(network, entry.size, batch=batch, step=batch if train else None)
    # Whatever a network raises at a size that does not fit it: an assertion, a shape that becomes negative.
    except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        first = first_line(error)
        cfg: Any = network.pretrained_cfg
        own = sides(own_size(entry.model))
        fits = f"it takes {own} alone" if cfg.get("fixed_input_size") else f"its own size, {own}, would do"
        raise ValueError(
            f"{entry.model} cannot take images of {sides(entry.size)}: {first}; {fits}"
        ) from error
    return Cost(parameters=found.parameters, macs=found.macs, channels=found.image[0])


def absent(entry: Entry) -> str:
    """Return why a row of a paper's table has no network in this installation, or ""."""
    try:
        cost(entry)
    except ValueError as error:
        return str(error)
    return ""


def _models(name: str) -> list[str]:
    if timm.is_model(name):
        return [name]
    if "*" in name or "?" in name or "[" in name:
        if found := timm.list_models(name):
            return found
        raise ValueError(f"no model's name is like {name!r}; `lambdanets list` shows the names")
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `lambdanets list` shows the names"
    raise ValueError(f"there is no model named {name!r}{hint}")
