"""Continuation of a text by a language model, token by token."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from lambdanets.data import DataError, Vocabulary
from lambdanets.data.text.files import plain_text
from lambdanets.data.text.vocabulary import Decoder
from lambdanets.text.config import TextConfig
from lambdanets.text.weights import open_network
from lambdanets.train import Run


def generate(
    run: Run[TextConfig],
    prompt: str = "",
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    weights: Literal["best", "last"] = "best",
) -> Iterator[str]:
    """Continue a prompt with a run.

    Args:
        run: The run.
        prompt: The beginning of the text, whose line ends are read as those of a training text; without one
            the model continues a line feed, or the first token of a vocabulary that has none.
        tokens: Number of tokens to write.
        temperature: Divisor of the logits; 0 takes the most probable token.
        top_k: Sample from the k most probable tokens only.
        top_p: Sample from the most probable tokens whose probabilities sum to p only.
        seed: Equal seeds give equal texts; None takes a random one.
        weights: Weights of the run's best epoch by validation, or of its last epoch.

    Yields:
        The text of each token; "" for a byte inside a character.

    Raises:
        DataError: The prompt has characters outside the vocabulary.
        ValueError: An option is out of range.

    Example:
        >>> print("".join(generate(load_run("runs/book"), "Once ", tokens=100, seed=0)))
    """
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    return continue_text(open_network(run, weights), Vocabulary(run.classes), prompt, tokens, **options)


def continue_text(
    network: Any, vocabulary: Vocabulary, prompt: str, tokens: int, **options: Any
) -> Iterator[str]:
    """Continue a prompt with a network in evaluation mode; see `generate`.

    Args:
        network: The language model.
        vocabulary: Its tokens.
        prompt: The beginning of the text.
        tokens: Number of tokens to write.
        **options: Those of `LambdaLM.generate`.
    """
    start = "\n" if vocabulary.of_bytes or "\n" in vocabulary.names else vocabulary.names[0]
    try:
        encoded = vocabulary.encode(plain_text(0, prompt) or start)
    except DataError as error:
        raise DataError(f"the prompt cannot be used: {error}") from None
    device = next(network.parameters()).device
    prompted = torch.from_numpy(encoded.astype("int64")).to(device)
    return _decoded(network.generate(prompted, tokens, **options), vocabulary)


def _decoded(found: Iterator[torch.Tensor], vocabulary: Vocabulary) -> Iterator[str]:
    decoder = Decoder(vocabulary)
    for token in found:
        yield decoder.feed(int(token))
    yield decoder.end()


def sample_text(
    network: nn.Module, vocabulary: Vocabulary, tokens: int, *, temperature: float, seed: int
) -> str:
    """Return a text that a network writes without a prompt; its training mode is restored.

    Args:
        network: The language model.
        vocabulary: Its tokens.
        tokens: Length of the text.
        temperature: Divisor of the logits.
        seed: Seed of the random numbers.
    """
    training = network.training
    try:
        network.eval()
        return "".join(continue_text(network, vocabulary, "", tokens, temperature=temperature, seed=seed))
    finally:
        network.train(training)
