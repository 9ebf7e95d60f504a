"""Networks to measure: one model at one image size, its cost, its passes, and its rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.models import create_model, to_channels_last
from lambdanets.models.summary import summarise
from lambdanets.utils.text import did_you_mean, first_line

from .records import NONE, Provenance, read_rows, write_rows
from .timing import Pass

IMAGES = 1024  # images of a training step for which the paper states latencies
NOT_RUN = "not run"
# A small learning rate keeps the weights in their usual range: other values could change the speed.
LEARNING_RATE, MOMENTUM = 1e-3, 0.9


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers that a publication gives for a network; reports mark them as published.

    Attributes:
        source: The publication, and the place in it.
        top1: Accuracy on ImageNet, percent.
        parameters_m: Millions of parameters.
        examples_per_s: Images per second in inference, on 8 TPUv3 cores, float32; 0: out of memory.
        seconds: Seconds for a training step of 1024 images on 8 TPUv3 cores, bfloat16.
        memory: The paper's memory figure in GB, as printed there.
    """

    source: str
    top1: float | None = None
    parameters_m: float | None = None
    examples_per_s: float | None = None
    seconds: float | None = None
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network at one image size.

    Attributes:
        model: Name in timm's registry.
        size: Height and width of the images.
        options: Other arguments of `create_model`.
        label: Name in tables; "" for model and size.
        family: Name of the curve to which it belongs as a point, or "".
        published: Published numbers, if any.
        maps_gib: GiB of its attention maps or position tables, counted as in the paper's Table 4.
    """

    model: str
    size: tuple[int, int]
    options: tuple[tuple[str, Any], ...] = ()
    label: str = ""
    family: str = ""
    published: Published | None = None
    maps_gib: float | None = None

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.label or f"{self.model}@{format_size(self.size)}"

    @property
    def options_text(self) -> str:
        """The options as text."""
        return ", ".join(f"{name}={value}" for name, value in self.options)

    def at(self, size: tuple[int, int]) -> NetworkSpec:
        """Return the network at another size, for which nothing is published."""
        return self if size == self.size else replace(self, size=size, published=None, maps_gib=None)

    def __str__(self) -> str:
        options = f"({self.options_text})" if self.options else ""
        return f"{self.model}{options} at {format_size(self.size)}"


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """The size of a network, computed before it runs.

    Attributes:
        parameters: Number of parameters.
        macs: Multiply-adds of a forward pass for one image, as our kernels compute it.
        channels: Number of channels of the images.
    """

    parameters: int
    macs: int
    channels: int


def format_size(size: tuple[int, int]) -> str:
    """Return an image size as text: 224, or 160x224."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def parse_size(text: str) -> tuple[int, int]:
    """Return the height and width of a size such as 224 or 160x224.

    Raises:
        ValueError: The text is no size.
    """
    words = text.strip().lower().split("x")
    if not (1 <= len(words) <= 2 and all(word.isdecimal() and int(word) > 0 for word in words)):
        raise ValueError(f"an image size is 224 or 160x224 (height x width), got {text!r}")
    return int(words[0]), int(words[-1])


def select_networks(names: Iterable[str], sizes: Iterable[str] = ()) -> list[NetworkSpec]:
    """Return the networks with the given names and sizes, without repetition.

    Args:
        names: Names or patterns of timm's registry; `name@size` sets the size of that name.
        sizes: Image sizes for names without `@size`; if empty, the default size of each model.

    Raises:
        ValueError: A name matches no model, or the text of a size is invalid.
    """
    common = [parse_size(text) for text in sizes]
    found: dict[NetworkSpec, None] = {}
    for word in names:
        name, _, size = word.strip().partition("@")
        for model in _matching_models(name):
            own = [parse_size(size)] if size else common or [default_size(model)]
            found |= dict.fromkeys(NetworkSpec(model=model, size=each) for each in own)
    return list(found)


def default_size(model: str) -> tuple[int, int]:
    """Return the image size of a model's configuration."""
    cfg = timm.get_pretrained_cfg(model, allow_unregistered=False)
    _, height, width = cfg.input_size if cfg is not None else (3, 224, 224)
    return height, width


