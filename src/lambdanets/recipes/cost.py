"""Estimate of the time that a training run takes on many devices, by a simple model."""

from __future__ import annotations

from dataclasses import dataclass

from lambdanets.train import RunConfig

IMAGENET = (1_281_167, 50_000)  # training and validation images
LINK = 10e9  # bytes per second between one device and the others; a 100 Gbit/s network adapter has 12.5e9


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """The estimated cost of a run on a number of devices.

    Attributes:
        devices: Number of devices.
        batch_size: Largest `data.batch_size`, at most the recipe's, with which the images of a step divide
            evenly among the devices; None if there is none.
        hours: Time from the first step to the last validation.
        communication: Fraction of that time in which gradients are exchanged, from 0 to 1.
    """

    devices: int
    batch_size: int | None
    hours: float
    communication: float

    @property
    def device_hours(self) -> float:
        """Hours times devices."""
        return self.hours * self.devices


def estimate_cost(
    config: RunConfig,
    *,
    parameters: int,
    images_per_second: float,
    devices: int,
    images: tuple[int, int] = IMAGENET,
    link: float = LINK,
) -> TrainingCost:
    """Estimate the cost of a run whose devices train at a constant rate.

    With N devices of r training images per second, steps of S images, P parameters and a link of W bytes/s, a
    step takes `S / (N r) + 2 (N - 1) / N * 4 P / W` seconds: the images, then a ring all-reduce of gradients
    in float32 that nothing hides. An epoch has `ceil(D / S)` steps and `V / (3 N r)` seconds of validation,
    as a forward pass takes a third of a training step; twice that where an average of the weights is
    validated too. The estimate omits reading images, start-up, checkpoints, and the lower rate of small
    batches.

    Args:
        config: The run; its `engine.global_batch` is S, or else `data.batch_size` on each device.
        parameters: Number of parameters, P.
        images_per_second: Training images per second of one device, r.
        devices: Number of devices, N.
        images: Numbers of training and validation images, D and V.
        link: Bandwidth of a device's link to the others in bytes per second, W.

    Raises:
        ValueError: A rate, a link or a number of devices is not above 0.
    """
    for name, value in (("images_per_second", images_per_second), ("devices", devices), ("link", link)):
        if value <= 0:
            raise ValueError(f"{name} is above 0; got {value}")
    engine = config.engine
    step = engine.global_batch or config.data.batch_size * engine.accumulate * devices
    sizes = [size for size in range(1, config.data.batch_size + 1) if step % (size * devices) == 0]
    train, val = images
    steps = engine.epochs * -(-train // step)
    rate = devices * images_per_second
    exchanging = steps * 2 * (devices - 1) / devices * 4 * parameters / link
    validating = engine.epochs * val * (1 if engine.ema is None else 2) / (3 * rate)
    seconds = steps * step / rate + validating + exchanging
    return TrainingCost(
        devices=devices,
        batch_size=max(sizes, default=None),
        hours=seconds / 3600,
        communication=exchanging / seconds,
    )
