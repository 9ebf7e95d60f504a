"""Which files of a folder are taken for images, and what is said of the others; only files are opened."""

import os
import shutil
import socket
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import features

from lambdanets.data import DataConfig, DataError, DataWarning, open_splits, open_unlabelled, read_labels
from lambdanets.data.files import find_images, open_regular
from lambdanets.data.sources.folder import Folder, read_folder

WriteFolder = Callable[..., Path]
SUFFIXES = (".png", ".jpg")


def read(root: Path, **options: object) -> Folder:
    return read_folder(str(root), **({"val_fraction": 0.25, "seed": 0} | options))


def found(root: Path) -> list[str]:
    return [str(Path(path).relative_to(root)) for path in find_images(str(root), SUFFIXES).images]


def test_the_order_is_that_of_folders_and_names(write_folder: WriteFolder) -> None:
    """A run that goes on depends on it."""
    root = write_folder({"a": 1, "a/z": 2, "a-b": 1})
    shutil.copy(root / "a" / "000.png", root / "top.png")
    names = found(root)
    assert names == ["top.png", "a/000.png", "a-b/000.png", "a/z/000.png", "a/z/001.png"]
    walked = [
        str((Path(folder) / name).relative_to(root))
        for folder, _, files in sorted(os.walk(root))
        for name in sorted(files)
    ]
    assert names == walked


@pytest.mark.parametrize("stray", [".ipynb_checkpoints", "@eaDir/000.png", "__MACOSX", "#recycle", ".cache"])
def test_what_other_programs_left_is_no_data(write_folder: WriteFolder, stray: str) -> None:
    root = write_folder({"cat": 6, "dog": 6, f"cat/{stray}": 3, stray: 2})
    (root / "dog" / "._000.png").write_bytes(b"resource fork")
    (root / "dog" / ".DS_Store").write_bytes(b"")
    name = stray.partition("/")[0]
    with pytest.warns(DataWarning, match=f"left out hidden files .*'{name}'.*\\.$"):
        folder = read(root)
    assert folder.classes == ("cat", "dog")
    assert len(folder.train) + len(folder.val) == 12
    with pytest.warns(DataWarning, match="left out hidden files"):
        assert len(open_unlabelled(f"folder:{root}")) == 12


