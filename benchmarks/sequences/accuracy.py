"""Accuracy of layers on text and on speech, each at one size of the network, by the package's own recipes.

`language` trains language models on one text by the recipe `text` for 2,000 steps, `language_time` for the
steps that take as long as those of another arm. `digits` trains classifiers of spoken digits by the recipe
`audio`, with each speaker held out in turn; `digits_large` has larger networks, `digits_raw` takes samples. A
row is written for each finished cell, and cells with a row are not repeated. `--report` draws the figures and
prints the tables.
`python -m benchmarks.sequences.accuracy language text.txt COMMIT`
`python -m benchmarks.sequences.accuracy digits recordings COMMIT`, where recordings has the files
`DIGIT_SPEAKER_NUMBER.wav` of the Free Spoken Digit Dataset.
"""

import argparse
import contextlib
import csv
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lambdanets.audio
import lambdanets.text
from lambdanets.recipes import get_recipe
from lambdanets.train import override
from lambdanets.train.run import RunFiles
from lambdanets.utils.allocator import keep_freed_memory

# The first columns of a row, the function that trains, and the configuration.
Cell = tuple[dict[str, Any], Callable[..., Any], Any]

HERE = Path(__file__).parent
TEXT_MODELS: dict[str, tuple[str, ...]] = {
    "lambda": ("lambda_lm_mini",),
    "attention": ("attention_lm_mini",),
    "lambda, short convolution": ("lambda_lm_mini", "model.options.short_conv=4"),
    "attention, gate": ("attention_lm_mini", "model.options.gate=True", "model.options.mlp_dim=304"),
    "gru": ("gru_lm_mini",),
}
# Steps of an epoch, 250 in `language`, with which an arm takes the time of the other one by training.csv.
EPOCH_STEPS = {"gru": ("lambda", 134), "lambda": ("gru", 465)}
# Options of the layers, and channels of the stages in each of SPEECH_SETTINGS: networks of one size.
SPEECH_ARMS: dict[str, tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]] = {
    "lambda": ((), ((24, 40, 56), (40, 56, 64), (24, 40, 56))),
    "conv, 9 taps": (("operator=conv", "taps=9"), ((16, 24, 40), (24, 24, 48), (24, 24, 32))),
    "conv, 3 taps": (("operator=conv", "taps=3"), ((24, 32, 56), (40, 48, 56), (24, 32, 56))),
    "lambda, positions": (("content=False",), ((16, 56, 56), (40, 56, 72), (24, 40, 64))),
    "lambda, content": (("position=False",), ((24, 40, 56), (40, 56, 64), (24, 48, 48))),
    "depthwise, 23 taps": (
        ("operator=conv", "taps=23", "depthwise=True"), ((32, 48, 72), (64, 64, 64), (32, 40, 56))
    ),
    "attention": (("operator=attention",), ((24, 32, 56), (40, 48, 56), (24, 32, 56))),
    "gru": (("operator=gru",), ((16, 24, 56), (24, 32, 64), (16, 32, 56))),
}  # fmt: skip
SPEECH_SETTINGS = {
    "digits": ("lambda_audio_small", "log-mel"),
    "digits_large": ("lambda_audio", "log-mel"),
    "digits_raw": ("lambda_audio_small", "raw"),
}
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
PUBLISHED = 1.88  # validation loss in nats of nanoGPT's README for this setting, with softmax attention


def text_cells(source: Path, folder: Path, seeds: list[int]) -> Iterable[Cell]:
    """Yield the cells of the language models, seed by seed."""
    for seed, (arm, (model, *options)) in itertools.product(seeds, TEXT_MODELS.items()):
        config = get_recipe("text").with_model(model)
        config = override(config, f"data.source=text:{source}", f"seed={seed}", "engine.threads=1", *options)
        yield {"arm": arm, "held_out": "", "seed": seed}, lambdanets.text.train, config


def timed_cells(source: Path, folder: Path, seeds: list[int]) -> Iterable[Cell]:
    """Yield the cells of language models that train as long as another arm does, seed by seed."""
    for seed, (arm, (other, steps)) in itertools.product(seeds, EPOCH_STEPS.items()):
        model, *options = TEXT_MODELS[arm]
        config = get_recipe("text").with_model(model)
        options += [f"data.source=text:{source}", f"seed={seed}", "engine.threads=1"]
        options.append(f"data.windows={12 * steps}")
        yield (
            {"arm": f"{arm}, time of {other}", "held_out": "", "seed": seed},
            lambdanets.text.train,
            override(config, *options),
        )


