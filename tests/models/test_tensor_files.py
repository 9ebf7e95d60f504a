"""Files of tensors: no damage of a file goes unnoticed."""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from foreign import saved
from lambdanets.models import WeightsError, create_model, load_weights, save_for_hub
from lambdanets.models.tensor_files import (
    CHECKSUM,
    DamagedFileError,
    checksum,
    read_safetensors,
    write_safetensors,
)
from lambdanets.models.weight_files import read_weights

ONE = "lambda_resnet_digits"
TENSORS = {
    "matrix": torch.arange(12.0).view(3, 4),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
    "half": torch.arange(5.0).bfloat16(),
    "complex": torch.arange(3.0) * 1j,
}


def damages(content: bytes, number: int) -> Iterator[bytes]:
    """Yield copies with one damage each: bytes changed, cut off, zeroed or swapped, often near an end."""
    draw, size = random.Random(0), len(content)
    for _ in range(number):
        damaged = bytearray(content)
        at = (
            draw.choice([draw.randrange(size), draw.randrange(min(size, 3000)), -1 - draw.randrange(3000)])
            % size
        )
        length, other = draw.choice([1, 16, 512, 4096]), draw.randrange(size)
        match draw.randrange(4):
            case 0:
                damaged[at] ^= 1 << draw.randrange(8)
            case 1:
                del damaged[at:]
            case 2:
                damaged[at : at + length] = bytes(len(damaged[at : at + length]))
            case 3:
                damaged[at : at + length] = damaged[other : other + len(damaged[at : at + length])]
        if damaged != content:
            yield bytes(damaged)


def same(found: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    return found.keys() == tensors.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "last.ckpt", "folder"])
def test_a_damaged_file_never_loads_as_other_weights(tmp_path: Path, name: str) -> None:
    model = create_model(ONE)
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    path, read = tmp_path / name, read_weights
    if name == "folder":
        path = save_for_hub(model, path) / "model.safetensors"
        read = lambda path: create_model(f"local-dir:{path.parent}", pretrained=True).state_dict()  # noqa: E731
    elif name == "w.safetensors":
        write_safetensors(path, tensors, {"model": ONE})
    else:
        saved({"state_dict": tensors} if name == "last.ckpt" else tensors, path)
    assert same(read(path), tensors)
    refused: list[str] = []
    for damaged in damages(path.read_bytes(), 20 if name == "folder" else 75):
        path.unlink()  # tensors that were read lie in the file
        path.write_bytes(damaged)
        try:
            assert same(read(path), tensors)
        except WeightsError as error:
            refused.append(str(error))
    assert len(refused) > 15
    assert all(sentence.startswith(f"{path} is damaged") and "\n" not in sentence for sentence in refused)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_flipped_bit_of_a_header_or_an_index_never_loads_as_other_weights(
    tmp_path: Path, name: str
) -> None:
    tensors = {"a": torch.arange(1.0, 9).view(2, 4), "b": torch.arange(5, 9)}
    path = tmp_path / name
    write_safetensors(path, tensors) if name == "w.safetensors" else saved(tensors, path)
    content = path.read_bytes()
    start = 0 if name == "w.safetensors" else content.index(b"PK\x01\x02")
    for place in range(8 * start, 8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.unlink()
        path.write_bytes(damaged)
        with suppress(WeightsError):
            assert same(read_weights(path), tensors), place


def test_a_file_with_a_checksum_can_be_read_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, TENSORS, {"b": 'ü"\n', "a": "1"})
    assert same(load_file(path), TENSORS)
    assert same(read_safetensors(path), TENSORS)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": "1", "b": 'ü"\n', CHECKSUM: checksum(TENSORS)}


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    metadata = {f"entry {number}": str(number) for number in range(20)}
    write_safetensors(one, TENSORS, metadata)
    write_safetensors(other, dict(reversed(TENSORS.items())), dict(reversed(metadata.items())))
    assert one.read_bytes() == other.read_bytes()


def test_the_checksum_covers_names_dtypes_shapes_and_elements() -> None:
    x = torch.arange(12.0)
    forms = [
        {"x": x},
        {"y": x},
        {"x": x.view(3, 4)},
        {"x": x.view(4, 3)},
        {"x": x.view(torch.int32)},
        {"x": x.roll(1)},
        {"x": x[:6], "y": x[6:]},
        {"x": x[:5], "y": x[5:]},
    ]
    assert len({checksum(form) for form in forms}) == len(forms)
    assert checksum({"x": x.view(3, 4).T.contiguous().T}) == checksum({"x": x.view(3, 4)})
    # The definition, using only the standard library.
    import struct
    import zlib

    about = zlib.crc32(b'["x", "float32", [12]]')
    assert checksum({"x": x}) == f"crc32:{zlib.crc32(struct.pack('<12f', *range(12)), about):08x}"


def test_a_file_without_a_checksum_loads_and_one_with_another_does_not(tmp_path: Path) -> None:
    path = saved(TENSORS, tmp_path / "w.safetensors")
    assert same(read_safetensors(path), TENSORS)
    from safetensors.torch import save_file

    save_file(TENSORS, path, metadata={CHECKSUM: checksum({})})
    with pytest.raises(DamagedFileError, match="is damaged: the checksum of its tensors differs"):
        read_safetensors(path)


def test_the_same_weights_elsewhere_in_a_run_are_named(tmp_path: Path) -> None:
    model = create_model(ONE)
    weights, best = tmp_path / "weights.safetensors", tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    for whole, damaged in ((weights, best), (best, weights)):
        saved(model, whole)
        damaged.write_bytes(b"half")
        with pytest.raises(WeightsError, match=rf"{damaged} is damaged.*; {whole} has the same weights$"):
            load_weights(model, damaged)


@pytest.mark.parametrize("option", ["checkpoint_path", "file"])
def test_files_are_verified_before_timm_reads_them(tmp_path: Path, option: str) -> None:
    path = tmp_path / "w.safetensors"
    model = create_model(ONE)
    write_safetensors(path, model.state_dict())
    options: dict[str, Any] = {option: str(path)}
    if option == "file":
        options = {"pretrained": True, "pretrained_cfg_overlay": options}
    assert same(create_model(ONE, **options).state_dict(), model.state_dict())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        create_model(ONE, **options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "it is nested too deeply to be read"),
        ("{", "it is not valid JSON"),
        ("[]", "it names no architecture"),
        ('{"architecture": "x", "model_args": 3}', "model_args is a int"),
    ],
)
def test_a_folder_s_configuration_is_checked(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"config\.json cannot be used: {reason}"):
        create_model(f"local-dir:{tmp_path}")


def test_a_downloaded_file_is_verified_before_timm_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    model = create_model(ONE)
    folder = save_for_hub(model, place / "snapshots" / ("0" * 40))
    assert same(create_model("hf-hub:owner/name", pretrained=True).state_dict(), model.state_dict())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        create_model("hf-hub:owner/name", pretrained=True)
