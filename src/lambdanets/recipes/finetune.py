"""A few hundred photos of the user, from trained weights."""

from lambdanets.data import AugmentConfig, DataConfig
from lambdanets.recipes.registry import recipe
from lambdanets.train import EngineConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig


@recipe("finetune", needs_weights=True)
def finetune() -> RunConfig:
    """Fine-tuning of trained weights on a few hundred of your own photos, one folder per class.

    Follows: AdamW on all layers alike from the first epoch. The model and the form of the images come from
        the weights. The head alone in the first epochs (model.head_epochs=2) and lower learning rates of
        lower layers (optimizer.layer_decay=0.7) are options.
    Measured: on three classes of CIFAR-10 with the weights of the other seven after 14 epochs, 84.2 % from 20
        photos of each class and 90.0 % from 100, where training from scratch in as many steps (100 of 30)
        gives 66.5 and 71.7 %; with head epochs and layer decay 86.1 and 89.3 % (`benchmarks/finetune`).
    Needs: weights, of a run, a file, the Hugging Face hub, or timm (--weights pretrained with --model NAME);
        a few dozen photos per class.
    Command: lambdanets train finetune --weights runs/birds --data folder:/data/owls
        or, with timm's weights: --weights pretrained --model resnet50.a1_in1k
    """
    return RunConfig(
        recipe="finetune",
        model=ModelConfig(name="lambda_resnet_mini"),
        data=DataConfig(
            source="folder:photos",
            image_size=128,
            batch_size=32,
            augment=AugmentConfig(crop="random_resized", scale=(0.5, 1.0), flip=0.5, color_jitter=0.2),
        ),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0),
        loss=LossConfig(label_smoothing=0.1),
        engine=EngineConfig(epochs=20, precision="bf16-mixed", channels_last=True, clip_grad=1.0),
    )
