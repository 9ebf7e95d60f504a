"""`lambdanets generate`: continues a text with a language model, and prints each token as it is written."""

from pathlib import Path
from typing import Annotated, Literal

from tyro import conf

from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import shown
from lambdanets.cli.tasks import run_verb


def run(
    run: Annotated[Path, conf.Positional, shown("RUN")],
    *,
    prompt: Annotated[str, shown("TEXT", "a line feed, which is not printed")] = "",
    tokens: Annotated[int, shown("N", "500")] = 500,
    temperature: Annotated[float, shown("T", "1")] = 1.0,
    top_k: Annotated[int | None, shown("K", "all")] = None,
    top_p: Annotated[float | None, shown("P", "all")] = None,
    seed: Annotated[int | None, shown("N", "a random one")] = None,
    weights: Literal["best", "last"] = "best",
) -> int:
    """Continue a text with a run that trained a language model, and print it as it is written.

    With lambda layers each token takes the same time and the state the same memory, however long the text
    becomes; with attention both grow.

    Args:
        run: Folder of a run.
        prompt: Beginning of the text, which is printed too.
        tokens: Number of characters or bytes to write.
        temperature: Divisor of the logits: below 1 the text becomes more probable and less varied; 0 takes
            the most probable token each time.
        top_k: Sample from the K most probable tokens only.
        top_p: Sample from the most probable tokens only, as few as have a total probability of P.
        seed: Seed of the random numbers; the same seed gives the same text.
        weights: Weights of the run's best epoch by validation, or of its last epoch.
    """
    for option, number in (("--tokens", tokens), ("--top-k", top_k)):
        if number is not None and number < 1:
            raise UsageError(f"{option} must be at least 1, got {number}.")
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"--temperature must be at least 0 and finite, got {temperature:g}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"--top-p must be above 0 and at most 1, got {top_p:g}.")
    if seed is not None and seed < 0:
        raise UsageError(f"--seed must be at least 0, got {seed}.")
    return run_verb(
        "generate", run, prompt=prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        seed=seed, weights=weights,
    )  # fmt: skip