@functools.cache
def compute_cost(network: NetworkSpec, *, batch: int = 1, train: bool = False) -> NetworkCost:
    """Return the cost of a network, computed on tensors without memory.

    Args:
        network: The network and its image size.
        batch: Batch size of the training step.
        train: Whether to check that a training step is possible: batch norms cannot train on a single value
            per channel.

    Raises:
        ValueError: The network does not take these options or this size.
    """
    _matching_models(network.model)
    options = dict(network.options)
    try:
        with torch.device("meta"):
            module: Any = create_model(network.model, **options)
    except (NotImplementedError, RuntimeError):
        module = create_model(
            network.model, **options
        )  # some models compute with tensors while they are built
    except TypeError as error:
        raise ValueError(f"{network.model} does not take {network.options_text}: {error}") from error
    try:
        found = summarise(module, network.size, batch=batch, step=batch if train else None)
    # Networks raise any of these at a size that does not fit: an assertion, a negative shape.
    except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        first = first_line(error)
        cfg: Any = module.pretrained_cfg
        own = format_size(default_size(network.model))
        fits = f"it takes {own} alone" if cfg.get("fixed_input_size") else f"its default size is {own}"
        raise ValueError(
            f"{network.model} cannot take images of {format_size(network.size)}: {first}; {fits}"
        ) from error
    return NetworkCost(parameters=found.parameters, macs=found.macs, channels=found.image[0])


def unavailable_reason(network: NetworkSpec) -> str:
    """Return why this installation cannot build a network, or ""."""
    try:
        compute_cost(network)
    except ValueError as error:
        return str(error)
    return ""


def _matching_models(name: str) -> list[str]:
    """Return the models of timm's registry with a name or a pattern; raise ValueError if there are none."""
    if timm.is_model(name):
        return [name]
    if "*" in name or "?" in name or "[" in name:
        if found := timm.list_models(name):
            return found
        raise ValueError(f"no model name matches {name!r}; `lambdanets list` shows the names")
    hint = did_you_mean(name, timm.list_models()) or "; `lambdanets list` shows the names"
    raise ValueError(f"there is no model named {name!r}{hint}")


@dataclass(frozen=True, kw_only=True)
class NetworkJob:
    """One pass of one network at one batch, which is timed, and whose peak `peak_mib` measures.

    Attributes:
        network: The network and its image size.
        which: "train" is forward, cross entropy, backward and a step of SGD with momentum; "eval" a forward
            pass in inference mode.
        batch: Images.
        dtype: float32 or bfloat16. In bfloat16, inference has weights of that dtype, training has float32
            weights and autocast.
        device: Device of the pass.
        threads: Number of threads of PyTorch.
        channels: Number of channels of the images.
    """

    network: NetworkSpec
    which: Pass
    batch: int
    dtype: torch.dtype
    device: str
    threads: int
    channels: int
    whole: bool = True

    def warm_up(self) -> None:
        """Run a training pass of a miniature."""
        small = nn.Sequential(
            nn.Conv2d(self.channels, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4)
        )
        images = torch.randn(2, self.channels, 9, 9, device=self.device)
        small.to(self.device)(images).sum().backward()

    def prepare(self) -> Callable[[], Tensor]:
        """Build the network with random weights and return the pass, which gives the logits or the loss."""
        torch.manual_seed(0)
        with torch.device(self.device):  # a CPU would take seconds to draw a hundred million weights
            module = create_model(self.network.model, **dict(self.network.options))
            images = torch.randn(self.batch, self.channels, *self.network.size)
        images = images.to(memory_format=torch.channels_last)
        if self.which == "eval":
            module = to_channels_last(module.eval().to(self.device, self.dtype))
            return _inference(module, images.to(self.dtype))
        module = to_channels_last(module.train().to(self.device))
        mixed = self.dtype != torch.float32
        kind = torch.device(self.device).type
        precision = torch.autocast(kind, self.dtype) if mixed else nullcontext()
        return _training_step(module, images, precision)


