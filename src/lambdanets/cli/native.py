"""`lambdanets native`: compiles the native CPU kernel and compares it with the definition."""

from lambdanets.cli.console import stdout


class NativeError(RuntimeError):
    """The native kernel is not there, or computes something else than the definition."""


def run(*, check: bool = False) -> int:
    """Compile the native CPU kernel into the user's cache, where that is not done, and check it.

    Prints the library, the instruction set in use, and how far results are from the definition. Without the
    library the other kernels compute the same. A wheel for this platform has the library already.

    Args:
        check: Compile nothing.
    """
    from lambdanets.cli.native_checks import CHECKS
    from lambdanets.ops.kernels import native
    from lambdanets.ops.kernels.native import library

    if not (check or library.is_off() or library.is_packaged()):
        _build()
    if library.unavailable() is not None:
        raise NativeError(native.describe())
    console = stdout()
    console.print(f"{native.describe()} Library: {library.path()}", soft_wrap=True)
    console.print("Relative errors against the definition:")
    wrong = []
    for part in CHECKS:
        errors = part.errors()
        line = f"{part.name}: " + ", ".join(f"{name} {error:.1g}" for name, error in errors.items())
        console.print(f"  {line}", soft_wrap=True)
        # Not a number is wrong too.
        if not all(error <= part.largest_error for error in errors.values()):
            wrong.append(line)
    if wrong:
        path = library.path()
        if not check and path is not None and not library.is_packaged():
            path.unlink()
            library.refresh()
        raise NativeError(f"its results differ from the definition, relative errors: {'; '.join(wrong)}.")
    console.print("It agrees with the definition.")
    return 0


def _build() -> None:
    from lambdanets.ops.kernels.native import compiler, library

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