def speech_cells(source: Path, folder: Path, seeds: list[int], setting: str) -> Iterable[Cell]:
    """Yield the cells of spoken digits in one of `SPEECH_SETTINGS`, seed by seed and speaker by speaker."""
    model, features = SPEECH_SETTINGS[setting]
    number = list(SPEECH_SETTINGS).index(setting)
    for seed, speaker, (arm, (layer, widths)) in itertools.product(seeds, SPEAKERS, SPEECH_ARMS.items()):
        data = f"data.source=audio:{split_by_speaker(source, folder / speaker, speaker)}"
        options = [f"model.options.{option}" for option in (*layer, f"widths={list(widths[number])}")]
        options += [data, f"data.features={features}", f"seed={seed}", "engine.threads=1", "data.workers=0"]
        config = override(get_recipe("audio").with_model(model), *options)
        yield {"arm": arm, "held_out": speaker, "seed": seed}, lambdanets.audio.train, config


def split_by_speaker(source: Path, folder: Path, held_out: str) -> Path:
    """Return a folder of links: recordings of one speaker in val/, of the others in train/."""
    for file in sorted(source.glob("*.wav")):
        digit, speaker, _ = file.stem.split("_")
        link = folder / ("val" if speaker == held_out else "train") / digit / file.name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return folder


EXPERIMENTS: dict[str, Callable[[Path, Path, list[int]], Iterable[Cell]]] = {
    "language": text_cells,
    "language_time": timed_cells,
    **{name: partial(speech_cells, setting=name) for name in SPEECH_SETTINGS},
}


def measure(name: str, source: Path, commit: str, seeds: list[int]) -> None:
    """Train the cells without a row in order, and append a row for each."""
    path = HERE / f"{name}.csv"
    done = {(row["arm"], row["held_out"], row["seed"]) for row in read(name)}
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        cells = EXPERIMENTS[name](source, Path(temporary) / "data", seeds)
        for number, (columns, train, config) in enumerate(cells):
            if tuple(map(str, columns.values())) in done:
                continue
            run = Path(temporary) / f"run{number}"
            begin = time.process_time()
            with (
                open(os.devnull, "w") as null,
                contextlib.redirect_stdout(null),
                contextlib.redirect_stderr(null),
            ):
                train(config, run_dir=run)
            row = columns | outcome(run, time.process_time() - begin) | {"commit": commit}
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row))
                if not file.tell():
                    writer.writeheader()
                writer.writerow(row)
            print(*row.values(), flush=True)


def outcome(run: Path, seconds: float) -> dict[str, Any]:
    """Return the columns of a finished run: validation after the last epoch and after the best one."""
    files = RunFiles(run)
    with files.metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    weights = torch.load(files.last, weights_only=False, map_location="cpu")["state_dict"]
    names = [name for name in weights if name.startswith("network.") and "running_" not in name]
    parameters = sum(weights[name].numel() for name in names if "num_batches" not in name)
    losses = [float(row["val_loss"]) for row in rows]
    right = [float(row["val_top1"]) for row in rows] if "val_top1" in rows[0] else []
    return {
        "parameters": parameters,
        "steps": rows[-1]["step"],
        "train_loss": rows[-1]["train_loss"],
        "val_loss": losses[-1],
        "best_val_loss": min(losses),
        "val_top1": right[-1] if right else "",
        "cpu_seconds": f"{seconds:.1f}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today(),
    }


