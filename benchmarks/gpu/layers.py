"""The benchmark of layers on a GPU: our layer and every kernel of it against other implementations.

    python benchmarks/gpu/layers.py [--minutes 8] [--resume] [--cases g14,c4] [--dtypes bfloat16,float32]

As `lambdanets bench op`, over its cases for a GPU: weights and input in bfloat16 throughout (no autocast),
then in float32 (no TF32), with channels last. The row of a contender that fails or is wrong has the reason,
and the others go on; each dtype runs in a process of its own, and in another one after an error that cost the
GPU. Leaves a folder for each dtype with op.csv, written after every pass, op.md and figures; --resume goes on
with the passes that have no rows yet.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import (
    FAILURE,
    LOST,
    Parser,
    add_worker,
    begin,
    drawn,
    figures,
    in_workers,
    memory_too,
    put_aside,
    stop,
)

if TYPE_CHECKING:
    from lambdanets import bench
    from lambdanets.bench.timing import Pass

    Measured = tuple[bench.LayerRecord, bench.Provenance]

GROUPS = "stages,wide,stages-global,layers"
DTYPES = ("bfloat16", "float32")
PASSES: tuple[Pass, ...] = ("train", "eval")
WANTED = {
    "lambda_networks": "the rows of lucidrains note that it is not installed",
    "triton": "no kernel of Triton is measured",
    "matplotlib": "no figures now; --draw op.csv draws them on another machine",
}


def draw(path: Path) -> None:
    """Write the report and the figures of an op.csv beside it, and print the report."""
    from lambdanets import bench

    records, where = bench.read_layers(path)
    # An interrupted pass may have only the row of the contender that failed.
    whole = {(row.case, row.mode) for row in records if row.role == "layer"}
    records = [row for row in records if (row.case, row.mode) in whole]
    names = figures(lambda: bench.draw_layers(records, where, path.parent, "wall")) if records else []
    report = bench.layer_markdown(records, where, "wall", names)
    path.with_suffix(".md").write_text(report)
    print(report)


def chosen(words: argparse.Namespace) -> list[bench.Case]:
    """Return the selected cases."""
    from lambdanets import bench

    if words.quick:
        tiny = bench.Case(name="tiny", grid=(6, 6), batch=2, dim=16)
        return [tiny, replace(tiny, name="tiny local", scope=(5, 5))]
    try:
        return bench.select(words.cases.split(","))
    except ValueError as error:
        stop(str(error))


def work(words: argparse.Namespace, name: str, path: Path) -> int:
    """Measure all passes of a dtype that have no rows yet, and return an exit status."""
    import torch

    from lambdanets import bench
    from lambdanets.bench.network_bench import SHARED_PROVENANCE
    from lambdanets.bench.records import read_rows
    from lambdanets.bench.timing import FAILED

    ends = time.monotonic() + 60 * words.minutes
    kept = read_rows(path, bench.LayerRecord, "op") if words.resume and path.exists() else []
    settings = bench.Settings(
        dtype=getattr(torch, name),
        device=words.device,
        threads=torch.get_num_threads(),
        rounds=1 if words.quick else words.rounds,
        max_seconds=2.0,
        memory=memory_too(words),
        channels_last=True,
        forgiving=True,
    )
    few = {"side": 256, "times": 3} if words.quick else {}
    machine = bench.measure_machine(settings.dtype, settings.device, **few)
    where = bench.provenance(settings.dtype, settings.device, settings.threads, machine)
    for each in SHARED_PROVENANCE if kept else ():
        was, now = getattr(kept[0][1], each), getattr(where, each)
        if was != now:
            stop(f"{path} has {each} {was}, this is {now}: leave out --resume to measure everything anew")
    code = 0
    for case in chosen(words):
        done = {
            which: [row for row, _ in kept if (row.case, row.mode) == (case.name, which)] for which in PASSES
        }
        left = tuple(which for which in PASSES if len(done[which]) < len(bench.CONTENDERS))
        if not left:
            continue
        if time.monotonic() > ends:
            return FAILURE
        known = {
            (case.name, which, (row.contender, row.role)): row.note
            for which in left
            for row in done[which]
            if FAILED in row.note
        }
        kept = [(row, place) for row, place in kept if row.case != case.name or row.mode not in left]
        before = len(kept)
        try:
            bench.measure_layers(
                [case],
                replace(settings, passes=left),
                machine,
                known=known,
                report=lambda line: print(line, flush=True),
                save=partial(_save, path, kept, before, where),
            )
        except bench.DeviceLost as error:
            print(f"{name}: {case.name}: {error}", file=sys.stderr, flush=True)
            return LOST
        except Exception as error:  # any error, of this case alone
            print(f"{name}: {case.name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            code = FAILURE
    return code


def _save(
    path: Path, kept: list[Measured], before: int, where: bench.Provenance, rows: list[bench.LayerRecord]
) -> None:
    """Put the rows of a case after those of the cases before it, and write all."""
    from lambdanets import bench
    from lambdanets.bench.records import write_rows

    kept[before:] = [(row, where) for row in rows]
    write_rows(path, bench.LayerRecord, kept)


def troubles(words: argparse.Namespace, name: str, path: Path) -> list[str]:
    """Return lines on the passes of a dtype that were not run, and on rows with an error."""
    from lambdanets import bench
    from lambdanets.bench.timing import FAILED

    rows = bench.read_layers(path)[0] if path.exists() else []
    missing = [
        f"{case.name} {which}"
        for case in chosen(words)
        for which in PASSES
        if sum((row.case, row.mode) == (case.name, which) for row in rows) < len(bench.CONTENDERS)
    ]
    wrong = [row for row in rows if FAILED in row.note or "No speed is shown" in row.note]
    found = [f"{name}: {row.case}, {row.mode}, {row.contender}: {row.note}" for row in wrong]
    if missing:
        found.append(f"{name}: not run: {', '.join(missing)}; the same command with --resume goes on")
    return found


def main() -> int:
    parser = Parser(__doc__, "op.csv")
    parser.add_argument("--cases", default=GROUPS, help=f"cases and groups of them (default: {GROUPS})")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help=f"default: {','.join(DTYPES)}")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each contender")
    add_worker(parser, "case")
    words = parser.parse_args()
    begin(words, needed=("torch", "timm"), wanted={} if words.worker else WANTED)
    if words.draw:
        draw(words.draw)
        return 0
    names = words.dtypes.split(",")
    if unknown := [name for name in names if name not in (*DTYPES, "float16")]:
        stop(f"--dtypes takes {', '.join(DTYPES)} and float16, not {unknown[0]!r}")
    chosen(words)
    out = words.out or Path("runs/gpu-layers")
    paths = {name: out / name / "op.csv" for name in names}
    if words.worker:
        (name,) = names
        return work(words, name, paths[name])
    ends = time.monotonic() + 60 * words.minutes
    found = []
    for number, (name, path) in enumerate(paths.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not words.resume:
            put_aside(path)
        # The remaining time is divided among the remaining dtypes.
        share = max(0.0, (ends - time.monotonic()) / 60) / (len(names) - number)
        code = in_workers(__file__, share, words.resume, "--dtypes", name)
        if code not in (0, FAILURE):
            found.append(f"{name}: its process ended with {code}")
    for name, path in paths.items():
        found += troubles(words, name, path) + drawn(draw, path)
    if found:
        print("\n".join(found), file=sys.stderr)
    return FAILURE if found else 0


if __name__ == "__main__":
    sys.exit(main())