def _inference(module: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def infer() -> Tensor:
        with torch.inference_mode():
            return module(images)

    return infer


def _training_step(
    module: nn.Module, images: Tensor, precision: AbstractContextManager[object]
) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    # A step with zero gradients creates the momentum buffers, so that the first measured step has them too.
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    labels: list[Tensor] = []

    def train() -> Tensor:
        with precision:
            logits = module(images)
            if not labels:
                labels.append(torch.arange(len(logits), device=logits.device) % logits.shape[1])
            loss = F.cross_entropy(logits, labels[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return train


@dataclass(frozen=True, kw_only=True)
class NetworkRecord:
    """One network in one pass: a row of the CSV.

    Attributes:
        bench: The benchmark that it was measured for: "models", or "race", "table4", ... of the laboratory.
        title: Name of the network in tables.
        family: Name of the curve to which it belongs as a point, or "".
        model: Name of the model.
        options: Options of the model as text.
        size: Size of the images, such as 224 or 160x224.
        mode: "train" or "eval".
        batch: Images of the measured pass; 0 where none was measured.
        wanted_batch: Requested images; `batch` is smaller where memory or time did not suffice.
        parameters: Number of parameters; 0 where the network is not available.
        macs: Multiply-adds of a forward pass for one image.
        group: Number of the group; the networks of a group took turns.
        note: Why there are no numbers, or how they differ from those of other rows; usually "".
        wall_ms: Median wall time of the whole batch; with its quantiles `wall_q20` and `wall_q80`.
        cpu_ms: The same of the CPU time of all threads.
        samples: Number of samples.
        peak_mib: Peak memory of the network, its batch and its pass, in MiB: on a CPU the growth of a
            separate process, on a GPU that of PyTorch's allocations.
        maps_gib: Maps or position tables as the paper's Table 4 counts them, by formula.
        published_source: Source of the following columns, none of which is measured here.
        published_top1: Accuracy on ImageNet, percent.
        published_parameters_m: Millions of parameters.
        published_examples_per_s: Inference on 8 TPUv3 cores, float32; 0: out of memory.
        published_seconds: A training step of 1024 images on 8 TPUv3 cores, bfloat16.
        published_memory: GB as the paper counts them.
    """

    bench: str
    title: str
    family: str
    model: str
    options: str
    size: str
    mode: str
    batch: int = 0
    wanted_batch: int = 0
    parameters: int = 0
    macs: int = 0
    group: int = 0
    note: str = ""
    wall_ms: float = NONE
    wall_q20: float = NONE
    wall_q80: float = NONE
    cpu_ms: float = NONE
    cpu_q20: float = NONE
    cpu_q80: float = NONE
    samples: int = 0
    peak_mib: float = NONE
    maps_gib: float = NONE
    published_source: str = ""
    published_top1: float = NONE
    published_parameters_m: float = NONE
    published_examples_per_s: float = NONE
    published_seconds: float = NONE
    published_memory: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Identity of the measurement: a resumed benchmark does not repeat the keys of earlier rows."""
        return self.title, self.model, self.options, self.size, self.mode

    @property
    def images_per_s(self) -> float:
        """Measured throughput, NaN where nothing was measured."""
        return 1e3 * self.batch / self.wall_ms if self.samples else NONE

    @property
    def ms_per_image(self) -> float:
        """Measured milliseconds for one image."""
        return self.wall_ms / self.batch if self.samples else NONE

    @property
    def seconds(self) -> float:
        """Measured seconds for 1024 images."""
        return self.ms_per_image * IMAGES / 1e3

    @property
    def spread(self) -> float:
        """Half of the distance between the quantiles, as a fraction of the median."""
        return (self.wall_q80 - self.wall_q20) / 2 / self.wall_ms if self.samples > 1 else NONE


Measured = tuple[NetworkRecord, Provenance]


def blank_record(bench: str, network: NetworkSpec, which: Pass) -> NetworkRecord:
    """Return the row of a network in a pass before it is measured, with its published numbers."""
    published = network.published or Published(source="")
    return NetworkRecord(
        bench=bench,
        title=network.title,
        family=network.family,
        model=network.model,
        options=network.options_text,
        size=format_size(network.size),
        mode=which,
        maps_gib=_or_nan(network.maps_gib),
        published_source=published.source,
        published_top1=_or_nan(published.top1),
        published_parameters_m=_or_nan(published.parameters_m),
        published_examples_per_s=_or_nan(published.examples_per_s),
        published_seconds=_or_nan(published.seconds),
        published_memory=published.memory,
    )


def _or_nan(value: float | None) -> float:
    return NONE if value is None else value


def with_cpu_time(measured: Iterable[Measured]) -> list[Measured]:
    """Return the rows with the CPU time of all threads in place of wall time."""
    return [
        (replace(row, wall_ms=row.cpu_ms, wall_q20=row.cpu_q20, wall_q80=row.cpu_q80), where)
        for row, where in measured
    ]


def write_networks(path: Path, rows: Iterable[Measured]) -> None:
    """Write rows, each with its own provenance, as a benchmark may be resumed at another time."""
    write_rows(path, NetworkRecord, rows)


def read_networks(path: Path, bench: str) -> list[Measured]:
    """Read a file of `write_networks`.

    Raises:
        ValueError: The file is no such table, has no rows, or is of another benchmark.
    """
    rows: list[Measured] = read_rows(path, NetworkRecord, bench)
    if (other := rows[0][0].bench) != bench:
        raise ValueError(f"{path} holds rows of the benchmark {other}, not of {bench}")
    return rows
