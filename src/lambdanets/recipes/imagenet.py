"""ImageNet as in the paper: 90 epochs for its ablations, 350 epochs for its LambdaResNets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, update_wrapper

from lambdanets.data import AugmentConfig, DataConfig
from lambdanets.recipes.registry import recipe
from lambdanets.train import EngineConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

SOURCE = "folder:imagenet"
GLOBAL_BATCH = 4096
CROP = 224 / 256  # evaluation keeps this part of the resized image
EMA = 0.9999


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of the paper's Tables 19 and 20.

    Attributes:
        depth: Layers of the LambdaResNet.
        size: Image size in training and evaluation, pixels.
        magnitude: Magnitude of RandAugment, which has two layers.
        dropout: Dropout rate before the classifier.
        stochastic_depth: Probability of dropping the last block's residual; earlier blocks have less.
        seconds: Published time of a training step of 1,024 images on eight TPUv3 cores.
        top1: Published accuracy in percent; None where the paper trained with pseudo-labels only.
        pseudo_top1: Published accuracy with pseudo-labels of 130 million further images.
        cpu_rate: Training images per second measured here (`benchmarks/models/race.csv`: two cores of an AMD
            EPYC, float32); None where that was not run.
    """

    depth: int
    size: int
    magnitude: int
    dropout: float
    stochastic_depth: float
    seconds: float
    top1: float | None
    pseudo_top1: float | None
    cpu_rate: float | None

    @property
    def name(self) -> str:
        return f"imagenet-350-{self.depth}@{self.size}"

    @property
    def tpu_rate(self) -> float:
        """Published training images per second of one TPUv3 core."""
        return 1024 / self.seconds / 8

    @property
    def expect(self) -> str:
        """The section Expect of the recipe: the published accuracy."""
        alone = "no result without pseudo-labels" if self.top1 is None else f"{self.top1} %"
        more = f", {self.pseudo_top1} % with pseudo-labels" if self.pseudo_top1 else ""
        return f"{alone}{more} (published, Table 19; not trained here)."

    @property
    def needs(self) -> str:
        """The section Needs of the recipe: devices, and the rate measured on a CPU."""
        rate = "was not measured here"
        if self.cpu_rate is not None:
            rate = f"is {self.cpu_rate} images per second on two cores of an AMD EPYC in float32"
        return (
            "GPUs, data.batch_size images on each, accumulated to 4,096; the training speed "
            f"{rate} (benchmarks/models)."
        )


# Table 20: magnitude, dropout, stochastic depth. Table 19: seconds, top-1, with pseudo-labels. Here: rate.
ROWS = tuple(
    PaperRow(
        depth=depth,
        size=size,
        magnitude=magnitude,
        dropout=dropout,
        stochastic_depth=stochastic_depth,
        seconds=seconds,
        top1=top1,
        pseudo_top1=pseudo_top1,
        cpu_rate=cpu_rate,
    )
    for depth, size, magnitude, dropout, stochastic_depth, seconds, top1, pseudo_top1, cpu_rate in (
        (50, 128, 10, 0.2, 0.0, 0.058, 77.4, 82.1, 16.2),
        (50, 160, 10, 0.2, 0.0, 0.089, 79.2, 83.4, 11.4),
        (101, 160, 10, 0.3, 0.0, 0.14, 80.8, 84.7, 6.55),
        (101, 192, 15, 0.2, 0.0, 0.2, 81.9, 85.4, 4.33),
        (152, 192, 15, 0.3, 0.0, 0.28, 82.5, 86.1, 2.77),
        (152, 224, 15, 0.3, 0.1, 0.38, 83.2, 86.5, 1.77),
        (152, 256, 15, 0.3, 0.1, 0.49, 83.8, None, 1.44),
        (152, 288, 15, 0.3, 0.1, 0.63, None, 86.7, None),
        (270, 256, 15, 0.3, 0.1, 0.91, 84.2, None, 0.673),
        (350, 256, 15, 0.3, 0.2, 1.16, 84.4, None, 0.587),
        (350, 288, 15, 0.3, 0.2, 1.48, 84.5, None, 0.526),
        (350, 320, 15, 0.3, 0.2, 1.91, 84.7, None, 0.414),
        (420, 320, 15, 0.3, 0.2, 2.25, 84.9, None, 0.339),
    )
)


