"""Files of tensors: safetensors with a checksum, and PyTorch's archives, verified before they are used."""

from __future__ import annotations

import argparse
import errno
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lambdanets.utils.text import first_line

CHECKSUM = "checksum"
"""The entry of a safetensors header that `write_safetensors` adds and `read_safetensors` verifies."""
ZIP = b"PK\x03\x04"
FOLDER = 0x10  # attribute of a part of a zip archive


class DamagedFileError(ValueError):
    """A file does not hold what was written into it, or never held tensors."""


class UnsafeFileError(ValueError):
    """A file asks for code of its own to be run when it is loaded.

    Args:
        path: The file.
        names: What it asks for.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self.names = names
        named = f" ({', '.join(names[:3])})" if names else ""
        super().__init__(
            f"{path} holds more than tensors and plain values{named}, which can run code when it is loaded; "
            "it is refused, and nothing in it was run"
        )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of the names, dtypes, shapes and elements of tensors, whatever their order.

    It is that of each tensor in the order of names: the JSON text `["name", "float32", [3, 4]]` and then the
    elements, row by row, little-endian.
    """
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        about = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        value = zlib.crc32(json.dumps(about).encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return f"crc32:{value:08x}"


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, with their checksum in the metadata; equal tensors give equal bytes.

    Args:
        path: The file; what is there is overwritten.
        tensors: By name; those that share memory are written once for each name.
        metadata: More entries of the header.
    """
    from safetensors.torch import save

    # The format knows no shared memory: a table that layers share stands under the name of each.
    separate = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = memoryview(save(separate))
    end = 8 + int.from_bytes(content[:8], "little")
    # The library writes metadata in an order of its own that differs from process to process.
    entries = dict(sorted({**(metadata or {}), CHECKSUM: checksum(separate)}.items()))
    header = {"__metadata__": entries, **json.loads(bytes(content[8:end]))}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Written by Python: a file of safetensors' own is closed to all others, whatever the umask says.
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(content[end:])


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file on the CPU; a checksum in its metadata is verified.

    Raises:
        DamagedFileError: It is no safetensors file, or its tensors are not those that were written.
        OSError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged, or no safetensors ({first_line(error)})") from error
    if stored is not None and stored != checksum(tensors):
        raise DamagedFileError(f"{path} is damaged: the checksum of its tensors differs from the stored one")
    return tensors


def read_archive(path: Path) -> Any:
    """Read what `torch.save` wrote, on the CPU: tensors and plain values, nothing else.

    The checksums of the zip archive are verified, which PyTorch does not. The format before it, of PyTorch
    1.5 and older, has none.

    Raises:
        DamagedFileError: It is no such file, or not as it was written.
        UnsafeFileError: It holds other objects. Nothing of it was run.
        OSError: It cannot be read.
        MemoryError: It does not fit into memory.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            _verify(path)
    try:
        # Training scripts of timm's kind keep their options as a Namespace, which holds plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make unpicklers fail in any way
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a seek to nowhere
            raise
        if "can't allocate memory" in str(error):
            raise MemoryError(first_line(error)) from error
        names = _unsafe_names(path, error)
        if names is not None:
            raise UnsafeFileError(path, names) from None
        raise DamagedFileError(f"{path} is damaged, or no file of PyTorch's") from error


def _verify(path: Path) -> None:
    """Compare the checksums of an archive with its content."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
                # PyTorch's reader gives memory as it is for what is marked as a folder.
                folders = [part.filename for part in archive.infolist() if part.external_attr & FOLDER]
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
            # zipfile calls an archive bad whose end it could not read.
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError) and cause.errno != errno.EINVAL:
                raise cause from None
            raise DamagedFileError(f"{path} is damaged ({first_line(error)})") from error
    if folders:
        raise DamagedFileError(f"{path} is damaged ({folders[0]} in it is marked as a folder)")
    if damaged:
        raise DamagedFileError(
            f"{path} is damaged: the checksum of {damaged} in it differs from the stored one"
        )


def _unsafe_names(path: Path, error: Exception) -> list[str] | None:
    """Return what a file asks for beside tensors, perhaps without names; None where it is merely damaged."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # no archive of PyTorch's
        names = []
    asked = re.search(r"GLOBAL (\S+)", str(error))
    names = sorted(names) or ([asked[1]] if asked else [])
    return names if names or "TorchScript" in str(error) else None
