"""Miniature rows of both benchmarks."""

import math
from dataclasses import replace

import pytest

from bench_rows import PROVENANCE, race_rows
from lambdanets.bench import Case, LayerRecord, Machine, Measured, Provenance


@pytest.fixture
def machine() -> Machine:
    return Machine(gflops=100.0, gflops_cpu=50.0, copy_gbs=30.0)


@pytest.fixture
def where() -> Provenance:
    return PROVENANCE


@pytest.fixture
def race() -> list[Measured]:
    return race_rows()


@pytest.fixture
def records() -> list[LayerRecord]:
    """One case that stands alone and a series of three; alone, ours takes 10 ms, others 40, 20 and 5."""
    cases = [Case(name="alone", grid=(7, 7), batch=2, dim=16)]
    cases += [Case(name=f"s{side}", grid=(side, side), dim=16, series="global") for side in (8, 16, 32)]
    contenders = [
        ("lambdanets", "layer", 10.0),
        ("lucidrains", "peer", 40.0),
        ("timm", "peer", 20.0),
        ("3x3 conv", "other", 5.0),
        ("conv", "kernel", 12.0),
        ("fft", "kernel", math.nan),
    ]
    made = []
    for case in cases:
        for mode in ("train", "eval"):
            for name, role, ms in contenders:
                row = LayerRecord(
                    case=case.name,
                    title=str(case),
                    series=case.series,
                    grid="x".join(map(str, case.grid)),
                    scope="global",
                    batch=case.batch,
                    dim=case.dim,
                    num_heads=4,
                    dim_k=16,
                    dim_u=1,
                    mode=mode,
                    contender=name,
                    role=role,
                    note="cannot serve: too square" if math.isnan(ms) else "",
                )
                if not math.isnan(ms):
                    ms *= case.positions / 49
                    own = 10.0 * case.positions / 49
                    times = {"wall_ms": ms, "wall_q20": 0.9 * ms, "wall_q80": 1.1 * ms}
                    cpu = {"cpu_ms": 2 * ms, "cpu_q20": 2 * ms, "cpu_q80": 2 * ms}
                    ratios = {"ratio": ms / own, "ratio_cpu": 1.5 * ms / own}
                    row = replace(row, **times, **cpu, **ratios, samples=9, peak_mib=ms / 4)
                if role == "layer":
                    row = replace(row, kernel="fft", gflop=1.0, of_gemm=0.25, of_gemm_cpu=0.5)
                made.append(row)
    return made
