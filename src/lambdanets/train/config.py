"""The complete, typed description of one run; a recipe is a function that returns one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.data import DataConfig
from lambdanets.models import create_model, load_weights
from lambdanets.models.weight_files import HUB
from lambdanets.train.errors import RunError
from lambdanets.train.optim import OptimizerConfig
from lambdanets.train.schedule import ScheduleConfig
from lambdanets.train.typed import check_finite, decode
from lambdanets.utils.files import parse_json

MOST_THREADS = 4096
MOST_MINUTES = 365 * 24 * 60


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A registered model and its options (`num_classes` and `in_chans` come from the data).

    Args:
        name: of timm's registry.
        options: further arguments of the model.
        weights: what a run starts from, instead of weights drawn at random: a file, the folder of a run, or
            hf-hub:OWNER/NAME (see `lambdanets.models.load_weights`). A head of another number of classes is
            left out. A resumed run has its own weights.
        bn_momentum: weight of a batch in the running statistics of batch norms (PyTorch's way round: 0.1
            where TensorFlow says 0.9); None leaves the model's own.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    bn_momentum: float | None = None

    def __post_init__(self) -> None:
        if self.weights == "":
            raise ValueError("model.weights is a file, a folder or hf-hub:OWNER/NAME, or None; got ''")
        if self.weights is not None and self.options.get("pretrained"):
            raise ValueError("model.weights and model.options.pretrained=true both name a start; keep one")
        if "checkpoint_path" in self.options:
            raise ValueError(
                "model.options.checkpoint_path: the weights that a run starts from go to model.weights"
            )
        if self.bn_momentum is not None and not 0 < self.bn_momentum <= 1:
            raise ValueError(f"model.bn_momentum is above 0 and at most 1, or None; got {self.bn_momentum}")

    def resolved(self) -> ModelConfig:
        """The same with the path of `weights` written out, so that a run can be resumed from anywhere."""
        if self.weights is None or self.weights.startswith(HUB):
            return self
        return replace(self, weights=str(Path(self.weights).expanduser().absolute()))


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross entropy; `label_smoothing` is the mass spread over all classes."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing is from 0 to below 1; got {self.label_smoothing}")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How long, on what, and how often to save.

    Args:
        epochs: passes over the training images.
        precision: Lightning's name for it.
        devices, num_nodes, accelerator, strategy: passed to Lightning; a launcher's (torchrun's or
            SLURM's) own numbers win.
        accumulate: batches per optimiser step.
        global_batch: images of an optimiser step over all devices, reached by accumulation; None takes what
            `data.batch_size`, devices and `accumulate` give.
        ema: decay of an exponential moving average of the weights, None for none. After t steps it is
            min(ema, (1 + t) / (10 + t)). Both are validated, and the average is what is kept as the best.
        clip_grad: largest gradient norm, None for no clipping.
        checkpointing: compute activations again in the backward pass instead of keeping them: less memory,
            about a third more time, the same gradients.
        compile: run the network through torch.compile.
        channels_last: keep images and weights in channels-last memory.
        deterministic: refuse operators that are not deterministic (the CPU is anyway).
        sync_batchnorm: batch statistics over all devices, which have to be GPUs.
        timeout_minutes: how long the processes of a run wait for one of them that does not answer, before
            all stop with an error.
        threads: CPU threads of torch, None for its own choice.
        save_minutes: save inside an epoch when the last save is this old, None for never.
        save_steps: save inside an epoch every so many optimiser steps, None for never.
        validate_every: epochs from one validation to the next; the last epoch always has one.
        max_batches, max_val_batches: shorten every epoch, for trials and tests.
    """

    epochs: int = 10
    precision: Literal["32", "bf16-mixed", "16-mixed", "64"] = "32"
    devices: int | str = "auto"
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str = "auto"
    accumulate: int = 1
    global_batch: int | None = None
    ema: float | None = None
    clip_grad: float | None = None
    checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    deterministic: bool = False
    sync_batchnorm: bool = False
    timeout_minutes: float = 10.0
    threads: int | None = None
    save_minutes: float | None = 10.0
    save_steps: int | None = None
    validate_every: int = 1
    max_batches: int | None = None
    max_val_batches: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "num_nodes",
            "accumulate",
            "global_batch",
            "threads",
            "save_steps",
            "validate_every",
            "max_batches",
            "max_val_batches",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"engine.{name} is 1 or more; got {value}")
        if self.global_batch is not None and self.accumulate != 1:
            raise ValueError(
                "engine.global_batch says how much is accumulated; engine.accumulate has to be 1"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"engine.ema is a decay between 0 and 1, or None; got {self.ema}")
        for name in ("clip_grad", "save_minutes", "timeout_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"engine.{name} is greater than 0, or None; got {value}")
        for name, most in (("threads", MOST_THREADS), ("timeout_minutes", MOST_MINUTES)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise ValueError(f"engine.{name} is at most {most:,}; got {value:,}")


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Everything a run is a function of, whatever it learns.

    Its `data` has `source`, `image_size`, `batch_size`, `workers` and `placeless()`, its `model` a `name` and
    `weights`; both have `resolved()`, which writes their paths out.
    """

    TASK = ""

    recipe: str
    model: Any
    data: Any
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is from 0 to below 2**63; got {self.seed}")
        check_finite(self)

    def network(self, num_classes: int, *, loads_weights: bool = False) -> nn.Module:
        """The network of a run before its first step.

        Args:
            num_classes: of the data.
            loads_weights: weights follow; those it would fetch are left out.
        """
        raise NotImplementedError

    def named(self, name: str) -> Self:
        """The same with another model; the options of one mean nothing to another."""
        raise NotImplementedError

    def start(self, network: nn.Module) -> str:
        """Load the weights that a run starts from, `model.weights`, and return a sentence on them.

        Raises:
            WeightsError: they cannot be read, or are of another model.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RunConfig(BaseConfig):
    """Everything a run of image classification is a function of."""

    TASK = "classification"

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def network(self, num_classes: int, *, loads_weights: bool = False) -> nn.Module:
        """The network: images of shape (b, c, height, width) to logits of shape (b, num_classes)."""
        options = {"in_chans": self.data.in_chans, **self.model.options, "num_classes": num_classes}
        if loads_weights:
            options["pretrained"] = False
        network = create_model(self.model.name, **options)
        set_momentum(network, self.model.bn_momentum)
        return network

    def named(self, name: str) -> Self:
        """The same with another model, and none of the options."""
        return self if name == self.model.name else replace(self, model=ModelConfig(name=name))

    def start(self, network: nn.Module) -> str:
        """Load `model.weights`; a head of another number of classes is left out."""
        weights = self.model.weights or ""
        kept = load_weights(network, weights, head="replace")
        head = f"; {' and '.join(kept)} start anew: its head is for another number of classes" if kept else ""
        return f"starting from {weights}{head}"


def set_momentum(network: nn.Module, momentum: float | None) -> None:
    """Set the weight of a batch in the running statistics of all batch norms; None leaves them."""
    if momentum is not None:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = momentum


Config = TypeVar("Config", bound=BaseConfig)


def load_config(path: Path, kind: type[Config] = RunConfig) -> Config:
    """The configuration stored in a `config.json`.

    Args:
        path: the file.
        kind: what its run learnt.

    Raises:
        RunError: it cannot be read as one.
    """
    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        task = _task(plain)
        if task != kind.TASK:
            raise ValueError(f"it is of a run of {task}, not of {kind.TASK}")
        if task == RunConfig.TASK and isinstance(plain, dict) and isinstance(plain.get("data"), dict):
            # Runs from before there was a choice divided their images in this way, and must go on so.
            plain["data"].setdefault("hold_out", "stable")
        return decode(kind, plain)
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {error}") from error


def stored_task(folder: Path) -> str | None:
    """What the run in a folder learnt: "classification" or "detection"; None where there is no telling."""
    try:
        return _task(parse_json((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _task(plain: Any) -> str:
    data = plain.get("data") if isinstance(plain, dict) else None
    source = data.get("source") if isinstance(data, dict) else None
    return "detection" if str(source).startswith("coco:") else RunConfig.TASK


def load_classes(path: Path) -> tuple[str, ...]:
    """The names stored in a `classes.json`, in the order of the logits.

    Raises:
        RunError: it cannot be read as a list of names.
    """
    try:
        names = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RunError(f"{path} cannot be used: it is no list of class names")
    return tuple(names)
