"""`lambdanets show` for a language model: the parameters of its parts, and the memory of its state."""

import torch

from lambdanets.cli.console import draw, stdout, table
from lambdanets.models import create_language_model

VOCABULARY = 256  # tokens, as of a model of bytes
LENGTHS = (0, 1_000, 10_000)  # tokens after which the size of the state is printed


def show_language_model(name: str) -> None:
    """Print the parameters of each part of a language model and the bytes of its state.

    The state is that of `LambdaLM.step`: all that a model keeps of the text so far.
    """
    model = create_language_model(name, vocabulary=VOCABULARY).eval()
    rows = table(part="left", parameters="right")
    embedding = model.embedding.weight.numel()
    rows.add_row(f"embedding and head, {VOCABULARY} tokens", f"{embedding:,}")
    layers = sum(
        parameter.numel()
        for name, parameter in model.blocks.named_parameters()
        if name.partition(".")[2].startswith(("operator", "projection"))
    )
    rows.add_row(f"{len(model.blocks)} layers ({model.operator})", f"{layers:,}")
    rows.add_row("multilayer perceptrons and norms", f"{model.num_parameters - embedding - layers:,}")
    rows.add_section()
    rows.add_row("total", f"{model.num_parameters:,}", style="bold")
    console = stdout()
    draw(console, f"{name}: {len(model.blocks)} blocks of {model.dim} channels", rows)
    sizes = []
    with torch.inference_mode():
        for length in LENGTHS:
            state = model.initial_state(1)
            if length:
                _, state = model(torch.zeros(1, length, dtype=torch.int64), state, return_state=True)
            sizes.append(f"{state.nbytes:,} bytes after {length:,} tokens")
    console.print(f"State of a text: {', '.join(sizes)}.", style="dim", soft_wrap=True)
