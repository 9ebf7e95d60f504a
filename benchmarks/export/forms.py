"""The position part in onnxruntime in three forms, beside the network in PyTorch: writes forms.csv.

`conv` computes the position lambdas by a convolution, `lambdas` by a product with the embeddings of all
pairs, `queries` multiplies the queries with these embeddings first. All take turns; a file whose outputs
differ from those of the network ends the run. `python forms.py COMMIT`, `--help` for the options.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from lambdanets import create_model
from lambdanets.nn import LambdaLayer2d
from lambdanets.ops import functional
from lambdanets.ops.context import RelativeContext
from lambdanets.ops.exported import convolved_lambdas
from lambdanets.ops.position_table import gather_embeddings, pair_indices

TOLERANCE = 1e-4  # of the largest output
WARM_UP = 2


def by_conv(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext) -> Tensor:
    return torch.matmul(q.transpose(1, 2), convolved_lambdas(v, e, context)).transpose(1, 2)


def by_lambdas(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext) -> Tensor:
    embeddings = gather_embeddings(e, pair_indices(context, e.device))
    lambdas = torch.einsum("nmuk,bmvu->bnkv", embeddings, v)
    return torch.einsum("bhnk,bnkv->bhnv", q, lambdas)


def by_queries(q: Tensor, v: Tensor, e: Tensor, context: RelativeContext) -> Tensor:
    embeddings = gather_embeddings(e, pair_indices(context, e.device))
    pairs = torch.einsum("bhnk,nmuk->bhnmu", q, embeddings)
    return torch.einsum("bhnmu,bmvu->bhnv", pairs, v)


FORMS = {"conv": by_conv, "lambdas": by_lambdas, "queries": by_queries}


def write(network: nn.Module, size: int, form: str, file: Path, *, dynamic: bool) -> None:
    axes = {0: Dim.DYNAMIC} | ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic else {})
    functional.exported_output = FORMS[form]
    program = torch.export.export(network, (torch.randn(2, 3, size, size),), dynamic_shapes=(axes,))
    made = torch.onnx.export(program, input_names=["images"], verbose=False)
    made.save(file, external_data=False)


def sampled(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return 1e3 * (clock() - start)


def measure(
    network: nn.Module, size: int, batch: int, files: dict[str, Path], args: argparse.Namespace
) -> dict[str, list[float]]:
    images = torch.randn(batch, 3, size, size)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    truth = network(images)
    runs: dict[str, Callable[[], object]] = {"PyTorch": lambda: network(images)}
    for name, file in files.items():
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        runs[name] = lambda session=session: session.run(None, {"images": images.numpy()})
        error = (torch.from_numpy(session.run(None, {"images": images.numpy()})[0]) - truth).abs().max()
        if error > TOLERANCE * truth.abs().max():
            raise SystemExit(f"{name} differs by {error:.2g}")
    clock = time.process_time if args.clock == "process" else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UP + args.rounds):
        for name, run in runs.items():
            took = sampled(run, clock)
            if turn >= WARM_UP:
                samples[name].append(took)
    return samples


def awake(network: nn.Module) -> nn.Module:
    """Residual branches start at zero; as after some training they count."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
        elif isinstance(part, LambdaLayer2d) and part.positions is not None:
            nn.init.normal_(part.positions, std=0.2)
    return network


def provenance(commit: str) -> dict[str, object]:
    """The columns of versions and of the machine."""
    return {
        "torch": torch.__version__, "onnxruntime": onnxruntime.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(),
        "python": platform.python_version(), "date": date.today().isoformat(), "commit": commit,
    }  # fmt: skip


def save(rows: list[dict[str, object]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--cases", default="lambda_resnet50@160,lambda_resnet152@256", help="MODEL@SIZE,...")
    parser.add_argument("--image-sizes", default="one,any", help="image sizes of the files")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("process", "wall"), default="process")
    parser.add_argument("--out", type=Path, default=Path("forms.csv"))
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for case in args.cases.split(","):
            name, _, side = case.partition("@")
            network, size = awake(create_model(name)).eval(), int(side)
            files = {}
            for form in FORMS:
                for sizes in args.image_sizes.split(","):
                    label = f"{form}, {sizes} size"
                    files[label] = Path(folder) / f"{len(files)}-{name}.onnx"
                    write(network, size, form, files[label], dynamic=sizes == "any")
            for batch in map(int, args.batches.split(",")):
                for label, samples in measure(network, size, batch, files, args).items():
                    mib = files[label].stat().st_size / 2**20 if label in files else 0
                    rows.append(
                        {
                            "model": name, "size": size, "batch": batch, "form": label,
                            "milliseconds": f"{statistics.median(samples):.1f}", "file_mib": f"{mib:.1f}",
                            "clock": args.clock, "threads": args.threads, "rounds": args.rounds,
                            **provenance(args.commit),
                        }
                    )  # fmt: skip
                    print(*list(rows[-1].values())[:6], flush=True)
    save(rows, args.out)


if __name__ == "__main__":
    main()
