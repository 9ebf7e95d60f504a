"""ImageNet as in the paper: the 90 epochs of its ablations, and the 350 of its LambdaResNets."""

from __future__ import annotations

from dataclasses import dataclass

from lambdanets.data import AugmentConfig, DataConfig
from lambdanets.train import EngineConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

SOURCE = "folder:imagenet"
GLOBAL_BATCH = 4096
CROP = 224 / 256  # evaluation resizes to this much more than it keeps
EMA = 0.9999


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the paper's Tables 19 and 20.

    Attributes:
        depth: Layers of the LambdaResNet.
        size: Image size in training and evaluation, pixels.
        magnitude: Of RandAugment, with two layers.
        dropout: Before the classifier.
        stochastic_depth: Probability that the last block's residual is dropped; it rises with the depth.
        top1: Published accuracy in percent; None where the paper trained with pseudo-labels only.
    """

    depth: int
    size: int
    magnitude: int
    dropout: float
    stochastic_depth: float
    top1: float | None

    @property
    def name(self) -> str:
        return f"imagenet-350-{self.depth}@{self.size}"


ROWS = (
    Row(depth=50, size=128, magnitude=10, dropout=0.2, stochastic_depth=0.0, top1=77.4),
    Row(depth=50, size=160, magnitude=10, dropout=0.2, stochastic_depth=0.0, top1=79.2),
    Row(depth=101, size=160, magnitude=10, dropout=0.3, stochastic_depth=0.0, top1=80.8),
    Row(depth=101, size=192, magnitude=15, dropout=0.2, stochastic_depth=0.0, top1=81.9),
    Row(depth=152, size=192, magnitude=15, dropout=0.3, stochastic_depth=0.0, top1=82.5),
    Row(depth=152, size=224, magnitude=15, dropout=0.3, stochastic_depth=0.1, top1=83.2),
    Row(depth=152, size=256, magnitude=15, dropout=0.3, stochastic_depth=0.1, top1=83.8),
    Row(depth=152, size=288, magnitude=15, dropout=0.3, stochastic_depth=0.1, top1=None),
    Row(depth=270, size=256, magnitude=15, dropout=0.3, stochastic_depth=0.1, top1=84.2),
    Row(depth=350, size=256, magnitude=15, dropout=0.3, stochastic_depth=0.2, top1=84.4),
    Row(depth=350, size=288, magnitude=15, dropout=0.3, stochastic_depth=0.2, top1=84.5),
    Row(depth=350, size=320, magnitude=15, dropout=0.3, stochastic_depth=0.2, top1=84.7),
    Row(depth=420, size=320, magnitude=15, dropout=0.3, stochastic_depth=0.2, top1=84.9),
)


def imagenet_90() -> RunConfig:
    """A ResNet-50 of lambda layers on ImageNet, 90 epochs: the paper's ablations.

    Follows: Tables 3, 4 and 9 to 13 (appendix E.2): SGD with momentum 0.9, learning rate 0.1 for each 256
        images of a step, five epochs of warm-up and a cosine, weight decay 1e-4, label smoothing 0.1, average
        of the weights 0.9999, crops and flips alone. The other rows are other models: --model resnet50_conv,
        --set model.options.dim_k=8 and so on.
    Expect: 78.4 % (published, Table 3; not trained here).
    Needs: GPUs; data.batch_size images on each, accumulated to 4,096.
    Command: lambdanets train imagenet-90 --data folder:/data/imagenet
    """
    return _recipe(
        "imagenet-90",
        ModelConfig(name="resnet50_lambda"),
        size=224,
        augment=AugmentConfig(crop="random_resized", flip=0.5),
        weight_decay=1e-4,
        epochs=90,
    )


def imagenet_350(row: Row) -> RunConfig:
    """A LambdaResNet on ImageNet, 350 epochs, as in one row of Tables 19 and 20.

    Follows: appendix E.2 for weight decay 4e-5, RandAugment with two layers, dropout, stochastic depth and
        the size. The paper says that the rest is like ResNet-RS, whose published configurations give SGD with
        momentum 0.9, learning rate 0.1 for each 256 images of a step, five epochs of warm-up and a cosine,
        label smoothing 0.1 and an average of the weights, 0.9999.
    Expect: the row's accuracy (published; not trained here).
    Needs: GPUs; data.batch_size images on each, accumulated to 4,096.
    Command: lambdanets train imagenet-350-152@224 --data folder:/data/imagenet
    """
    return _recipe(
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


def _recipe(
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
