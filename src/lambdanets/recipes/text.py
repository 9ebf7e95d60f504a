"""A language model of characters on a text of the user, on a CPU."""

from lambdanets.data import TextDataConfig
from lambdanets.recipes.registry import recipe
from lambdanets.text import LanguageModelConfig, TextConfig
from lambdanets.train import EngineConfig, OptimizerConfig, ScheduleConfig


@recipe("text")
def text() -> TextConfig:
    """A small language model of causal lambda layers on a text of a few megabytes, on a CPU.

    Follows: nanoGPT's setting for a laptop (config/train_shakespeare_char.py and its README): 4 blocks of 128
        channels, windows of 64 characters, 2,000 steps of 12 windows, AdamW. An epoch is 250 steps.
    Measured: on the 1.1 million characters of tiny Shakespeare a validation loss of 1.620 to 1.629 nats in
        three runs (2.34 bits per character), where nanoGPT's README reports 1.88 for softmax attention.
    Needs: 2.5 minutes of CPU time for the steps on one core, and the validations.
    Command: lambdanets train text --data text:book.txt
        A file, or a folder of .txt and .md files; with train/ and val/ it is split already. The counterpart
        is --model attention_lm_mini; a larger --epochs trains for longer.
    """
    return TextConfig(
        recipe="text",
        model=LanguageModelConfig(name="lambda_lm_mini"),
        data=TextDataConfig(source="text:book.txt", context=64, batch_size=12, windows=3000),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1, options={"betas": (0.9, 0.99)}),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.4, final=0.1),
        engine=EngineConfig(epochs=8, clip_grad=1.0),
    )
