"""Files of tensors: safetensors with a checksum, and PyTorch's archives, verified when they are read."""

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

from .int8 import dequantise

CHECKSUM = "checksum"
"""Entry of the safetensors metadata that `write_safetensors` adds and `read_safetensors` verifies."""
ZIP_SIGNATURE = b"PK\x03\x04"
ZIP_FOLDER_ATTRIBUTE = 0x10


class DamagedFileError(ValueError):
    """The content of a file was changed after it was written, or never was a collection of tensors."""


class UnsafeFileError(ValueError):
    """A file contains objects whose loading runs code.

    Args:
        path: The file.
        names: The functions and classes that the file refers to.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self.names = names
        named = f" ({', '.join(names[:3])})" if names else ""
        super().__init__(
            f"{path} holds more than tensors and plain values{named}, which can run code when it is loaded; "
            "it is refused, and nothing in it was run"
        )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of the names, dtypes, shapes and elements of tensors.

    The tensors are sorted by name. Each contributes the JSON text `["name", "float32", [3, 4]]`, then its
    elements in row-major order, little-endian.
    """
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        metadata = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        value = zlib.crc32(json.dumps(metadata).encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return f"crc32:{value:08x}"


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, with their checksum in the metadata; equal tensors give equal bytes.

    Args:
        path: The file; an existing one is overwritten.
        tensors: Tensors by name. Tensors that share memory are written once for each name.
        metadata: Further entries of the metadata.
    """
    from safetensors.torch import save

    # The format does not support shared memory, so a shared position table is written for each layer.
    separate = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = memoryview(save(separate))
    end = 8 + int.from_bytes(content[:8], "little")
    # The library orders the metadata differently in each process.
    entries = dict(sorted({**(metadata or {}), CHECKSUM: checksum(separate)}.items()))
    header = {"__metadata__": entries, **json.loads(bytes(content[8:end]))}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Written by Python, since safetensors creates files that only their owner can read, despite the umask.
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(content[end:])


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file on the CPU, and verify the checksum if its metadata has one.

    Args:
        path: The file.

    Returns:
        Tensors by name; those that are stored as int8 with scales are float32.

    Raises:
        DamagedFileError: If it is not a safetensors file, or its tensors differ from the written ones.
        OSError: If it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(
            f"{path} is damaged or not a safetensors file ({first_line(error)})"
        ) from error
    if stored is not None and stored != checksum(tensors):
        raise DamagedFileError(f"{path} is damaged: the checksum of its tensors differs from the stored one")
    return dequantise(tensors)


def read_archive(path: Path) -> Any:
    """Read a file of `torch.save` that contains only tensors and plain values, on the CPU.

    The checksums of the zip archive are verified, unlike in `torch.load`. The older format, of PyTorch 1.5
    and before, has no checksums.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DamagedFileError: If it is not such a file, or its content does not match its checksums.
        UnsafeFileError: If it contains other objects. None of its code was run.
        OSError: If it cannot be read.
        MemoryError: If it does not fit into memory.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_SIGNATURE)) == ZIP_SIGNATURE:
            _verify(path)
    try:
        # timm's training script saves its options as a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # unpickling damaged bytes can raise any exception
        # In a damaged file a seek to an invalid position fails with EINVAL.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        if "can't allocate memory" in str(error):
            raise MemoryError(first_line(error)) from error
        names = _unsafe_names(path, error)
        if names is not None:
            raise UnsafeFileError(path, names) from None
        raise DamagedFileError(f"{path} is damaged or was not written by torch.save") from error


def _verify(path: Path) -> None:
    """Raise DamagedFileError if the content of an archive does not match its checksums."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
                # PyTorch's reader returns uninitialised memory for entries that are marked as folders.
                folders = [
                    entry.filename
                    for entry in archive.infolist()
                    if entry.external_attr & ZIP_FOLDER_ATTRIBUTE
                ]
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
            # zipfile reports a failed read of the end of an archive as BadZipFile.
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
    """Return the functions and classes in an unsafe file, [] if unknown; None if it is only damaged."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not a zip archive of PyTorch
        names = []
    refused = re.search(r"GLOBAL (\S+)", str(error))
    names = sorted(names) or ([refused[1]] if refused else [])
    return names if names or "TorchScript" in str(error) else None
