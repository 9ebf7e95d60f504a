"""Checks before the first step: whether the folder fits the run, and where the run starts or continues."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer

from lambdanets.models.weight_files import PRETRAINED, find_weights
from lambdanets.train.checkpoint import RunState, newest_intact, remove_temporary_files
from lambdanets.train.config import BaseConfig, Config, Wording, load_classes, load_config
from lambdanets.train.errors import RunError
from lambdanets.train.progress import log_once
from lambdanets.train.run import RunFiles
from lambdanets.train.serialization import flatten
from lambdanets.utils.text import join_some

# Settings that a resumed run may change: they affect where and how fast it runs, not its result, except for
# the number of epochs (see `check_length`).
MAY_DIFFER = {
    "data.source", "data.images", "data.pseudo_labels", "data.unlabelled",
    "data.workers", "data.check", "data.cache", "data.download",
    "engine.epochs", "engine.save_minutes", "engine.save_steps", "engine.threads", "engine.timeout_minutes",
    "engine.checkpointing", "engine.loggers",
}  # fmt: skip


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint, verified as intact, from which a run continues."""

    path: Path
    content: dict[str, Any]

    @property
    def state(self) -> RunState:
        return RunState.from_dict(self.content["run_state"])

    @property
    def begun_epochs(self) -> int:
        """Number of epochs that are done or have begun."""
        epoch, batch = self.state.position
        return epoch + (batch > 0)

    def is_complete(self, config: BaseConfig) -> bool:
        """Return whether no training is left."""
        state = self.state
        return state.position[0] >= config.engine.epochs or state.is_stopped(config.engine.patience)


def resolve_config(config: Config | None, files: RunFiles, kind: type[Config], *, resume: bool) -> Config:
    """Return the configuration of a run, after checking that the folder fits it.

    Raises:
        RunError: The folder already holds a run, or none to resume, or one with another configuration.
    """
    if config is not None:
        config = replace(config, data=config.data.resolved(), model=config.model.resolved())
    if not resume:
        if config is None:
            raise RunError("train needs a config unless it resumes a run")
        config.check_start()
        if rank_zero_only.rank == 0:
            check_free(files)
        return config
    if not files.config.is_file():
        raise RunError(f"{files.directory} is no run to resume: it has no config.json")
    stored = load_config(files.config, kind)
    if config is None:
        return stored
    was, now = flatten(stored), flatten(config)
    changed = [name for name in was if was[name] != now[name] and name not in MAY_DIFFER]
    if changed:
        listing = ", ".join(f"{name} (was {was[name]!r}, now {now[name]!r})" for name in changed)
        raise RunError(
            f"a resumed run keeps its configuration, and this one changes {listing}; start a new run, from "
            f"the weights of this one with --weights {files.directory}"
        )
    return config


def check_free(files: RunFiles) -> None:
    """Raise RunError if a folder holds a run; one that failed before its first checkpoint does not count."""
    if files.results:
        raise RunError(f"{files.directory} holds a run already; resume it, or choose another folder")


def find_resume_point(files: RunFiles, config: BaseConfig) -> ResumePoint | None:
    """Return the newest intact checkpoint of a run to resume; None if it has none yet.

    Raises:
        CheckpointError: All checkpoints are damaged, or one cannot be read at present.
        RunError: There is no checkpoint, and the folder holds results that a run from the start would
            overwrite.
    """
    is_first_rank = rank_zero_only.rank == 0
    if is_first_rank:
        remove_temporary_files(files.directory)
        remove_temporary_files(files.last.parent)
    found = newest_intact(files.checkpoints, set_aside=is_first_rank)
    if found is None:
        if files.results and is_first_rank:
            names = ", ".join(file.name for file in files.results)
            raise RunError(
                f"{files.directory} has no checkpoint to continue from, but it holds {names}, which a run "
                "from the beginning would overwrite; bring a checkpoint back, or start a new run elsewhere"
            )
        log_once(f"{files.directory} has no checkpoint yet: starting from the beginning")
        return None
    path, content, faults = found
    for fault in faults:
        log_once(f"{fault}; it is set aside, and the run continues from {path.name}")
    start = ResumePoint(path, content)
    epoch, batch = start.state.position
    if not start.is_complete(config):
        log_once(f"resuming {files.directory} from {path.name}: epoch {epoch + 1}, batch {batch + 1}")
    elif start.begun_epochs <= config.engine.epochs:
        # `check_length` refuses fewer epochs than have begun.
        stopped = start.state.is_stopped(config.engine.patience)
        longer = "" if stopped else "; a larger --epochs trains it longer"
        log_once(f"the run in {files.directory} is complete: {epoch} epochs, nothing to resume{longer}")
    return start


