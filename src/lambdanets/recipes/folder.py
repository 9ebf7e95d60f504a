"""A folder of the user's photos."""

from lambdanets.data import AugmentConfig, DataConfig
from lambdanets.recipes.registry import recipe
from lambdanets.train import EngineConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig


@recipe("folder")
def folder() -> RunConfig:
    """A LambdaResNet of moderate size on your own photos, one folder per class.

    Follows: the paper's augmentation in small (random resized crops, flips, RandAugment) with AdamW, which
        is less sensitive to an untuned learning rate.
    Measured: 65.0 % after 12 epochs at 96 pixels on 3,000 photos of 10 classes (a part of Imagenette), in 13
        minutes of one core that was busy with other work; `benchmarks/photos` has the rows. Not tuned.
    Needs: a few hundred photos per class; a CPU will do for a few thousand photos, a GPU for more.
    Command: lambdanets train folder --data folder:/data/birds
        The folder holds train/ and val/ with one folder per class, or the folders of the classes themselves,
        of which a tenth is then held out.
    """
    return RunConfig(
        recipe="folder",
        model=ModelConfig(name="lambda_resnet_mini", options={"drop_path_rate": 0.05}),
        data=DataConfig(
            source="folder:photos",
            image_size=128,
            batch_size=64,
            crop_pct=0.9,
            augment=AugmentConfig(
                crop="random_resized", scale=(0.25, 1.0), flip=0.5, rand_augment="rand-m7-n2-mstd0.5"
            ),
        ),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=3),
        loss=LossConfig(label_smoothing=0.1),
        engine=EngineConfig(epochs=30, precision="bf16-mixed", channels_last=True, clip_grad=1.0),
    )