def test_files_of_other_kinds_are_counted_by_suffix(write_folder: WriteFolder) -> None:
    root = write_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    image = (root / "train/a/000.png").read_bytes()
    for index in range(4):
        (root / "train" / "ab"[index % 2] / f"IMG_{index}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "train/b/noname").write_bytes(image)
    (root / "train/loose.png").write_bytes(image)
    says = r"train: left out 6 files \(4 \.heic, 1 in no class folder, 1 no suffix\)\.$"
    with pytest.warns(DataWarning, match=says) as said:
        folder = read(root)
    assert len(said) == 1
    assert (len(folder.train), len(folder.val)) == (6, 2)
    with pytest.warns(DataWarning, match=r"left out 5 files \(4 \.heic, 1 no suffix\)\.$"):
        open_unlabelled(f"folder:{root}")


def test_what_pillow_reads_is_read(write_folder: WriteFolder, picture: Callable[..., object]) -> None:
    root = write_folder({"a": 1, "b": 1})
    kinds = {
        "jpe": "JPEG",
        "JFIF": "JPEG",
        "mpo": "MPO",
        "dib": "DIB",
        "tga": "TGA",
        "pbm": "PPM",
        "jp2": None,
    }
    if features.check("avif"):
        kinds["avif"] = "AVIF"
    for name in ("a", "b"):
        for suffix, kind in kinds.items():
            picture(3).save(root / name / f"x.{suffix}", kind)
    config = DataConfig(source=f"folder:{root}", image_size=12, workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = open_splits(config)
    assert len(splits.train) + len(splits.val) == 2 * (1 + len(kinds))


@pytest.mark.parametrize("target", ["..", ".", "../../images", "../dog/back"])
def test_a_link_that_leads_round_in_a_circle(write_folder: WriteFolder, target: str) -> None:
    root = write_folder({"cat": 6, "dog": 6})
    (root / "cat" / "more").symlink_to(target)
    (root / "dog" / "back").symlink_to("../cat")
    for opened in (read, lambda root: open_unlabelled(f"folder:{root}")):
        with pytest.raises(DataError, match=r"is a link to .*, a folder that holds the link itself"):
            opened(root)


def test_a_file_in_two_classes_or_on_both_sides(write_folder: WriteFolder) -> None:
    root = write_folder({"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1})
    (root / "train/cat/more").symlink_to("../dog")
    with pytest.raises(DataError, match=r"are one file, by a link, in the classes 'cat' and 'dog'; remove"):
        read(root)
    (root / "train/cat/more").unlink()
    (root / "val/cat/same.png").symlink_to("../../train/cat/000.png")
    with pytest.raises(
        DataError, match=r"same.png and .*train/cat/000.png are one file, by a link: a validation image"
    ):
        read(root)
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")
    with pytest.raises(DataError, match="are one file"):
        read(root)


def test_folders_and_files_behind_links_are_taken_once(write_folder: WriteFolder, tmp_path: Path) -> None:
    root = write_folder({"pool": 8, "set/cat": 2, "set/dog": 2}) / "set"
    for index in range(8):
        (root / "cat" / f"linked{index}.png").symlink_to(f"../../pool/{index:03d}.png")
    folder = read(root)
    assert len(folder.train) + len(folder.val) == 12
    (root / "cat" / "all").symlink_to("../../pool")
    with pytest.warns(DataWarning, match="8 of 20 names of images are links to others of the same class"):
        assert len(read(root).train) == len(folder.train)
    # The same image by another name must be known for a validation image.
    linked, plain = (
        open_unlabelled(f"folder:{root / 'cat'}"),
        open_unlabelled(f"folder:{root.parent / 'pool'}"),
    )
    places = {plain.location(index) for index in range(8)}
    assert sum(linked.location(index) in places for index in range(len(linked))) == 16


def test_a_broken_link_is_not_left_out_in_silence(write_folder: WriteFolder) -> None:
    root = write_folder({"cat": 3, "dog": 3})
    (root / "cat" / "gone.png").symlink_to("elsewhere.png")
    config = DataConfig(source=f"folder:{root}", image_size=12, workers=0)
    with pytest.raises(DataError, match=r"1 of 7 images .*\n .*gone\.png: there is no such file"):
        open_splits(config)


def test_a_link_to_itself_is_no_folder(write_folder: WriteFolder) -> None:
    root = write_folder({"cat": 3, "dog": 3})
    for link in (root / "bird", root / "cat" / "round.png", root / "cat" / "inside"):
        link.symlink_to(link.name)
    with pytest.warns(DataWarning, match=r"left out 1 file \(1 no suffix\)"):
        folder = read(root)
    assert folder.classes == ("cat", "dog")
    config = DataConfig(source=f"folder:{root}", image_size=12, workers=0)
    with (
        pytest.warns(DataWarning),
        pytest.raises(DataError, match=r"round\.png: too many levels of symbolic links"),
    ):
        open_splits(config)


def within_seconds(work: Callable[[], object]) -> object:
    """The outcome of what might wait for ever."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert outcome, "it hangs"
    return outcome[0]


@pytest.mark.parametrize("kind", ["named pipe", "socket", "device"])
def test_only_files_are_opened(write_folder: WriteFolder, kind: str, tmp_path: Path) -> None:
    root = write_folder({"cat": 3, "dog": 3})
    path = root / "cat" / "x.jpg"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
        os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    config = DataConfig(source=f"folder:{root}", image_size=12, workers=0)
    error = within_seconds(lambda: open_splits(config))
    assert isinstance(error, DataError)
    assert f"cannot read {path}: " in str(error)
    if kind != "socket":  # which cannot be opened at all
        assert f"it is a {kind}, not a file" in str(error)
    for open_it in (lambda: open_regular(path), lambda: read_labels(path, ("cat", "dog"))):
        assert isinstance(within_seconds(open_it), OSError | DataError)


def test_a_folder_that_cannot_be_read(write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder({"cat": 3, "dog": 3, "dog/deep": 3})
    scan = os.scandir

    def refusing(path: object) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything
    with pytest.raises(DataError, match=r"the folder .*dog/deep cannot be read: permission denied\.$"):
        read(root)


def test_names_that_are_no_text(write_folder: WriteFolder) -> None:
    root = write_folder({"cat": 3, "dog": 3})
    name = os.fsencode(root / "cat") + b"/\xff\xe9.png"
    Path(os.fsdecode(name)).write_bytes((root / "cat/000.png").read_bytes())
    config = DataConfig(source=f"folder:{root}", image_size=12, workers=0)
    assert len(open_splits(config).train) == 5
    Path(os.fsdecode(name)).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*cat/\\udcff\\udce9\.png: not an image") as caught:
        open_splits(config)
    assert str(caught.value).encode("utf-8")
    os.rename(os.fsencode(root / "dog"), os.fsencode(root) + b"/h\xfcnd")
    with pytest.raises(
        DataError, match=r"the class folder 'h\\udcfcnd' in .* is not UTF-8; rename it"
    ) as caught:
        open_splits(config)
    assert str(caught.value).encode("utf-8")


def test_every_class_gives_its_part(write_folder: WriteFolder) -> None:
    counts = {"a": 60, "b": 20, "c": 15, "d": 4, "e": 2}
    root = write_folder(counts, size=(1, 1))
    folder = read(root, val_fraction=0.1)
    assert np.bincount([target for _, target in folder.val]).tolist() == [6, 2, 2, 1, 1]
    ordered = sorted(Path(path).name for path, _ in folder.val)
    assert sorted(Path(path).name for path, _ in read(root, val_fraction=0.1, seed=1).val) != ordered
    stable = read(root, val_fraction=0.1, hold_out="stable")
    assert np.bincount([target for _, target in stable.val]).tolist() != [6, 2, 2, 1, 1]
