"""A provenance, and rows of a race of seven points, made up such that the ratios are known."""

from dataclasses import replace

from benchmarks.paper.published import EFFICIENT, LAMBDA, RS
from lambdanets.bench import Measured, NetworkRecord, Provenance

PROVENANCE = Provenance(
    device="cpu",
    processor="An Abacus",
    threads=1,
    load=0.5,
    gemm_gflops=100.0,
    gemm_gflops_cpu=50.0,
    copy_gbs=30.0,
    dtype="float32",
    lambdanets="1.2.3",
    commit="abc1234",
    torch="2.99",
    timm="1.99",
    lambda_networks="",
    python="3.99",
    system="Linux x86_64",
    date="2026-01-02 03:04",
)

# family, title, accuracy, published seconds; measured training takes 100 times as long, inference 10 times.
POINTS = (
    (EFFICIENT, "B0", 77.0, 1.0),
    (EFFICIENT, "B1", 79.0, 4.0),
    (EFFICIENT, "B2", 81.0, 16.0),
    (RS, "50@160", 78.5, 2.0),
    (RS, "101@160", 80.5, 8.0),
    (LAMBDA, "50@128", 78.0, 0.5),
    (LAMBDA, "50@160", 80.0, 4.0),
)


def race_rows() -> list[Measured]:
    """Return the rows of both passes."""
    made = []
    for family, title, top1, seconds in POINTS:
        for mode, factor in (("train", 100.0), ("eval", 10.0)):
            row = NetworkRecord(
                bench="race",
                title=title,
                family=family,
                model=f"{family}-{title}".lower().replace(" ", "_"),
                options="",
                size="160",
                mode=mode,
                batch=4,
                wanted_batch=8,
                parameters=5_000_000,
                macs=400_000_000,
                note="out of memory at batch 8, halved",
                published_source="A paper, Table 1",
                published_top1=top1,
                published_seconds=seconds,
            )
            ms = seconds * factor / 1024 * row.batch * 1e3
            spread = {
                "wall_q20": 0.9 * ms,
                "wall_q80": 1.1 * ms,
                "cpu_ms": ms,
                "cpu_q20": 0.9 * ms,
                "cpu_q80": 1.1 * ms,
            }
            made.append((replace(row, wall_ms=ms, samples=5, peak_mib=ms / 7, **spread), PROVENANCE))
    return made
