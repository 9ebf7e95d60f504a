"""A few hundred photos of the user, from trained weights."""

from lambdanets.data import AugmentConfig, DataConfig
from lambdanets.recipes.registry import recipe
from lambdanets.train import EngineConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig


@recipe("finetune", needs_weights=True)
def finetune() -> RunConfig:
    """Fine-tuning of trained weights on a few hundred of your own photos, one folder per class.

    Follows: the usual recipe: the head alone in the first two epochs, then all layers with AdamW, and
        learning rates that fall by a factor of 0.7 from each layer to the one below. The model and the form
        of the images come from the weights.
    Measured: on three classes of CIFAR-10 with the weights of the other seven, 79.8 % from 20 photos of each
        class and 82.9 % from 100, where training from scratch in as many steps (100 of 30) gives 66.5 and
        71.7 %; without head epochs and layer decay it was 80.4 and 85.5 % (`benchmarks/finetune`, 3 seeds).
    Needs: weights, of a run, a file, the Hugging Face hub, or timm (--weights pretrained with --model NAME);
        a few dozen photos per class.
    Command: lambdanets train finetune --weights runs/birds --data folder:/data/owls
        or, with timm's weights: --weights pretrained --model resnet50.a1_in1k
    """
    return RunConfig(
        recipe="finetune",
        model=ModelConfig(name="lambda_resnet_mini", head_epochs=2),
        data=DataConfig(
            source="folder:photos",
            image_size=128,
            batch_size=32,
            augment=AugmentConfig(crop="random_resized", scale=(0.5, 1.0), flip=0.5, color_jitter=0.2),
        ),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0),
        loss=LossConfig(label_smoothing=0.1),
        engine=EngineConfig(epochs=20, precision="bf16-mixed", channels_last=True, clip_grad=1.0),
    )
