"""Recordings in class folders, such as spoken words."""

from lambdanets.audio import AudioConfig
from lambdanets.data import AudioAugmentConfig, AudioDataConfig
from lambdanets.recipes.registry import recipe
from lambdanets.train import EngineConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig


@recipe("audio")
def audio() -> AudioConfig:
    """A small LambdaResNet on sequences, for a few thousand short recordings on a CPU.

    Follows: no table of the paper; the lambda layers for keywords of arXiv:2104.08086 (16 channels of keys, 4
        heads, scope 23) in bottlenecks, on log-mel features, with AdamW.
    Measured: on the Free Spoken Digit Dataset, 2,700 recordings of six speakers, all 300 held out after the
        last epoch (one run, seed 0), the ceiling of this split. Of a speaker who is not in the training set
        the network lambda_audio_small labels far fewer: 79 %, the mean of six speakers.
    Needs: a hundred recordings per class or more, and one CPU core for half a minute.
    Command: lambdanets train audio --data audio:/data/words
        The folder holds train/ and val/ with one folder per class, or the folders of the classes themselves,
        of which a tenth is then held out.
    """
    return AudioConfig(
        recipe="audio",
        model=ModelConfig(name="lambda_audio"),
        data=AudioDataConfig(source="audio:words", augment=AudioAugmentConfig(speed=0.15, shift=0.05)),
        optimizer=OptimizerConfig(name="adamw", lr=5e-3, weight_decay=0.05),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=2),
        loss=LossConfig(label_smoothing=0.1),
        engine=EngineConfig(epochs=15, clip_grad=1.0),
    )