def read(name: str) -> list[dict[str, str]]:
    """Return the rows of an experiment, none if it was not begun."""
    path = HERE / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def language_table(name: str) -> list[str]:
    """Return the losses of an experiment on language: mean and standard deviation over seeds."""
    lines = [
        "| arm | parameters | steps | loss, nats | runs | CPU seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm, rows in by_arm(name).items():
        loss = spread([float(row["val_loss"]) for row in rows], 3)
        lines.append(
            f"| {arm} | {int(rows[0]['parameters']):,} | {int(rows[0]['steps']):,} | {loss} | {len(rows)} "
            f"| {median(rows, 'cpu_seconds'):.0f} |"
        )
    return lines


def digits_table(name: str) -> list[str]:
    """Return the accuracies of an experiment on digits, in % and over speakers, the mean of seeds for each.

    The last column is the difference from the lambda arm on the same speaker and seed.
    """
    lines = [
        "| arm | parameters | accuracy, % | minus lambda, points | runs | CPU seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    arms = by_arm(name)
    lambdas = {(row["held_out"], row["seed"]): accuracy(row) for row in arms.get("lambda", [])}
    for arm, rows in arms.items():
        means = spread(over_speakers(rows, accuracy), 1)
        paired = [row for row in rows if (row["held_out"], row["seed"]) in lambdas]
        differences = over_speakers(paired, lambda row: accuracy(row) - lambdas[row["held_out"], row["seed"]])
        difference = "" if arm == "lambda" or not differences else spread(differences, 1, sign="+")
        lines.append(
            f"| {arm} | {int(rows[0]['parameters']):,} | {means} | {difference} | {len(rows)} "
            f"| {median(rows, 'cpu_seconds'):.0f} |"
        )
    return lines


def by_arm(name: str) -> dict[str, list[dict[str, str]]]:
    """Return the rows of an experiment by their arms."""
    arms: dict[str, list[dict[str, str]]] = {}
    for row in read(name):
        arms.setdefault(row["arm"], []).append(row)
    return arms


def accuracy(row: dict[str, str]) -> float:
    """Return the accuracy of a row in %."""
    return 100 * float(row["val_top1"])


def over_speakers(rows: list[dict[str, str]], value: Callable[[dict[str, str]], float]) -> list[float]:
    """Return the mean of a value over the seeds of each speaker that has any."""
    speakers = [[value(row) for row in rows if row["held_out"] == speaker] for speaker in SPEAKERS]
    return [statistics.mean(values) for values in speakers if values]


def spread(values: list[float], digits: int, *, sign: str = "") -> str:
    """Return mean and standard deviation of values as text."""
    text = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def median(rows: list[dict[str, str]], column: str) -> float:
    """Return the median of a column."""
    return statistics.median(float(row[column]) for row in rows)


def draw() -> None:
    """Draw language.png, and a figure for each of `SPEECH_SETTINGS`, from the rows that there are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for name, marker in (("language", "o"), ("language_time", "x")):
        for arm, rows in by_arm(name).items():
            seconds = [float(row["cpu_seconds"]) for row in rows]
            axis.plot(seconds, [float(row["val_loss"]) for row in rows], marker, label=arm)
    axis.axhline(PUBLISHED, color="gray", ls="--", lw=1)
    left = axis.get_xlim()[0]
    axis.annotate("nanoGPT's README", (left, PUBLISHED), va="bottom", color="gray", fontsize=8)
    axis.set_xlabel("CPU seconds of a run, validations included")
    axis.set_ylabel("validation loss (nats per character)")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(HERE / "language.png", dpi=120)
    for name in SPEECH_SETTINGS:
        arms = by_arm(name)
        if not arms:
            continue
        figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for number, rows in enumerate(arms.values()):
            means = over_speakers(rows, accuracy)
            axis.plot(means, [number] * len(means), "o", color="#1d4ed8", alpha=0.5, ms=5)
            axis.plot([statistics.mean(means)], [number], "|", color="#c2410c", ms=18, mew=2.5)
        axis.set_yticks(range(len(arms)), arms)
        axis.invert_yaxis()
        axis.set_xlabel("accuracy on a speaker outside the training set (%); bar: mean of speakers")
        axis.grid(alpha=0.3, axis="x")
        figure.savefig(HERE / f"{name}.png", dpi=120)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", nargs="?", choices=list(EXPERIMENTS))
    parser.add_argument("source", nargs="?", type=Path, help="the text, or the folder of recordings")
    parser.add_argument("commit", nargs="?", help="commit of the measured code")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="draw the figures and print the tables")
    options = parser.parse_args()
    if options.experiment:
        if options.commit is None:
            parser.error("name the source and the commit")
        measure(options.experiment, options.source, options.commit, options.seeds)
    if options.report:
        draw()
        tables = [
            *map(language_table, ("language", "language_time")),
            *map(digits_table, SPEECH_SETTINGS),
        ]
        print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
