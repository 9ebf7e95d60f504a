"""What a run costs on many devices, by a stated model: an estimate, never a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from lambdanets.train import RunConfig

IMAGENET = (1_281_167, 50_000)  # training and validation images
LINK = 10e9  # bytes per second of one device to the others; a network adapter of 100 Gbit/s has 12.5e9


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The estimate for a number of devices.

    Attributes:
        devices: that train together.
        batch_size: largest `data.batch_size`, at most the recipe's, that lets them share a step evenly; None
            where no size does.
        hours: from the first step to the last validation.
        communication: part of that in which gradients are exchanged.
    """

    devices: int
    batch_size: int | None
    hours: float
    communication: float

    @property
    def device_hours(self) -> float:
        """Hours of one device that are paid for."""
        return self.hours * self.devices


def estimate(
    config: RunConfig,
    *,
    parameters: int,
    images_per_second: float,
    devices: int,
    images: tuple[int, int] = IMAGENET,
    link: float = LINK,
) -> Cost:
    """What a run costs, if every device keeps its pace.

    With N devices of r training images per second, steps of S images, P parameters and a link of W bytes/s, a
    step takes `S / (N r) + 2 (N - 1) / N * 4 P / W` seconds: the images, then a ring all-reduce of gradients
    in float32 that nothing hides. An epoch has `ceil(D / S)` steps and `V / (3 N r)` seconds of validation,
    as a forward pass takes a third of a training step; twice that where an average is validated, too.
    Left out: reading the images, start-up, checkpoints, and that small batches are slower.

    Args:
        config: the run; its `engine.global_batch` is S, else `data.batch_size` on each device.
        parameters: P.
        images_per_second: r, of one device, in training.
        devices: N.
        images: training and validation images, D and V.
        link: W.

    Raises:
        ValueError: a rate, a link or a number of devices that is not above 0.
    """
    for name, value in (("images_per_second", images_per_second), ("devices", devices), ("link", link)):
        if value <= 0:
            raise ValueError(f"{name} is above 0; got {value}")
    engine = config.engine
    step = engine.global_batch or config.data.batch_size * engine.accumulate * devices
    sizes = [size for size in range(1, config.data.batch_size + 1) if step % (size * devices) == 0]
    train, val = images
    steps = engine.epochs * -(-train // step)
    pace = devices * images_per_second
    exchanging = steps * 2 * (devices - 1) / devices * 4 * parameters / link
    validating = engine.epochs * val * (1 if engine.ema is None else 2) / (3 * pace)
    seconds = steps * step / pace + validating + exchanging
    return Cost(
        devices=devices,
        batch_size=max(sizes, default=None),
        hours=seconds / 3600,
        communication=exchanging / seconds,
    )
