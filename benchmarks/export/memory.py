"""Peak memory and time of one exported lambda layer in onnxruntime, by grid: writes memory.csv.

`all pairs` has the embeddings of all pairs in memory, `exported` is the graph that the package exports. Each
file runs in a process of its own, whose peak of resident memory includes onnxruntime itself (`idle`).
`python memory.py COMMIT`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from forms import provenance, save

from lambdanets import LambdaLayer2d
from lambdanets.ops import exported

LAYERS = {"scope 23": {"scope": 23}, "scope 7": {"scope": 7}, "global": {"grid": 64}}
FORMS = {"all pairs": sys.maxsize, "exported": exported.MAX_EMBEDDINGS}
RUN = """
import sys, time
import numpy, onnxruntime
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
idle = peak()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = numpy.random.default_rng(0).standard_normal(eval(sys.argv[2]), numpy.float32)
times = []
for _ in range(6):
    start = time.process_time()
    session.run(None, {"x": x})
    times.append(time.process_time() - start)
print(idle, peak(), 1e3 * sorted(times[1:])[2])
"""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--sides", default="14,28,40,64")
    parser.add_argument("--out", type=Path, default=Path("memory.csv"))
    args = parser.parse_args(words)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, options in LAYERS.items():
            for side in map(int, args.sides.split(",")):
                x = torch.randn(1, args.dim, side, side)
                for form, limit in FORMS.items():
                    exported.MAX_EMBEDDINGS = limit
                    file = Path(folder) / f"{len(rows)}.onnx"
                    layer = LambdaLayer2d(args.dim, **options).eval()
                    torch.onnx.export(
                        layer, (x,), file, input_names=["x"], verbose=False, external_data=False
                    )
                    command = [sys.executable, "-c", RUN, str(file), repr(tuple(x.shape))]
                    idle, peak, milliseconds = map(float, subprocess.check_output(command, text=True).split())
                    rows.append(
                        {
                            "layer": kind, "dim": args.dim, "side": side, "form": form,
                            "peak_mib": f"{peak:.0f}", "idle_mib": f"{idle:.0f}",
                            "milliseconds": f"{milliseconds:.1f}",
                            "file_mib": f"{file.stat().st_size / 2**20:.2f}",
                            "clock": "process", "threads": 1,
                            **provenance(args.commit),
                        }
                    )  # fmt: skip
                    print(*list(rows[-1].values())[:8], flush=True)
    save(rows, args.out)


if __name__ == "__main__":
    main()
