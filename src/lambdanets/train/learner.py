"""The Lightning module that all tasks share: training step, seeds, checks for NaN, weight averaging."""

import copy
import hashlib
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from timm.models import model_parameters
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from lambdanets.train.average import Pairs, pair_ema_tensors, update_ema
from lambdanets.train.checkpoint import RunState
from lambdanets.train.errors import NonFiniteLossError
from lambdanets.train.launch import check_same_on_all_ranks
from lambdanets.train.nonfinite import BadStep, locate_nonfinite
from lambdanets.train.optim import create_optimizer, lr_factor
from lambdanets.train.run import AVERAGE, NETWORK, RunFiles

CHECK_EVERY = 50  # batches between two checks of the loss where reading it stalls an accelerator
RECENT = 100  # losses that a report on a bad step lists


class Learner(pl.LightningModule):
    """Base of the Lightning modules that train a network; a subclass adds the loss, the metrics and the data.

    The random generators of PyTorch are seeded before every batch from (seed, batch, rank). Dropout and drop
    path are then a function of the step, and a run that is continued from a checkpoint equals one without
    interruption.

    Args:
        network: The network to train.
        config: The configuration of the run.
        classes: Class names, in the order of the network's outputs.
        state: Progress of the run, shared with the callbacks.

    Attributes:
        train_metrics: Names of the metrics of a training step, which are means over `unit`; the first is
            "loss".
        columns: Columns of `metrics.csv` that the task adds to those of every run.
        monitor: Column by which the best epoch is chosen; the larger, the better.
        average: Exponential moving average of the network, or None.
    """

    train_metrics: tuple[str, ...] = ("loss",)
    columns: tuple[str, ...] = ()
    monitor = ""

    def __init__(self, network: nn.Module, config: Any, *, classes: Sequence[str], state: RunState) -> None:
        super().__init__()
        self.network = network
        self.config: Any = config
        self.classes = tuple(classes)
        self.state = state
        self.last_checkpoint: Path | None = None
        self.files: RunFiles | None = None
        # Sums of `train_metrics` and the number of elements, of this epoch on this device: [metrics + 1].
        self.sums: Tensor | None = None
        # (step, loss) of the batches whose loss was not yet read from the device.
        self.unchecked_losses: list[tuple[int, Tensor]] = []
        self.recent_losses: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self.batch: tuple[int, Any] | None = None  # number and content of the newest batch
        # Step of the report of an earlier, failed session: up to it every loss is checked. -1 without one.
        self.suspected_step = -1
        self.accumulate = config.engine.accumulate  # batches per optimiser step
        # (module, momentum, count) of the batch norms, while a backward pass recomputes activations.
        self.paused_batch_norms: list[tuple[_BatchNorm, float | None, Tensor | None]] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.current_lr = 0.0
        self.waiting_since = time.perf_counter()  # when the wait for the next batch began
        self.average: nn.Module | None = None
        self.pairs: list[Pairs] | None = None  # see `pair_ema_tensors`; paired once per epoch
        if config.engine.ema is not None:
            self.average = copy.deepcopy(network).requires_grad_(False)
        self.val_metrics: dict[str, float] = {}  # columns of the newest validation

    @property
    def eval_network(self) -> nn.Module:
        """The network that is evaluated and stored as the best: the average where the run keeps one."""
        return self.network if self.average is None else self.average

    def eval_weights(self) -> dict[str, Tensor]:
        """Return the weights of `eval_network` by name, on rank 0; all ranks must call it."""
        prefix = NETWORK if self.average is None else AVERAGE
        states = self.trainer.strategy.lightning_module_state_dict()
        return {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}

    @property
    def unit(self) -> str:
        """Plural of the elements in which the speed is measured, such as "images"."""
        return self.config.WORDING.unit

    # Implemented by the tasks

    def train_loader(self, splits: Any, *, rank: int, world_size: int) -> DataLoader:
        """Return this rank's loader of training batches, starting at the current position of the run."""
        raise NotImplementedError

    def val_loader(self, splits: Any, *, rank: int, world_size: int) -> DataLoader:
        """Return this rank's loader of its shard of the validation data."""
        raise NotImplementedError

    def prepare_batch(self, batch: Any) -> Any:
        """Return a training batch as `step` takes it, such as mixed images: a function of the position."""
        return batch

    def step(self, batch: Any) -> tuple[Tensor, list[Tensor], int]:
        """Run a training batch through the network.

        Returns:
            The loss, a scalar to differentiate; the sums of `train_metrics` over the images, or whatever
            else `unit` names, a scalar tensor each; and the number of these.
        """
        raise NotImplementedError

    def batch_items(self, batch: Any) -> int:
        """Return the number of images in a training batch, or whatever else `unit` names."""
        return len(batch[1])

    def network_inputs(self, batch: Any) -> tuple[Any, ...]:
        """Return the arguments of the network's forward pass for a training batch."""
        raise NotImplementedError

    def named_tensors(self, batch: Any) -> dict[str, Tensor]:
        """Return the tensors of a batch by name, to write them to a file."""
        raise NotImplementedError

    def ranking_key(self, row: Mapping[str, float]) -> tuple[float, ...]:
        """Return the key that ranks epochs: the largest is the best, and of equal ones the earliest."""
        return (row[self.monitor],)

    def on_new_best(self) -> None:
        """React to a validated epoch that is the best so far."""

    def format_training(self, means: Mapping[str, float]) -> str:
        """Format the running `train_metrics` for the progress bar."""
        raise NotImplementedError

    def format_epoch(self, row: Mapping[str, float]) -> str:
        """Format a row of `metrics.csv`, perhaps without validation, for a line of 80 columns."""
        raise NotImplementedError

    def format_best(self) -> str:
        """Format the validation of the best epoch for the summary."""
        return self.format_validation(self.state.best)

    def format_validation(self, row: Mapping[str, float]) -> str:
        """Format the validation of a row of `metrics.csv` for the summary."""
        raise NotImplementedError

    def format_data(self, splits: Any) -> str:
        """Format the sizes of both splits for the summary."""
        raise NotImplementedError

    def format_classes(self) -> str:
        """Format the number of classes."""
        number = len(self.classes)
        return f"{number:,} {self.config.WORDING.classes[number > 1]}"

    def format_class_sizes(self, splits: Any) -> str:
        """Format the sizes of the training classes, to follow the number of classes."""
        return ""

    def data_advice(self) -> list[str]:
        """Return suggestions against slow data loading besides more workers, in the order to try them."""
        raise NotImplementedError

    def weights_metadata(self) -> dict[str, str]:
        """Return the metadata of `weights.safetensors`, which make it usable without the run folder."""
        return self.config.weights_metadata(self.classes)

    def draw_curves(self, path: Path, title: str = "") -> None:
        """Draw the curves of all epochs so far."""
        raise NotImplementedError

    def draw_best(self, files: RunFiles) -> None:
        """Draw figures of the best epoch, at the end of a run."""

    # Training

    def on_fit_start(self) -> None:
        check_same_on_all_ranks(self.config, self.state.fingerprint, self.state.weights_digest)
        self.suspected_step = self.trainer.strategy.broadcast(self.suspected_step)

    def on_train_start(self) -> None:
        if self.sums is None:
            # The stored sums of an unfinished epoch are those of all devices: rank 0 continues them.
            start = [self.state.sums.get(name, 0.0) for name in (*self.train_metrics, "images")]
            start = start if self.global_rank == 0 else [0.0] * len(start)
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            self.sums = torch.tensor(start, dtype=dtype, device=self.device)
        self._plan_validation()
        self.waiting_since = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self._plan_validation()
        self.pairs = None
        self.val_metrics = {}
        self.waiting_since = time.perf_counter()

    def _plan_validation(self) -> None:
        """Set when Lightning validates: every `engine.validate_every` epochs, and after the last one."""
        engine = self.config.engine
        last = self.trainer.current_epoch + 1 >= engine.epochs
        self.trainer.check_val_every_n_epoch = 1 if last else engine.validate_every

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning calls this after the callbacks: the time of a checkpoint does not count as waiting.
        self.waiting_since = time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self.prepare_batch(batch)
        self.batch = self.state.batches_done, batch
        seed_generators(step_seed(self.config.seed, self.state.batches_done, self.global_rank), self.device)
        self.current_lr = self.learning_rate()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.current_lr * group.get("lr_scale", 1.0)
        loss, sums, items = self.step(batch)
        self._record_loss(loss.detach())
        self._add_sums(sums, items)
        self.state.batches_done += 1
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        # The forward pass is recomputed: it must not update the running statistics a second time.
        if self.config.engine.checkpointing:
            norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
            self.paused_batch_norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
            for norm in norms:
                norm.momentum, norm.num_batches_tracked = 0.0, None

    def on_after_backward(self) -> None:
        for norm, momentum, count in self.paused_batch_norms:
            norm.momentum, norm.num_batches_tracked = momentum, count
        self.paused_batch_norms = []

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        done = self.global_step
        super().optimizer_step(*args, **options)
        if self.average is not None:
            decay = min(self.config.engine.ema or 0.0, (1 + done) / (10 + done))
            if self.pairs is None:
                self.pairs = pair_ema_tensors(self.average, self.network)
            update_ema(self.pairs, decay)

    def learning_rate(self) -> float:
        """Return the learning rate of the current step: the peak times the factor of the schedule."""
        steps = self.steps_per_epoch
        total = steps * self.config.engine.epochs
        factor = lr_factor(self.global_step, self.config.schedule, total_steps=total, steps_per_epoch=steps)
        optimizer = self.config.optimizer
        return optimizer.lr * factor * self.step_samples / (optimizer.lr_batch or self.step_samples)

    @property
    def step_samples(self) -> int:
        """Samples of an optimiser step, over all devices."""
        return self.config.data.batch_size * self.trainer.world_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last one may accumulate fewer batches."""
        return -(-self.state.batches_per_epoch // self.accumulate)

    def early_stop(self) -> str:
        """Return why the run ends before its last epoch, as a clause; "" if it does not."""
        state, engine = self.state, self.config.engine
        done = state.position[0]
        if done >= engine.epochs or not state.is_stopped(engine.patience):
            return ""
        validations = "validation" if engine.patience == 1 else f"{engine.patience} validations"
        return f"stopped after epoch {done}: {validations} without a better one"

    def _add_sums(self, sums: list[Tensor], items: int) -> None:
        if self.sums is None:
            raise RuntimeError("training_step runs inside Trainer.fit")
        self.sums[:-1] += torch.stack([value.detach().to(self.sums) for value in sums])
        self.sums[-1] += items

    def _record_loss(self, loss: Tensor) -> None:
        self.unchecked_losses.append((self.global_step, loss))
        # Reading a loss stalls an accelerator.
        every_step = self.device.type == "cpu" or self.global_step <= self.suspected_step
        if every_step or len(self.unchecked_losses) >= CHECK_EVERY:
            self.check_finite()

    def check_finite(self, *, weights: bool = False) -> None:
        """Raise NonFiniteLossError on all ranks if any loss since the last check is NaN or infinite.

        Args:
            weights: Check the weights as well, as before they are saved: the optimiser step that follows a
                finite loss can still make them NaN.
        """
        bad = self._first_bad_loss()
        what = "" if bad is None else f"the training loss became {bad[1]}"
        if weights and not what:
            # With FSDP each rank checks its shard of the weights.
            tensors = [*self.network.parameters(), *self.network.buffers()]
            finite = [t.detach().isfinite().all() for t in tensors if t.is_floating_point()]
            if not torch.stack(finite).all():
                what = "the weights became NaN or infinite"
        first = self._first_rank(bool(what))
        if first is None:
            return
        details: dict[str, Any] = {}
        if first == self.global_rank:
            # Weights are checked after the optimiser step, losses before it.
            step = bad[0] if bad else self.recent_losses[-1][0] if self.recent_losses else self.global_step
            epoch = step // self.steps_per_epoch + 1
            details = {"what": what, "step": step, "epoch": epoch, "learning_rate": self.current_lr}
            details["report"] = self._write_report(details, is_loss=bad is not None)
        details = self.trainer.strategy.broadcast(details, src=first)
        raise NonFiniteLossError(**details, checkpoint=self.last_checkpoint)

    def _first_bad_loss(self) -> tuple[int, float] | None:
        """Read the losses since the last check; return (step, loss) of the first that is not finite."""
        if not self.unchecked_losses:
            return None
        steps, tensors = zip(*self.unchecked_losses, strict=True)
        self.unchecked_losses.clear()
        values = [tensors[0].item()] if len(tensors) == 1 else torch.stack(tensors).tolist()
        losses = list(zip(steps, values, strict=True))
        self.recent_losses.extend(losses)
        return next((each for each in losses if not math.isfinite(each[1])), None)

    def _first_rank(self, flag: bool) -> int | None:
        """Return the lowest rank with a true flag, or None."""
        world = self.trainer.world_size
        if world == 1:
            return 0 if flag else None
        rank = torch.tensor(float(self.global_rank if flag else world), device=self.device)
        first = int(self.trainer.strategy.reduce(rank, reduce_op="min"))
        return first if first < world else None

    def _write_report(self, details: dict[str, Any], *, is_loss: bool) -> str:
        """Write the report on a bad step; return the part of the error message that names its folder."""
        if self.files is None:
            return ""
        number, batch = self.batch or (self.state.batches_done, None)
        collective = stale = ""
        if not is_loss:
            stale = "the loss was finite: the optimiser step of this batch made the weights NaN or infinite"
        elif self.recent_losses[-1][0] != details["step"] or number != self.state.batches_done:
            stale = (
                "this batch is later than that of the bad loss, because the loss is not read at every step "
                "on this device. Resume the run: it reads the loss at every step up to this one, and stores "
                "that batch"
            )
        if self.trainer.world_size > 1:
            if any(isinstance(module, nn.SyncBatchNorm) for module in self.network.modules()):
                collective = "with engine.sync_batchnorm one process cannot run the network alone"
            if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy):
                collective = "with FSDP one process has only a shard of the weights"
        where = {"process": self.global_rank, "batch": number, "precision": self.config.engine.precision}
        bad_step = BadStep(
            details=details | where,
            losses=list(self.recent_losses),
            seed=step_seed(self.config.seed, number, self.global_rank),
            tensors=None if batch is None else self.named_tensors(batch),
            inputs=() if batch is None else self.network_inputs(batch),
            stale=stale,
            collective=collective,
            context=self.trainer.precision_plugin.forward_context(),
        )
        try:
            locate_nonfinite(self.network, bad_step, self.files.nonfinite)
        except Exception as error:
            # The run stops because of the loss: an error of the report must not hide it.
            return f"the report on this step could not be written ({(str(error).splitlines() or [''])[0]})"
        return f"the report on this step is in {self.files.nonfinite}"

    def running_means(self) -> dict[str, float]:
        """Return the means of `train_metrics` over the epoch so far, on this device."""
        values = [0.0] * (len(self.train_metrics) + 1) if self.sums is None else self.sums.tolist()
        return {
            name: value / max(values[-1], 1) for name, value in zip(self.train_metrics, values, strict=False)
        }

    def gather_sums(self) -> None:
        """Store the sums over all devices in the state of the run; all ranks must call it."""
        if self.sums is not None:
            total = self.trainer.strategy.reduce(self.sums.clone(), reduce_op="sum")
            self.state.sums = dict(zip((*self.train_metrics, "images"), total.tolist(), strict=True))

    def start_epoch(self) -> None:
        """Reset the running sums and times of the state, and the sums on this device."""
        self.state.start_epoch()
        if self.sums is not None:
            self.sums.zero_()

    # Hooks of Lightning

    def configure_model(self) -> None:
        # Before FSDP flattens the parameters: weight decay depends on their number of axes.
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
        if gradient_clip_val is not None and self.config.engine.clip_mode == "agc":
            adaptive_clip_grad(model_parameters(self.network, exclude_head=True), gradient_clip_val)
        elif gradient_clip_val is not None and isinstance(strategy, FSDPStrategy):
            # The norm is that of the whole gradient, of which each rank has a shard.
            strategy.model.clip_grad_norm_(gradient_clip_val)  # pyright: ignore
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.gather_sums()
        checkpoint["run_state"] = self.state.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state.__dict__.update(RunState.from_dict(checkpoint["run_state"]).__dict__)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed PyTorch's generators of the CPU and of one device.

    `torch.manual_seed` seeds every kind of device, and stores a stack trace for each kind that is not
    initialised: milliseconds in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def step_seed(seed: int, batch: int, rank: int) -> int:
    """Return a 63-bit seed for a batch, counted from the start of the run, on a rank."""
    digest = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
