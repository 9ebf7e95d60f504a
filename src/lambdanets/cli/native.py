"""`lambdanets native`: compiles the native CPU kernel and compares it with the definition."""

import torch

from lambdanets.cli.console import stdout
from lambdanets.ops import GlobalContext, lambda_layer
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import compiler, library

LARGEST_ERROR = 1e-5  # relative, of a float32 result


class NativeError(RuntimeError):
    """The native kernel is not there, or computes something else than the definition."""


def run(*, check: bool = False) -> int:
    """Compile the native CPU kernel into the user's cache, where that is not done, and check it.

    Prints the library, the instruction set in use, and how far results are from the definition. Without the
    library the other kernels compute the same. A wheel for this platform has the library already.

    Args:
        check: Compile nothing.
    """
    if not (check or library.is_off() or library.is_packaged()):
        _build()
    if library.unavailable() is not None:
        raise NativeError(native.describe())
    console = stdout()
    console.print(f"{native.describe()} Library: {library.path()}", soft_wrap=True)
    errors = _errors()
    shown = ", ".join(f"{name} {error:.1g}" for name, error in errors.items())
    if not all(error <= LARGEST_ERROR for error in errors.values()):
        path = library.path()
        if not check and path is not None and not library.is_packaged():
            path.unlink()
            library.refresh()
        raise NativeError(f"its results differ from the definition, relative errors: {shown}.")
    console.print(f"It agrees with the definition; relative errors of float32: {shown}.", soft_wrap=True)
    return 0


def _build() -> None:
    folder = library.cache_folder()
    if folder is None:
        raise NativeError("there is no home folder for the library; set XDG_CACHE_HOME.")
    try:
        compiler.build(folder)
    except (compiler.BuildError, OSError):
        # A library of the same sources that another compiler has made serves as well.
        if library.load() is None:
            raise
    library.refresh()


def _errors() -> dict[str, float]:
    """Return the relative errors of the native kernel's output and gradients, on a 14x14 grid in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 4, 196, 16), "k": (2, 196, 16, 1), "v": (2, 196, 32, 1), "e": (27, 27, 16, 1)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    upstream = torch.randn(2, 4, 196, 32, generator=generator)
    results = {}
    for kernel, dtype in ((native.NAME, torch.float32), ("reference", torch.float64)):
        leaves = {name: x.to(dtype, copy=True).requires_grad_() for name, x in inputs.items()}
        y = lambda_layer(*leaves.values(), context=GlobalContext((14, 14)), kernel=kernel)
        y.backward(upstream.to(dtype))
        results[kernel] = {"y": y.detach()} | {f"d{name}": x.grad for name, x in leaves.items()}
    found, exact = results.values()
    return {name: float((found[name] - x).norm() / x.norm()) for name, x in exact.items()}
