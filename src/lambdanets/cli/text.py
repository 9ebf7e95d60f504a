"""`lambdanets eval`, `predict`, `generate` and `export` for runs that trained a language model."""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lambdanets.cli.console import draw, print_files, stderr, stdout, table
from lambdanets.cli.errors import FAILURE, UsageError, usage
from lambdanets.cli.options import default_output, resolved_location, write_json
from lambdanets.utils.text import printable

if TYPE_CHECKING:
    from lambdanets.data import TextDataConfig
    from lambdanets.text import TextScores


def evaluate_text(
    what: str,
    *,
    data: str | None,
    weights: Literal["best", "last"],
    context: int | None,
    batch_size: int | None,
    json: Path | None,
) -> int:
    """Measure a language model on a text; the arguments are those of `lambdanets eval`."""
    from lambdanets.text import evaluate, load_run

    opened = load_run(what)
    changes = {"context": context, "batch_size": batch_size}
    with usage():
        config = replace(
            opened.config.data, **{name: value for name, value in changes.items() if value is not None}
        )
        if data is not None:
            config = _other_text(config, data)
    scores = evaluate(opened, data=config, weights=weights)
    unit = _unit(opened.classes)
    rows = table(measure="left", value="right")
    rows.add_row(f"loss (nats per {unit})", f"{scores.loss:.4f}")
    rows.add_row(f"bits per {unit}", f"{scores.bits_per_token:.4f}")
    if unit != "byte":
        rows.add_row("bits per byte", f"{scores.bits_per_byte:.4f}")
    rows.add_row("perplexity", f"{scores.perplexity:.3f}")
    rows.add_row("accuracy", f"{scores.accuracy:.2%}")
    rows.add_row(f"predicted {unit}s", f"{scores.tokens:,}")
    rows.add_row(f"{unit}s/s", f"{scores.tokens_per_second:,.0f}")
    windows = f"windows of {config.context:,} {unit}s"
    draw(stdout(), f"{what}, {weights} weights, on {config.source}, {windows}", rows)
    if json is not None:
        plain = {"run": what, "weights": weights, "data": config.source, "context": config.context}
        write_json(json, plain | scores.to_plain())
    print_files(("figures", json))
    return 0


def _other_text(config: "TextDataConfig", source: str) -> "TextDataConfig":
    """Select the whole of another text or its val/, and the validation split of the run's own."""
    other = replace(config, source=source)
    if resolved_location(other) == resolved_location(config):
        return other
    return replace(other, val_fraction=1.0)


def _unit(classes: tuple[str, ...]) -> str:
    from lambdanets.data import Vocabulary

    return "byte" if Vocabulary(classes).of_bytes else "character"


def measure_texts(
    run: Path,
    paths: tuple[Path, ...],
    *,
    json: Path | None,
    weights: Literal["best", "last"],
    batch_size: int | None,
    strict: bool,
) -> int:
    """Measure a language model on each of several files; the arguments are those of `lambdanets predict`."""
    from lambdanets.data.text.files import find_files
    from lambdanets.text import load_run
    from lambdanets.text.measurement import measure_files

    if not paths:
        raise UsageError("name files of text, or folders of them.")
    opened = load_run(run)
    with usage():
        files = [file for path in paths for file in (find_files(path) if path.is_dir() else [path])]
        if batch_size is not None:
            data = replace(opened.config.data, batch_size=batch_size)
            opened = replace(opened, config=replace(opened.config, data=data))
    unit = _unit(opened.classes)
    columns = [f"{unit}s", "loss", f"bits_per_{unit}", *(["bits_per_byte"] if unit != "byte" else [])]
    rows = table(text="left", **dict.fromkeys([*columns, "perplexity"], "right"))
    entries: list[dict[str, Any]] = []
    errors: list[str] = []
    for file, found in measure_files(opened, files, weights=weights):
        if isinstance(found, ValueError):
            # The error names the file.
            errors.append(f"skipped: {found}")
            entries.append({"path": str(file), "error": str(found)})
            continue
        entries.append({"path": str(file)} | found.to_plain())
        rows.add_row(str(file), *_cells(found, unit))
    if rows.row_count:
        draw(stdout(), f"{opened.config.model.name} from {run}", rows)
    if json is not None:
        write_json(json, entries)
    print_files(("figures", json))
    for error in errors:
        stderr().print(error)
    if len(errors) == len(files) or (strict and errors):
        stderr().print(f"lambdanets: {len(errors)} of {len(files)} files could not be read.")
        return FAILURE
    return 0


def _cells(scores: "TextScores", unit: str) -> list[str]:
    bits = [scores.bits_per_token, *([scores.bits_per_byte] if unit != "byte" else [])]
    figures = [f"{value:.4f}" for value in (scores.loss, *bits)]
    return [f"{scores.tokens:,}", *figures, f"{scores.perplexity:.3f}"]


def write_continuation(
    run: Path,
    *,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    weights: Literal["best", "last"],
) -> int:
    """Print a prompt and its continuation; the arguments are those of `lambdanets generate`."""
    from lambdanets.data.text.files import plain_text
    from lambdanets.text import generate, load_run

    # The text that the model continues is printed.
    prompt = plain_text(0, prompt)
    pieces = generate(
        load_run(run), prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        weights=weights,
    )  # fmt: skip
    # The text of a model may have terminal escapes, if that of its training had.
    terminal = sys.stdout.isatty()
    try:
        print(_shown(prompt) if terminal else prompt, end="", flush=True)
        for piece in pieces:
            print(_shown(piece) if terminal else piece, end="", flush=True)
    except (KeyboardInterrupt, SystemExit):
        with suppress(OSError):
            print(flush=True)
        raise
    print(flush=True)
    return 0


def _shown(text: str) -> str:
    """Return a text with invisible characters as escapes, except tabs and line feeds."""
    return "".join(letter if letter in "\n\t" else printable(letter) for letter in text)


def export_run(
    run: str,
    *,
    format: Literal["torch", "onnx"],
    out: Path | None,
    weights: Literal["best", "last"],
    batch_size: int | None,
    opset: int | None,
) -> int:
    """Export the step of a language model; the arguments are those of `lambdanets export`."""
    from lambdanets.exporting import FORMATS
    from lambdanets.text import export, load_run

    file = out or default_output(run, f"network{FORMATS[format].SUFFIX}")
    exported = export(load_run(run), file, format=format, weights=weights, batch_size=batch_size, opset=opset)
    (batch,), *state = exported.inputs.values()
    difference = f"{exported.difference:.2g} in outputs up to {exported.largest:.2g}"
    console = stdout()
    console.print(f"{exported.file}: tokens {batch}, state of {len(state)} tensors", soft_wrap=True)
    console.print(
        f"largest difference from the network: {difference} (states after random texts)", soft_wrap=True
    )
    return 0
