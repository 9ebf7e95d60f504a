"""CIFAR-10, or any 32x32 images, on a CPU."""

from lambdanets.data import AugmentConfig, DataConfig
from lambdanets.recipes.registry import recipe
from lambdanets.train import EngineConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig


@recipe("cifar")
def cifar() -> RunConfig:
    """A small LambdaResNet on 32x32 images.

    Follows: the usual recipe of residual networks on CIFAR (pad and crop, flip, SGD with Nesterov momentum),
        with the paper's warm-up, cosine and label smoothing; no table of the paper is on CIFAR.
    Measured: 87.8 % on CIFAR-10 re-encoded as JPEG (89.1 % with --model resnet_cifar_conv), in 84 minutes of
        one core (AMD EPYC, 359 images per second); `benchmarks/cifar10` has the rows.
    Needs: a CPU with bfloat16 arithmetic (or any GPU); on another CPU add --set engine.precision=32.
    Command: lambdanets train cifar --data folder:/data/cifar10
        or, with access to the internet: lambdanets train cifar
    """
    return RunConfig(
        recipe="cifar",
        model=ModelConfig(name="lambda_resnet_cifar"),
        data=DataConfig(
            source="torch/cifar10",
            image_size=32,
            batch_size=128,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            augment=AugmentConfig(crop="pad", pad=4, flip=0.5),
        ),
        optimizer=OptimizerConfig(name="sgd", lr=0.2, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=2),
        loss=LossConfig(label_smoothing=0.1),
        engine=EngineConfig(epochs=36, precision="bf16-mixed", channels_last=True),
    )
