"""What all Lightning modules of a run share: the step, its randomness, and the average of the weights."""

import copy
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

import lambdanets
from lambdanets.train.config import BaseConfig
from lambdanets.train.errors import NonFiniteLossError, RunError, everywhere
from lambdanets.train.layout import RunFiles
from lambdanets.train.optim import create_optimizer
from lambdanets.train.postmortem import Moment, dissect
from lambdanets.train.run import AVERAGE, NETWORK
from lambdanets.train.schedule import lr_factor
from lambdanets.train.state import RunState
from lambdanets.train.typed import encode, to_json
from lambdanets.utils.text import first_line, json_text

CHECK_EVERY = 50  # batches between looks at the loss where a look stops the accelerator
RECENT = 100  # losses that are kept to be looked at when one is bad


class Learner(pl.LightningModule):
    """Trains a network; what it learns, and how well, a subclass says.

    The generators of torch are seeded anew for every batch from (seed, batch, rank): dropout and drop path
    are a function of the step, so that a run continued from a checkpoint equals one that never stopped.

    Args:
        network: what is trained.
        config: the run.
        classes: names, in the order of the network's answers.
        state: progress of the run, shared with the callbacks.
    """

    measured: tuple[str, ...] = ("loss",)  # of every training step, means over images
    columns: tuple[str, ...] = ()  # of `metrics.csv`, beside those of every run
    crown = ""  # the column by which the best epoch is chosen

    def __init__(self, network: nn.Module, config: Any, *, classes: Sequence[str], state: RunState) -> None:
        super().__init__()
        self.network = network
        self.config: Any = config
        self.classes = tuple(classes)
        self.state = state
        self.last_checkpoint: Path | None = None
        self.files: RunFiles | None = None  # of the run, where it has a folder
        self.sums: Tensor | None = None  # of what is measured, and images, in this epoch on this device
        self.unseen: list[tuple[int, Tensor]] = []  # step and loss of every batch since the last look
        self.losses: deque[tuple[int, float]] = deque(maxlen=RECENT)  # those looked at
        self.batch: tuple[int, Any] | None = None  # the newest, and its number
        self.suspected_step = -1  # up to it every loss is looked at
        self.accumulate = config.engine.accumulate  # batches of an optimiser step
        self.held: list[tuple[_BatchNorm, float | None, Tensor | None]] = []  # norms during a backward pass
        self.optimizer: torch.optim.Optimizer | None = None
        self.rate = 0.0  # learning rate of the newest step
        self.free_since = time.perf_counter()  # when this process began to wait for the next batch
        self.average: nn.Module | None = None
        self.pairs: list[Pairs] | None = None  # of the average and what it follows, found once an epoch
        if config.engine.ema is not None:
            self.average = copy.deepcopy(network).requires_grad_(False)
        self.validation: dict[str, float] = {}  # what the newest validation measured, by column

    @property
    def kept(self) -> nn.Module:
        """The network whose accuracy counts: the average where there is one."""
        return self.network if self.average is None else self.average

    def kept_weights(self) -> dict[str, Tensor]:
        """All weights of the network that counts, on the first process; all have to ask for them."""
        part = NETWORK if self.average is None else AVERAGE
        states = self.trainer.strategy.lightning_module_state_dict()
        return {name.removeprefix(part): value for name, value in states.items() if name.startswith(part)}

    # What a subclass gives

    def train_loader(self, splits: Any, *, rank: int, world_size: int) -> DataLoader:
        """The loader of one process's training batches, from where the run stands."""
        raise NotImplementedError

    def val_loader(self, splits: Any, *, rank: int, world_size: int) -> DataLoader:
        """The loader of one process's part of the validation images."""
        raise NotImplementedError

    def step(self, batch: Any) -> tuple[Tensor, list[Tensor], int]:
        """The loss of a batch, sums over its images of what is `measured`, and their number."""
        raise NotImplementedError

    def inputs(self, batch: Any) -> tuple[Any, ...]:
        """What the network is called with in training."""
        raise NotImplementedError

    def tensors(self, batch: Any) -> dict[str, Tensor]:
        """A batch as named tensors, to be kept in a file."""
        raise NotImplementedError

    def merit(self, row: Mapping[str, float]) -> tuple[float, ...]:
        """How good an epoch was; of equal ones the earlier counts."""
        return (row[self.crown],)

    def on_best(self) -> None:
        """The epoch that was just validated is the best so far."""

    def say_train(self, means: Mapping[str, float]) -> str:
        """What training measures, for the line of progress."""
        raise NotImplementedError

    def say_epoch(self, row: Mapping[str, float]) -> str:
        """What an epoch measured, for a line that fits a terminal; validation may be missing."""
        raise NotImplementedError

    def say_val(self, row: Mapping[str, float]) -> str:
        """How well a validated epoch did, for the summary."""
        raise NotImplementedError

    def say_data(self, splits: Any) -> str:
        """How much there is to learn from, for the summary."""
        raise NotImplementedError

    def remedies(self) -> list[str]:
        """What to do about images that come too slowly, beside more workers, in the order of trying."""
        raise NotImplementedError

    def header(self) -> dict[str, str]:
        """What a person needs to use the weights without the run folder, in the words of `config.json`."""
        config = self.config
        return {
            "recipe": config.recipe,
            "model": config.model.name,
            "options": json.dumps(encode(config.model.options)),
            "image_size": str(config.data.image_size),
            "num_classes": str(len(self.classes)),
            "classes": json_text(self.classes),
        }

    def draw_curves(self, path: Path, title: str = "") -> None:
        """Draw the epochs so far."""
        raise NotImplementedError

    def draw_best(self, files: RunFiles) -> None:
        """Draw the pictures of the best epoch, at the end of a run."""

    # Training

    def on_fit_start(self) -> None:
        check_alike(self.config, self.state.fingerprint, self.state.weights_digest)
        self.suspected_step = self.trainer.strategy.broadcast(self.suspected_step)

    def on_train_start(self) -> None:
        if self.sums is None:
            # Sums of a continued epoch come over all devices; they go on on one of them.
            start = [self.state.sums.get(name, 0.0) for name in (*self.measured, "images")]
            start = start if self.global_rank == 0 else [0.0] * len(start)
            wide = torch.float32 if self.device.type == "mps" else torch.float64
            self.sums = torch.tensor(start, dtype=wide, device=self.device)
        self._plan_validation()
        self.free_since = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self._plan_validation()
        self.pairs = None
        self.validation = {}
        self.free_since = time.perf_counter()

    def _plan_validation(self) -> None:
        engine = self.config.engine
        last = self.trainer.current_epoch + 1 >= engine.epochs
        self.trainer.check_val_every_n_epoch = 1 if last else engine.validate_every

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning calls this after the callbacks: a checkpoint that one of them took is no waiting for data.
        self.free_since = time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batch = self.state.batches_done, batch
        seed_generators(step_seed(self.config.seed, self.state.batches_done, self.global_rank), self.device)
        self.rate = self.learning_rate()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate * group.get("lr_scale", 1.0)
        loss, sums, images = self.step(batch)
        self._watch(loss.detach())
        self._count(sums, images)
        self.state.batches_done += 1
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        # What the backward pass computes again must not move the running statistics a second time.
        if self.config.engine.checkpointing:
            norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
            self.held = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
            for norm in norms:
                norm.momentum, norm.num_batches_tracked = 0.0, None

    def on_after_backward(self) -> None:
        for norm, momentum, count in self.held:
            norm.momentum, norm.num_batches_tracked = momentum, count
        self.held = []

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        done = self.global_step
        super().optimizer_step(*args, **options)
        if self.average is not None:
            decay = min(self.config.engine.ema or 0.0, (1 + done) / (10 + done))
            if self.pairs is None:
                self.pairs = pair_up(self.average, self.network)
            follow(self.pairs, decay)

    def learning_rate(self) -> float:
        """The peak learning rate times the schedule's factor at the current optimiser step."""
        steps = self.steps_per_epoch
        total = steps * self.config.engine.epochs
        factor = lr_factor(self.global_step, self.config.schedule, total_steps=total, steps_per_epoch=steps)
        optimizer = self.config.optimizer
        return optimizer.lr * factor * self.step_images / (optimizer.lr_batch or self.step_images)

    @property
    def step_images(self) -> int:
        """Images of an optimiser step, over all devices."""
        return self.config.data.batch_size * self.trainer.world_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last one may be of fewer batches."""
        return -(-self.state.batches_per_epoch // self.accumulate)

    def _count(self, sums: list[Tensor], images: int) -> None:
        if self.sums is None:
            raise RuntimeError("training_step runs inside Trainer.fit")
        self.sums[:-1] += torch.stack([value.detach().to(self.sums) for value in sums])
        self.sums[-1] += images

    def _watch(self, loss: Tensor) -> None:
        self.unseen.append((self.global_step, loss))
        # Looking at a number makes an accelerator wait.
        each = self.device.type == "cpu" or self.global_step <= self.suspected_step
        if each or len(self.unseen) >= CHECK_EVERY:
            self.check_finite()

    def check_finite(self, *, weights: bool = False) -> None:
        """Raise NonFiniteLossError, on all devices together, when a loss so far was NaN or infinite.

        Args:
            weights: look at the weights too, as before they are saved: the step after a finite loss may have
                spoilt them.
        """
        bad = self._look()
        what = "" if bad is None else f"the training loss became {bad[1]}"
        if weights and not what:
            # Those of this process: with FSDP it has a part of them.
            tensors = [*self.network.parameters(), *self.network.buffers()]
            finite = [t.detach().isfinite().all() for t in tensors if t.is_floating_point()]
            if not torch.stack(finite).all():
                what = "the weights became NaN or infinite"
        first = self._first_device(bool(what))
        if first is None:
            return
        told: dict[str, Any] = {}
        if first == self.global_rank:
            # Weights are looked at after the optimiser's step, losses before it.
            step = bad[0] if bad else self.losses[-1][0] if self.losses else self.global_step
            epoch = step // self.steps_per_epoch + 1
            told = {"what": what, "step": step, "epoch": epoch, "learning_rate": self.rate}
            told["report"] = self._write_down(told, is_loss=bad is not None)
        told = self.trainer.strategy.broadcast(told, src=first)
        raise NonFiniteLossError(**told, checkpoint=self.last_checkpoint)

    def _look(self) -> tuple[int, float] | None:
        """Step and loss of the first bad batch since the last look."""
        if not self.unseen:
            return None
        steps, tensors = zip(*self.unseen, strict=True)
        self.unseen.clear()
        values = [tensors[0].item()] if len(tensors) == 1 else torch.stack(tensors).tolist()
        seen = list(zip(steps, values, strict=True))
        self.losses.extend(seen)
        return next((each for each in seen if not math.isfinite(each[1])), None)

    def _first_device(self, met: bool) -> int | None:
        """The first of the devices that say so, None when no one does."""
        world = self.trainer.world_size
        if world == 1:
            return 0 if met else None
        rank = torch.tensor(float(self.global_rank if met else world), device=self.device)
        first = int(self.trainer.strategy.reduce(rank, reduce_op="min"))
        return first if first < world else None

    def _write_down(self, facts: dict[str, Any], *, is_loss: bool) -> str:
        """Keep what is needed to study a bad step; returns what the person should know about it."""
        if self.files is None:
            return ""
        number, batch = self.batch or (self.state.batches_done, None)
        collective = stale = ""
        if not is_loss:
            stale = "the loss was finite: the step with this batch and these gradients spoilt the weights"
        elif self.losses[-1][0] != facts["step"] or number != self.state.batches_done:
            stale = (
                "the batch is a later one than that of the bad loss, as the loss is not looked at in every "
                "step here. Resume the run: up to this step it will be, and this folder then holds that batch"
            )
        if self.trainer.world_size > 1:
            if any(isinstance(module, nn.SyncBatchNorm) for module in self.network.modules()):
                collective = "with engine.sync_batchnorm one process cannot run the network alone"
            if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy):
                collective = "with FSDP one process has a part of the weights"
        more = {"process": self.global_rank, "batch": number, "precision": self.config.engine.precision}
        moment = Moment(
            facts=facts | more,
            losses=list(self.losses),
            seed=step_seed(self.config.seed, number, self.global_rank),
            tensors=None if batch is None else self.tensors(batch),
            inputs=() if batch is None else self.inputs(batch),
            stale=stale,
            collective=collective,
            context=self.trainer.precision_plugin.forward_context(),
        )
        try:
            dissect(self.network, moment, self.files.nonfinite)
        except Exception as error:
            # Whatever goes wrong here, the reason to stop is the loss.
            return f"what led to it could not be written down ({first_line(error)})"
        return f"what led to it is in {self.files.nonfinite}"

    def running(self) -> dict[str, float]:
        """Means of what is measured over the epoch so far, on this device."""
        values = [0.0] * (len(self.measured) + 1) if self.sums is None else self.sums.tolist()
        return {name: value / max(values[-1], 1) for name, value in zip(self.measured, values, strict=False)}

    def gather_sums(self) -> None:
        """Bring the sums of all devices into the state."""
        if self.sums is not None:
            total = self.trainer.strategy.reduce(self.sums.clone(), reduce_op="sum")
            self.state.sums = dict(zip((*self.measured, "images"), total.tolist(), strict=True))

    def start_epoch(self) -> None:
        """Clear the running sums."""
        self.state.start_epoch()
        if self.sums is not None:
            self.sums.zero_()

    # What Lightning asks for

    def configure_model(self) -> None:
        # Before FSDP makes flat parts of the parameters: weight decay depends on their axes.
        if self.trainer.state.fn == "fit":
            self.optimizer = create_optimizer(self.network, self.config.optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        return self.optimizer

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        strategy = self.trainer.strategy
        if gradient_clip_val is not None and isinstance(strategy, FSDPStrategy):
            # Each process has a part of the gradient; its norm is that of all parts.
            strategy.model.clip_grad_norm_(gradient_clip_val)  # pyright: ignore
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.gather_sums()
        checkpoint["run_state"] = self.state.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state.__dict__.update(RunState.from_dict(checkpoint["run_state"]).__dict__)


Pairs = tuple[list[Tensor], list[Tensor]]


def pair_up(average: nn.Module, network: nn.Module) -> list[Pairs]:
    """The tensors of an average and those it follows: first all that are averaged, then all that are copied.

    They hold as long as neither module moves to another device or exchanges a tensor; loading is no exchange.
    """
    both = average.state_dict(keep_vars=True), network.state_dict(keep_vars=True)
    named = zip(*(states.values() for states in both), strict=True)
    # A table that layers share has a name for each of them, and moves once.
    pairs = list({id(mean): (mean, new) for mean, new in named}.values())
    kinds = ([p for p in pairs if p[0].is_floating_point() is floating] for floating in (True, False))
    return [([mean for mean, _ in kind], [new for _, new in kind]) for kind in kinds]


@torch.no_grad()
def follow(pairs: list[Pairs], decay: float) -> None:
    """Move an average of a network's weights and statistics: decay x average + (1 - decay) x new."""
    (means, news), (counts, new_counts) = pairs
    torch._foreach_lerp_(means, news, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    if counts:
        torch._foreach_copy_(counts, new_counts)  # pyright: ignore[reportPrivateImportUsage]


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators on the CPU and on one device.

    `torch.manual_seed` seeds every kind of device there may be, and remembers a stack trace for each that has
    not been used: milliseconds in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def check_alike(config: BaseConfig, fingerprint: str, weights_digest: str = "") -> None:
    """Make sure that all processes of a run train the same thing, from the same weights, on the same images.

    Raises:
        RunError: where one differs, on all of them.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    # Where images and weights lie may differ from machine to machine; which they are may not.
    data = config.data.placeless() if fingerprint else config.data
    model = replace(config.model, weights=None) if weights_digest else config.model
    mine = {
        "configuration": to_json(replace(config, data=data, model=model)),
        "images": fingerprint,
        "weights to start from": weights_digest,
        "versions": f"lambdanets {lambdanets.__version__}, torch {torch.__version__}",
    }
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    first = everyone[0]
    for rank, other in enumerate(everyone):
        differing = [name for name in first if other[name] != first[name]]
        if differing:
            with everywhere():
                raise RunError(
                    f"process {rank} of the run has other {' and '.join(differing)} than process 0"
                )


def step_seed(seed: int, batch: int, rank: int) -> int:
    """A 63-bit seed that is a function of the run's seed, the batch since its start, and the device."""
    digest = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
