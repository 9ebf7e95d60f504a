"""The layer race on a GPU: our layer and every kernel of it against other implementations.

    python benchmarks/gpu/layers.py [--minutes 8] [--cases g14,c4] [--dtypes bfloat16,float32]

What `lambdanets bench op` does, over its cases for a GPU: weights and input in bfloat16 throughout (no
autocast), then in float32 (no TF32), with channels last. A contender that fails or is wrong has a row that
says so, and the others go on. Leaves a folder for each type with op.csv, op.md and figures.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from common import FAILURE, MINUTES, Parser, begin, figures, memory_too, stop

GROUPS = "layers,stages,stages-global,wide"
DTYPES = "bfloat16,float32"
WANTED = {
    "lambda_networks": "the rows of lucidrains say that it is not installed",
    "triton": "no kernel of Triton is raced",
    "matplotlib": "no figures now; --draw op.csv draws them on another machine",
}


def draw(path: Path) -> None:
    """Write the report and the figures of an op.csv beside it, and print the report."""
    from lambdanets import bench

    records, where = bench.read(path)
    names = figures(lambda: bench.draw_figures(records, where, path.parent, "wall"))
    report = bench.markdown(records, where, "wall", names)
    path.with_suffix(".md").write_text(report)
    print(report)


def main() -> int:
    parser = Parser(__doc__, "op.csv")
    parser.add_argument("--cases", default=GROUPS, help=f"cases and groups of them (default: {GROUPS})")
    parser.add_argument("--dtypes", default=DTYPES, help=f"default: {DTYPES}")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each contender")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no case begins later")
    words = parser.parse_args()
    begin(words, needed=("torch", "timm"), wanted=WANTED)
    if words.draw:
        draw(words.draw)
        return 0

    import torch

    from lambdanets import bench
    from lambdanets.bench.race import FAILED

    try:
        cases = bench.select(words.cases.split(","))
    except ValueError as error:
        stop(str(error))
    if words.quick:
        tiny = bench.Case(name="tiny", grid=(6, 6), batch=2, dim=16)
        cases = [tiny, replace(tiny, name="tiny local", scope=(5, 5))]
    dtypes = words.dtypes.split(",")
    begun, troubles = time.monotonic(), []
    for number, name in enumerate(dtypes, start=1):
        folder = (words.out or Path("runs/gpu-layers")) / name
        folder.mkdir(parents=True, exist_ok=True)
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
        machine = bench.measure_machine(settings.dtype, settings.device)
        where = bench.provenance(settings.dtype, settings.device, settings.threads, machine)
        rows: list[bench.Record] = []
        for case in cases:
            # Each type has its share of the time.
            if time.monotonic() - begun > 60 * words.minutes * number / len(dtypes):
                troubles.append(f"{name}: no time left for {case.name}")
                continue
            try:
                rows += bench.race([case], settings, machine, report=lambda line: print(line, flush=True))
            except RuntimeError as error:  # the device itself may be lost; what was measured is not
                troubles.append(f"{name}: {case.name} failed: {error}")
                continue
            bench.write(folder / "op.csv", rows, where)
        wrong = [row for row in rows if row.note.startswith(FAILED) or "No speed is shown" in row.note]
        troubles += [f"{name}: {row.case}, {row.mode}, {row.contender}: {row.note}" for row in wrong]
        if rows:
            draw(folder / "op.csv")
    print("\n".join(troubles), file=sys.stderr)
    return FAILURE if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
