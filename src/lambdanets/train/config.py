"""The typed configuration of a run; a recipe is a function that returns one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from lambdanets.data import DataConfig
from lambdanets.models.shipped import find_run
from lambdanets.train.errors import RunError
from lambdanets.train.model_config import ModelConfig as ModelConfig
from lambdanets.train.optim import OptimizerConfig, ScheduleConfig
from lambdanets.train.serialization import check_finite, decode, encode
from lambdanets.utils.files import parse_json
from lambdanets.utils.text import did_you_mean, json_text

if TYPE_CHECKING:
    from lambdanets.train.initial_weights import WeightsRecord

LOGGERS = ("tensorboard", "wandb", "mlflow")
MAX_THREADS = 4096
MAX_MINUTES = 365 * 24 * 60  # a year


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of a classifier.

    Args:
        name: "cross_entropy" of the softmax, or "binary": the binary cross entropy of each class against all
            others, averaged over the classes. Images with several labels always take "binary".
        label_smoothing: Part of the target probability that is spread evenly over all classes; of images with
            several labels, each target moves by this part towards 1/2.
        class_weights: Weight of each class in the training loss: "balanced" (inverse to its number of
            training images), or a number for each class in the order of their names. With "binary" they
            weight the positives. None weights all equally.
    """

    name: Literal["cross_entropy", "binary"] = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing is from 0 to below 1; got {self.label_smoothing}")
        if self.name not in ("cross_entropy", "binary"):
            raise ValueError(f"loss.name is cross_entropy or binary; got {self.name!r}")
        weights = self.class_weights
        numbers = isinstance(weights, tuple) and all(isinstance(each, int | float) for each in weights)
        if weights not in (None, "balanced") and not (numbers and weights and min(weights) >= 0):
            raise ValueError(
                f"loss.class_weights is balanced, a number for each class such as (1.0,5.0), or None; got "
                f"{weights!r}"
            )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Length of the run, devices and precision, and how often the run is saved.

    Args:
        epochs: Passes over the training data.
        precision: Precision of training, in Lightning's notation.
        devices: Devices per node, passed to Lightning; where torchrun or SLURM launched the processes, their
            number replaces it.
        num_nodes: Nodes, passed to Lightning; where torchrun or SLURM launched the processes, their number
            replaces it.
        accelerator: Accelerator, passed to Lightning: "cpu", "gpu" or "auto".
        strategy: Strategy, passed to Lightning, such as "ddp" or "fsdp".
        accumulate: Batches per optimiser step.
        global_batch: Samples of an optimiser step over all devices, reached by gradient accumulation; None
            means `data.batch_size` times the number of devices times `accumulate`.
        ema: Decay of an exponential moving average (EMA) of the weights; None keeps no average. After t steps
            the decay is min(ema, (1 + t) / (10 + t)). Weights and average are both validated, and the best
            epoch is chosen and stored by the average.
        clip_grad: Threshold of the gradient clipping; None does not clip.
        clip_mode: "norm": `clip_grad` is the largest norm of the whole gradient. "agc" is timm's adaptive
            clipping: the largest norm of the gradient of a row of weights as a part of the norm of the row,
            such as 0.02; the last weight and bias, those of a classifier's head, are not clipped.
        checkpointing: Recompute activations in the backward pass instead of saving them: less memory, about a
            third more time, the same gradients.
        compile: Compile the network with torch.compile.
        channels_last: Store images and weights in channels-last memory format.
        deterministic: Refuse operators that are not deterministic (on the CPU all are).
        sync_batchnorm: Compute batch statistics over all devices; needs GPUs.
        timeout_minutes: Minutes that ranks wait for one that does not respond, before all stop with an error.
        threads: CPU threads of PyTorch; None leaves its default.
        save_minutes: Save inside an epoch when the last save is this many minutes old; None does not.
        save_steps: Save inside an epoch after every so many optimiser steps; None does not.
        validate_every: Epochs between validations; the last epoch always has one.
        patience: End the run after this many validations in a row without a better one; None trains all
            epochs. The schedule of the learning rate is that of all epochs.
        loggers: Where metrics go besides the run folder: "tensorboard", "wandb" and "mlflow", separated by
            commas, or "none".
        max_batches: Most training batches of an epoch, for trials; None takes all.
        max_val_batches: Most validation batches, for trials; None takes all.
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
    clip_mode: Literal["norm", "agc"] = "norm"
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
    patience: int | None = None
    loggers: str = "tensorboard"
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
            "patience",
            "max_batches",
            "max_val_batches",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"engine.{name} is 1 or more; got {value}")
        if self.global_batch is not None and self.accumulate != 1:
            raise ValueError(
                "engine.global_batch determines the accumulation, so engine.accumulate must be 1"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"engine.ema is a decay between 0 and 1, or None; got {self.ema}")
        if self.clip_mode not in ("norm", "agc"):
            raise ValueError(f"engine.clip_mode is norm or agc; got {self.clip_mode!r}")
        if self.clip_mode == "agc" and self.clip_grad is None:
            raise ValueError("engine.clip_mode=agc needs its threshold, such as engine.clip_grad=0.02")
        for name in self.logger_names():
            if name not in LOGGERS:
                known = f"{', '.join(LOGGERS)} or none{did_you_mean(name, LOGGERS)}"
                raise ValueError(f"engine.loggers names {name!r}, which is none of {known}")
        for name in ("clip_grad", "save_minutes", "timeout_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"engine.{name} is greater than 0, or None; got {value}")
        for name, most in (("threads", MAX_THREADS), ("timeout_minutes", MAX_MINUTES)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise ValueError(f"engine.{name} is at most {most:,}; got {value:,}")

    def logger_names(self) -> list[str]:
        """Return the names in `loggers`, each once; none for "none"."""
        names = dict.fromkeys(name.strip() for name in self.loggers.split(","))
        return [] if self.loggers.strip() in ("", "none") else [*names]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The nouns of a task in messages, summaries and names of columns.

    Attributes:
        sample: A sample, of which `data.batch_size` are in a batch.
        samples: Its plural.
        unit: Plural of the elements in which the speed is measured, and over which metrics are means.
        classes: An output of the network, in the singular and in the plural.
        size: Field of `data` with the size of a sample.
        changed: The clause for data that are not those with which a run began.
    """

    sample: str = "image"
    samples: str = "images"
    unit: str = "images"
    classes: tuple[str, str] = ("class", "classes")
    size: str = "image_size"
    changed: str = "images were added, removed, renamed or moved"


@dataclass(frozen=True, kw_only=True)
class HubForm:
    """The description of a task's runs in their model cards on the Hugging Face hub.

    Attributes:
        pipeline: The hub's name of the task.
        kind: A network of the task, such as "a detector".
        use: Words after `lambdanets` that use the network; "{folder}" is the downloaded folder.
        source: Form of `data.source`.
        facts: Fields of `data` that describe the inputs.
    """

    pipeline: str
    kind: str
    use: str
    source: str
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """All settings of a run, without those of one task.

    A task's subclass narrows the types of `model` and `data`. The engine relies on `model.name`,
    `model.weights`, `data.source`, `data.batch_size`, `data.workers`, `data.without_paths()`, the field that
    `WORDING.size` names, and on `resolved()` of both, which makes their paths absolute.

    Args:
        recipe: Name of the recipe.
        model, data, optimizer, schedule, engine: Groups of settings.
        seed: Seed of all random numbers.
    """

    WORDING = Wording()
    HUB: ClassVar[HubForm]
    TASK = ""  # such as "classification": the entry `task` of config.json
    STARTS_FROM: ClassVar[tuple[str, ...]] = ()  # tasks of runs whose weights a new run can start from
    INPUT: ClassVar[tuple[str, ...]] = ()  # fields of `data` that have to be those of the initial weights

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
        """Build the network of the run, with random or, by an option of the model, pretrained weights.

        `model.weights` is not loaded here: see `load_initial_weights`.

        Args:
            num_classes: Number of classes of the data.
            loads_weights: The caller loads weights afterwards: pretrained ones are not downloaded.
        """
        raise NotImplementedError

    def with_model(self, name: str) -> Self:
        """Return a copy with another model and none of the model options."""
        if name == self.model.name:
            return self
        return replace(self, model=replace(self.model, name=name, options={}))

    def example_input(self) -> tuple[str, Tensor] | None:
        """Return an uninitialised input of the network, to check that the network takes data of this size.

        Returns:
            A description such as "images of 3 x 32 x 32", and the tensor; None where any size is taken.
        """
        return None

    def describe_batch(self) -> str:
        """Return the size of a batch, to explain that it needs too much memory."""
        size = self.data.image_size
        return f"data.batch_size={self.data.batch_size} images of {size}x{size}"

    def pretrained_part(self, network: nn.Module) -> nn.Module | None:
        """Return the module of a network into which `model.weights` is loaded.

        None means that the weights can be compared with it only when the data are known.
        """
        return network

    def weights_metadata(self, classes: Sequence[str]) -> dict[str, str]:
        """Return the metadata of `weights.safetensors`, which make it usable without the run folder."""
        data, size = self.data.resolved(), self.WORDING.size
        values = {name: getattr(data, name) for name in (size, *self.INPUT)}
        return {
            "recipe": self.recipe,
            "model": self.model.name,
            "options": json.dumps(encode(self.model.options)),
            "num_classes": str(len(classes)),
            "classes": json_text(classes),
            **{name: json.dumps(v) if isinstance(v, tuple) else str(v) for name, v in values.items()},
        }

    def values_from(self, record: WeightsRecord) -> dict[str, Any]:
        """Return the fields of a new run that come from its initial weights, by their paths.

        Args:
            record: The record of the weights.
        """
        model = {name: record.model[name] for name in ("name", "options") if name in record.model}
        data = {name: record.data[name] for name in self.INPUT if record.data.get(name) is not None}
        return {f"model.{name}": value for name, value in model.items()} | {
            f"data.{name}": value for name, value in data.items()
        }

    def check_start(self) -> None:
        """Raise ValueError if a new run lacks weights that its settings need; a resumed run has its own."""

    def load_initial_weights(self, network: nn.Module) -> str:
        """Load `model.weights` into a network, and return a sentence that describes them.

        Published weights of timm ("pretrained") are those that `network` has loaded.

        Raises:
            WeightsError: The weights cannot be read, or are those of another model.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RunConfig(BaseConfig):
    """All settings of a run of image classification."""

    TASK = "classification"
    HUB = HubForm(
        pipeline="image-classification",
        kind="an image classifier",
        use="predict {folder} photos",
        source="folder:PATH",
    )
    STARTS_FROM = (TASK,)
    INPUT = ("image_size", "in_chans", "mean", "std", "crop_pct", "interpolation")

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def network(self, num_classes: int, *, loads_weights: bool = False) -> nn.Module:
        """Build the classifier: images `[b, c, h, w]` to logits `[b, num_classes]`."""
        return self.model.network(num_classes, loads_weights=loads_weights, in_chans=self.data.in_chans)

    def example_input(self) -> tuple[str, Tensor]:
        channels, size = self.data.in_chans, self.data.image_size
        return f"images of {channels} x {size} x {size}", torch.empty(1, channels, size, size)

    def check_start(self) -> None:
        self.model.check_start()

    def load_initial_weights(self, network: nn.Module) -> str:
        return self.model.load_initial_weights(network)


Config = TypeVar("Config", bound=BaseConfig)


def dump_config(config: BaseConfig) -> str:
    """Return the text of a run's `config.json`: the task and all settings."""
    return json.dumps({"task": config.TASK, **encode(config)}, indent=2) + "\n"


def load_config(path: Path, kind: type[Config] = RunConfig) -> Config:
    """Read the configuration stored in a run's `config.json`.

    Args:
        path: The file.
        kind: The configuration class of the run's task.

    Raises:
        RunError: The file holds no such configuration, or that of another task.
    """
    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        task = task_in(plain)
        if task != kind.TASK:
            raise ValueError(f"it is of a run of {task}, not of {kind.TASK}")
        if isinstance(plain, dict):
            plain.pop("task", None)
            if task == RunConfig.TASK and isinstance(plain.get("data"), dict):
                # Runs of versions without this field split their images in this way, and keep it if resumed.
                plain["data"].setdefault("hold_out", "stable")
        return decode(kind, plain)
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {error}") from error


def stored_task(folder: Path) -> str | None:
    """Return the task of the run in a folder, such as "detection"; None if it cannot be read."""
    return config_task(find_run(folder) / "config.json")


def config_task(file: Path) -> str | None:
    """Return the task of a configuration in a file; None if it cannot be read."""
    try:
        return task_in(parse_json(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def task_in(plain: Any) -> str:
    """Return the task in the content of a run's config.json."""
    if isinstance(plain, dict) and "task" in plain:
        return str(plain["task"])
    # Older versions stored no task; only detectors read COCO annotations.
    data = plain.get("data") if isinstance(plain, dict) else None
    source = data.get("source") if isinstance(data, dict) else None
    return "detection" if str(source).startswith("coco:") else RunConfig.TASK


def load_classes(path: Path) -> tuple[str, ...]:
    """Read the class names stored in a run's `classes.json`, in the order of the logits.

    Raises:
        RunError: The file holds no list of names.
    """
    try:
        names = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RunError(f"{path} cannot be used: it is no list of class names")
    return tuple(names)