@recipe("imagenet-90")
def imagenet_90() -> RunConfig:
    """A ResNet-50 of lambda layers on ImageNet, 90 epochs: the paper's ablations.

    Follows: Tables 3, 4 and 9 to 13 (appendix E.2): SGD with momentum 0.9, learning rate 0.1 for each 256
        images of a step, five epochs of warm-up and a cosine, weight decay 1e-4, label smoothing 0.1, average
        of the weights 0.9999, crops and flips alone. The other rows are other models: --model resnet50_conv,
        --set model.options.dim_k=8 and so on.
    Expect: 78.4 % (published, Table 3; not trained here).
    Needs: GPUs, data.batch_size images on each, accumulated to 4,096. No training speed is published; here
        two cores of an AMD EPYC train 3.12 images per second (`benchmarks/models/table4.csv`).
    Command: lambdanets train imagenet-90 --data folder:/data/imagenet --devices 8
    """
    return _config(
        "imagenet-90",
        ModelConfig(name="resnet50_lambda"),
        size=224,
        augment=AugmentConfig(crop="random_resized", flip=0.5),
        weight_decay=1e-4,
        epochs=90,
    )


def imagenet_350(row: PaperRow) -> RunConfig:
    """A LambdaResNet on ImageNet, 350 epochs, as in one row of Tables 19 and 20.

    Follows: appendix E.2 for weight decay 4e-5, RandAugment with two layers, dropout, stochastic depth and
        the size. The paper says that the rest is like ResNet-RS, whose published configurations give SGD with
        momentum 0.9, learning rate 0.1 for each 256 images of a step, five epochs of warm-up and a cosine,
        label smoothing 0.1 and an average of the weights, 0.9999.
    Expect: the row's accuracy (published; not trained here).
    Needs: GPUs, data.batch_size images on each, accumulated to 4,096. Hours on 8, 64 and 512 of them, an
        estimate: `lambdanets show` with the name of the recipe.
    Command: lambdanets train imagenet-350-152@224 --data folder:/data/imagenet --devices 8
    """
    return _config(
        row.name,
        ModelConfig(
            name=f"lambda_resnet{row.depth}",
            options={"drop_rate": row.dropout, "drop_path_rate": row.stochastic_depth},
        ),
        size=row.size,
        augment=AugmentConfig(
            crop="random_resized", flip=0.5, rand_augment=f"rand-m{row.magnitude}-n2-mmax{row.magnitude}"
        ),
        weight_decay=4e-5,
        epochs=350,
    )


for _row in ROWS:
    recipe(
        _row.name,
        sections={
            "Expect": _row.expect,
            "Needs": _row.needs,
            "Command": f"lambdanets train {_row.name} --data folder:/data/imagenet --devices 8",
        },
        device_rate=_row.tpu_rate,
        rate_source=f"a TPUv3 core's, published: {_row.seconds} s for 1,024 images on eight (Table 19)",
    )(update_wrapper(partial(imagenet_350, _row), imagenet_350))


def _config(
    name: str, model: ModelConfig, *, size: int, augment: AugmentConfig, weight_decay: float, epochs: int
) -> RunConfig:
    return RunConfig(
        recipe=name,
        model=model,
        data=DataConfig(
            source=SOURCE,
            image_size=size,
            batch_size=64,
            workers=8,
            crop_pct=CROP,
            check=False,
            cache=False,
            augment=augment,
        ),
        optimizer=OptimizerConfig(
            name="momentum", lr=0.1, lr_batch=256, momentum=0.9, weight_decay=weight_decay
        ),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=5),
        loss=LossConfig(label_smoothing=0.1),
        engine=EngineConfig(
            epochs=epochs, precision="bf16-mixed", channels_last=True, global_batch=GLOBAL_BATCH, ema=EMA
        ),
    )