def check_length(start: ResumePoint, config: BaseConfig, files: RunFiles) -> None:
    """Print that a resumed run has another number of epochs than before.

    Raises:
        RunError: More epochs are done, or the run was ended by `engine.patience`.
    """
    stored, epochs = load_config(files.config, type(config)).engine.epochs, config.engine.epochs
    if epochs == stored:
        return
    if start.state.is_stopped(config.engine.patience):
        raise RunError(
            f"the run in {files.directory} was ended by engine.patience={config.engine.patience}, which more "
            f"epochs do not change; start a new run from its weights with --weights {files.directory}"
        )
    epoch, batch = start.state.position
    if epochs < start.begun_epochs:
        begun = f"{epoch} epochs and a part of the next" if batch else f"{epoch} epochs"
        raise RunError(
            f"the run in {files.directory} has done {begun} already, more than engine.epochs={epochs}"
        )
    log_once(
        f"{epochs} epochs instead of {stored}: the next steps have the learning rates of a run of {epochs} "
        "epochs"
    )


def weights_digest(weights: str | None, start: ResumePoint | None) -> str:
    """Return the SHA-256 of the file of initial weights of a run, in hexadecimal; "" without one.

    A resumed run has the stored one. Published weights of timm have none.

    Raises:
        WeightsError: The file does not exist.
    """
    if start is not None:
        return start.state.weights_digest
    if weights is None or weights == PRETRAINED:
        return ""
    with find_weights(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weights(start: ResumePoint, module: nn.Module, model: str) -> None:
    """Raise RunError if a checkpoint belongs to another network than the run's."""
    stored, own = start.content["state_dict"], module.state_dict()
    other = [
        name
        for name in sorted(stored.keys() | own.keys())
        if name not in stored or name not in own or stored[name].shape != own[name].shape
    ]
    if other:
        raise RunError(
            f"{start.path} is a checkpoint of another model than {model}: they differ in {len(other)} "
            f"tensors, such as {other[0]}; bring the run's own checkpoint back"
        )


def check_optimizer(start: ResumePoint, own: Optimizer) -> None:
    """Raise RunError if the optimiser state of a checkpoint does not belong to the run's optimiser.

    Args:
        start: The checkpoint.
        own: The run's optimiser before its first step.
    """

    def other_optimizer(reason: str) -> RunError:
        return RunError(
            f"{start.path} has the state of another optimiser than the run's: {reason}; bring the run's own "
            "checkpoint back"
        )

    [stored] = start.content["optimizer_states"]
    groups = stored["param_groups"], own.param_groups
    theirs, ours = ([len(group["params"]) for group in each] for each in groups)
    if theirs != ours:
        raise other_optimizer(f"its groups have {theirs} parameters, the run's {ours}")
    # The state is keyed by the entries of the stored groups; PyTorch maps these to parameters by order.
    parameters: dict[Any, tuple[int, Tensor]] = {}
    for number, (their_group, our_group) in enumerate(zip(*groups, strict=True)):
        for name, value in our_group.items():
            if value is not None and _kind(their_group.get(name)) is not _kind(value):
                raise other_optimizer(f"{name} of group {number} is missing or of another type")
        for name, parameter in zip(their_group["params"], our_group["params"], strict=True):
            parameters[name] = number, parameter
    # By (group, shape): names and types of the state tensors that a parameter has.
    forms: dict[Any, dict[str, type]] = {}
    for name, state in stored["state"].items():
        number, parameter = parameters[name]
        kinds = {part: _kind(value) for part, value in state.items()}
        if forms.setdefault((number, parameter.shape), kinds) != kinds:
            raise other_optimizer(
                f"the state of parameter {name} has other entries than that of others of its shape"
            )
        for part, value in state.items():
            if not _of_shape(value, parameter.shape):
                raise other_optimizer(
                    f"{part} of parameter {name} has the shape {tuple(value.shape)}, the parameter "
                    f"{tuple(parameter.shape)}"
                )


def _kind(value: Any) -> type:
    """Return the type of a value; float for all numbers."""
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _of_shape(value: Any, shape: Sequence[int]) -> bool:
    """Return whether a state fits a parameter's shape; some optimisers store sums over axes, of size 1."""
    if not isinstance(value, Tensor) or value.ndim != len(shape):
        return True
    return all(have in (1, need) for have, need in zip(value.shape, shape, strict=True))


def check_data(files: RunFiles, splits: Any, start: ResumePoint | None, wording: Wording) -> None:
    """Raise RunError if a resumed run would see other data, or another split, than before."""
    if files.classes.is_file():
        stored, classes = load_classes(files.classes), splits.classes
        if stored != classes:
            other = join_some(sorted(set(classes) ^ set(stored))) or "their order"
            raise RunError(
                f"the run in {files.directory} has {len(stored)} {wording.classes[1]}, the "
                f"{wording.samples} have {len(classes)}; they differ in {other}"
            )
    if start is None or start.state.fingerprint == splits.fingerprint:
        return
    samples, _, labels = start.state.fingerprint.partition("+")
    if labels != splits.fingerprint.partition("+")[2]:
        began = "other pseudo-labels" if labels else "no pseudo-labels"
        raise RunError(
            f"the run in {files.directory} began with {began}; go on with the same data.pseudo_labels, or "
            "start a new run"
        )
    if samples:
        raise RunError(
            f"{wording.changed} since the run in {files.directory} began, and may "
            "have changed sides between training and validation; bring them back, or start a new run"
        )
