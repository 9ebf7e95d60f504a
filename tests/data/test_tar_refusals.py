"""Archives that cannot be used are told in one sentence; what an interrupted copy lacks can be left out."""

import gzip
import json
import os
import subprocess
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lambdanets.data import DataConfig, DataError, DataWarning, open_split, open_splits
from lambdanets.data.sources.tar_images import unlabelled_tar
from lambdanets.data.sources.tar_index import INDEX, read_members, write_index

WriteFolder = Callable[..., Path]
WriteTar = Callable[..., Path]
MakeSamples = Callable[..., dict[str, bytes]]
BLOCK = 512


def config(source: object, **options: object) -> DataConfig:
    values = {"source": f"tar:{source}", "image_size": 12, "batch_size": 4, "workers": 0}
    return DataConfig(**(values | options))


def refused(source: object, says: str, **options: object) -> None:
    with pytest.raises(DataError, match=says) as caught:
        open_splits(config(source, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cut", "whole"),
    [("inside an image", 5), ("inside a header", 5), ("between members", 5), ("at the end", 6)],
)
def test_a_truncated_archive(write_tar: WriteTar, samples: MakeSamples, cut: str, whole: int) -> None:
    members = samples([0, 1, 0])
    ordered = sorted(members, key=lambda name: name.endswith("png"))  # so that the last is an image
    archive = write_tar("s/train-0.tar", {name: members[name] for name in ordered})
    write_tar("s/val.tar", samples([0, 1]))
    content = archive.read_bytes()
    image = content.rindex(members["000002.png"])
    end = image + len(members["000002.png"])
    kept = {
        "inside an image": image + 100,
        "inside a header": image - 100,
        "between members": image - BLOCK,
        "at the end": end + -end % BLOCK,
    }
    archive.write_bytes(content[: kept[cut]])
    says = f"{archive} ends too early: {whole} of its members are complete. "
    refused(
        archive.parent, f"{says}Copy or make the shard again, or use only its intact part with --set data.on_"
    )
    with pytest.warns(DataWarning, match=f"{says}The rest is left out"):
        splits = open_splits(config(archive.parent, on_bad_image="skip"))
    assert splits.train.targets.tolist() == [0, 1, 0][: whole - 3]


def test_an_archive_damaged_inside(write_tar: WriteTar, samples: MakeSamples) -> None:
    archive = write_tar("s/0.tar", samples([0, 1, 0, 1]))
    content = bytearray(archive.read_bytes())
    place = content.index(b"000002.png")
    content[place : place + BLOCK] = b"x" * BLOCK
    archive.write_bytes(content)
    refused(archive, f"0.tar is damaged at byte {place}: the 4 members before it are complete")


def test_archives_joined_with_cat(write_tar: WriteTar, samples: MakeSamples) -> None:
    archive = write_tar("0.tar", samples([0, 1]))
    archive.write_bytes(archive.read_bytes() * 2)
    refused(archive, "has data behind its end marker, as archives do that were joined with cat")


def test_archives_of_no_use(tmp_path: Path, write_tar: WriteTar, samples: MakeSamples) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty holds no tar archives\.$")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    refused(tmp_path / "photos", "holds no tar archives; if its folders hold images, write folder:.*photos")
    refused(tmp_path / "nowhere", r"there is no tar archive .*nowhere\.$")
    refused("", "lacks a path: write tar:PATH")
    refused(write_tar("a.tar", {}), r"a\.tar holds no images; it is empty\.$")
    refused(write_tar("b.tar", {"a/x.txt": b"", "a/y": b""}), "files of other kinds: '.txt', 'no suffix'")
    (tmp_path / "c.tar").write_bytes(b"")
    refused(tmp_path / "c.tar", "is an empty file, not a tar archive")
    (tmp_path / "d.tar").write_bytes(b"no archive" * 200)
    refused(tmp_path / "d.tar", "is not a tar archive: ")
    plain = write_tar("e.tar", samples([0, 1]))
    plain.write_bytes(gzip.compress(plain.read_bytes()))
    refused(
        plain, r"e\.tar is compressed \(gzip\) and cannot be read at random offsets: unpack it to a plain"
    )
    (tmp_path / "z").mkdir()
    packed = plain.rename(tmp_path / "z" / "e.tar.gz")
    refused(packed.parent, "holds no tar archives; compressed ones cannot be read at random offsets")
    refused(packed, "e.tar.gz is no .tar archive; compressed ones cannot be read at random offsets")
    for name in ("f", "g", "h"):
        write_tar(f"{name}/0.tar", samples([0, 1]))
    (tmp_path / "f" / "1.tar").mkdir()
    refused(tmp_path / "f", r"cannot read .*f/1\.tar: is a directory\.$")
    (tmp_path / "g" / "1.tar").symlink_to("elsewhere.tar")
    refused(tmp_path / "g", r"cannot read .*g/1\.tar: there is no such file\.$")
    os.mkfifo(tmp_path / "h" / "1.tar")
    refused(tmp_path / "h", r"cannot read .*h/1\.tar: it is a named pipe, not a file\.$")


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("names", [("a.tar", "b.tar"), ("train.tar", "val.tar")])
def test_an_archive_of_two_names(
    write_tar: WriteTar, samples: MakeSamples, names: tuple[str, str], link: Callable[[Path, Path], None]
) -> None:
    """Its images would be on both sides."""
    archive = write_tar(f"s/{names[0]}", samples([0, 1, 0, 1]))
    link(archive, archive.with_name(names[1]))
    refused(archive.parent, rf"^{names[0]} and {names[1]} in .*/s are one file: its images would")


def test_archives_beside_others(tmp_path: Path, write_tar: WriteTar, samples: MakeSamples) -> None:
    root = write_tar("s/0.tar", samples([0, 1, 0, 1])).parent
    for name in (".ipynb_checkpoints/0-checkpoint.tar", "@eaDir/0.tar", "#recycle/0.tar"):
        write_tar(f"s/{name}", samples([0, 1]))
    assert len(unlabelled_tar(str(root), 3)) == 4
    (root / "1.tar.gz").write_bytes(b"")
    for opened in (lambda: open_splits(config(root)), lambda: unlabelled_tar(str(root), 3)):
        with pytest.warns(DataWarning, match=r"/s: left out 1 file \(1 \.gz\)\.$"):
            opened()


def test_links_are_not_followed(tmp_path: Path, write_folder: WriteFolder) -> None:
    root = write_folder({"a": 2, "b": 2})
    os.link(root / "a" / "000.png", root / "a" / "other.png")
    subprocess.run(["tar", "-cf", tmp_path / "l.tar", "-C", root, "a", "b"], check=True)
    refused(tmp_path / "l.tar", r"holds links \('a/.*\.png'\) instead of images; pack it again with tar")


def test_samples_without_a_class(write_tar: WriteTar, samples: MakeSamples) -> None:
    members = samples([0, 1, 0])
    del members["000001.cls"]
    archive = write_tar("s/train.tar", members)
    write_tar("s/val.tar", samples([0]))
    refused(archive.parent, r"train\.tar holds images without a \.cls file: '000001\.png'\. Copy or make")
    write_tar("s/train.tar", samples([0, 1]) | {"000000.jpg": b""})
    refused(archive.parent, "holds two images of one sample: '000000.png' and '000000.jpg'")
    write_tar("s/train.tar", {f"a/{name}": each for name, each in members.items() if "png" in name})
    refused(archive.parent, r"some archives in .* have \.cls files and others do not; make them alike")


def test_sides_that_do_not_agree(tmp_path: Path, write_tar: WriteTar, samples: MakeSamples) -> None:
    write_tar("s/train.tar", samples(["a", "b"]))
    write_tar("s/val.tar", samples(["a", "b", "c"]))
    refused(tmp_path / "s", "the training images of .*s lack the class 'c' of the validation images")
    write_tar("s/val.tar", samples(["a"]))
    with pytest.warns(
        DataWarning, match=r"the validation side of .*s holds no images of the class 'b', for w"
    ):
        assert open_splits(config(tmp_path / "s")).classes == ("a", "b")
    (tmp_path / "s" / "classes.json").write_text(json.dumps(["a", "a"]))
    refused(tmp_path / "s", r"classes\.json lists the class 'a' twice\.$")
    (tmp_path / "s" / "classes.json").write_text(json.dumps(["a", "b"]))
    assert open_splits(config(tmp_path / "s")).classes == ("a", "b")
    (tmp_path / "s" / "classes.json").write_text(json.dumps(["a", "c"]))
    refused(tmp_path / "s", r"holds classes that are not known: 'b'\. Known are 'a', 'c'\.")
    (tmp_path / "s" / "classes.json").write_text("{}")
    refused(
        tmp_path / "s", r"classes\.json must be a list of the classes' names, such as \[\"cat\", \"dog\"\]"
    )
    (tmp_path / "s" / "train.tar").unlink()
    (tmp_path / "s" / "classes.json").unlink()
    refused(tmp_path / "s", "none of train: there is nothing to train on")
    assert len(open_split(config(tmp_path / "s"), classes=("a", "b"))[0]) == 1
    write_tar("s/more.tar", samples(["a"]))
    refused(tmp_path / "s", r"some archives in .* name their side and others do not \('more\.tar'\)")


@pytest.mark.parametrize("label", ["-1", "20261126130000"])
def test_numbers_that_are_no_classes(write_tar: WriteTar, samples: MakeSamples, label: str) -> None:
    refused(write_tar("0.tar", samples([0, 1, label])), f"has the class number {label}, but there are ")


def test_one_image_of_a_class(write_tar: WriteTar, samples: MakeSamples) -> None:
    refused(write_tar("0.tar", samples(["a", "b", "a"])), "class 'b' in .* holds one image; at least two")


def test_imagenets_original_archives(write_tar: WriteTar, samples: MakeSamples) -> None:
    image = samples([0])["000000.png"]
    outer = write_tar("o/ILSVRC2012_img_train.tar", {"n01440764.tar": b"", "n01443537.tar": b""})
    says = (
        "it holds other archives. ImageNet's original archives are unpacked into class folders by torchvision"
    )
    refused(outer, says)
    flat = {f"ILSVRC2012_val_0000000{index}.JPEG": image for index in range(3)}
    refused(
        write_tar("f/ILSVRC2012_img_val.tar", flat),
        "img_val.tar holds 3 images without class folders or .cls files: unpack it, put those of each class ",
    )
    inside = {f"train/{name}/0.png": image for name in "ab"} | {f"val/{name}": image for name in flat}
    refused(
        write_tar("both.tar", inside), r"val/ in the archives of .* holds no class folders: put those of each"
    )


def test_a_damaged_image_inside(write_tar: WriteTar, samples: MakeSamples) -> None:
    members = samples([0, 1, 0, 1, 0, 1])
    members["000002.png"] = members["000002.png"][:200]
    archive = write_tar("s/train.tar", members)
    write_tar("s/val.tar", samples([0, 1]))
    for options in ({"cache": False}, {"cache": True}):
        with pytest.raises(
            DataError, match=r"1 of 8 images cannot be read:\n  cannot read train.tar#000002.png: "
        ):
            open_splits(config(archive.parent, **options))
        with pytest.warns(DataWarning, match=r"train\.tar#000002\.png: .*\nThey are left out"):
            splits = open_splits(config(archive.parent, on_bad_image="skip", **options))
        assert len(splits.train) == 5
        assert "train.tar#000002.png" in splits.skipped[0]


def test_the_index_is_taken_where_it_fits(write_tar: WriteTar, samples: MakeSamples) -> None:
    members = samples([0, 1, 0, 1])
    first = write_tar("s/train-0.tar", members)
    second = write_tar("s/train-1.tar", samples([1, 1], first=4))
    write_tar("s/val.tar", samples([0, 1]))
    names = ("train-0.tar", "train-1.tar", "val.tar")

    def found() -> list[int]:
        return open_splits(config(first.parent, check=False, cache=False)).train.targets.tolist()

    expected = found()
    write_index(str(first.parent), names)
    assert found() == expected == [0, 1, 0, 1, 1, 1]
    # Whether a header was read again shows in what was changed there, the size being kept.
    relabelled = write_tar("s/train-0.tar", samples([1, 0, 1, 0]))
    assert relabelled.stat().st_size == first.stat().st_size
    written = (first.parent / INDEX).stat().st_mtime
    os.utime(relabelled, (written + 1, written + 1))
    assert found() == [1, 0, 1, 0, 1, 1]  # younger than the index
    os.utime(relabelled, (written - 1, written - 1))
    assert found() == expected
    write_tar("s/train-1.tar", samples([0] * 30, first=4))
    assert found() == [0, 1, 0, 1] + [0] * 30
    second.unlink()
    assert found() == [0, 1, 0, 1]
    (first.parent / INDEX).write_bytes(b"damaged")
    with pytest.warns(DataWarning, match="_index.npz is damaged. The headers .* and it was written anew"):
        assert found() == [1, 0, 1, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found() == [1, 0, 1, 0]  # from the new one


def test_an_index_is_right_or_not_taken(write_tar: WriteTar, samples: MakeSamples) -> None:
    """Whatever happened to it: bits that flipped, a copy that stopped, the index of other archives."""
    for name, first in (("one", 0), ("other", 7)):
        archive = write_tar(f"{name}/0.tar", samples(range(10), first=first))
        write_tar(f"{name}/1.tar", samples(range(3), first=50))
        write_index(str(archive.parent), ("0.tar", "1.tar"))
    root = archive.parents[1] / "one"
    index = root / INDEX
    whole = index.read_bytes()
    with np.load(index) as file:
        arrays = dict(file)
    expected = read_members(str(root), ("0.tar", "1.tar"), indexed=False)
    rng = np.random.default_rng(0)
    variants: list[bytes | dict[str, object]] = [whole[:size] for size in (0, 10, len(whole) // 2)]
    variants += [
        whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :]
        for place in rng.choice(len(whole), 60, replace=False)
    ]
    variants.append((archive.parent / INDEX).read_bytes())  # of archives of the same names and sizes
    for name, change in (
        ("offsets", lambda row: row + BLOCK),
        ("offsets", lambda row: row + 10**15),
        ("sizes", lambda row: row[:-1]),
        ("sizes", lambda row: -row),
        ("shard", lambda row: row + 1),
        ("shard", lambda row: row[::-1]),
        ("names", lambda row: row[::-1]),
        ("names", lambda row: np.arange(len(row))),
    ):
        variants.append(arrays | {name: change(arrays[name])})
    damaged = 0
    for variant in variants:
        if isinstance(variant, bytes):
            index.write_bytes(variant)
        else:
            np.savez_compressed(index, **variant)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read_members(str(root), ("0.tar", "1.tar"))
        damaged += len(said)
        for column in ("shard", "offsets", "sizes", "names", "labels"):
            np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    assert damaged > 40  # the other bits mean nothing


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", ["é", "猫" * 60, "x" * 120])
def test_an_index_of_names_that_headers_abridge(
    write_tar: WriteTar, samples: MakeSamples, name: str, form: int
) -> None:
    members = {f"{name}{file}": content for file, content in samples([0, 1]).items()}
    root = write_tar("s/0.tar", members, form=form).parent
    write_index(str(root), ("0.tar",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it is damaged
        assert len(read_members(str(root), ("0.tar",))) == 2


def test_an_index_that_cannot_be_written_anew(
    write_tar: WriteTar, samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tar("s/0.tar", samples([0, 1, 0, 1])).parent
    (root / INDEX).write_bytes(b"damaged")

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(DataWarning, match=r"The headers of its shards were read instead\.$"):
        assert len(read_members(str(root), ("0.tar",))) == 4
    assert sorted(path.name for path in root.iterdir()) == ["0.tar", INDEX]
    assert (root / INDEX).read_bytes() == b"damaged"


def test_a_member_of_a_negative_size(
    write_tar: WriteTar, samples: MakeSamples, negative: Callable[[Path, str], int]
) -> None:
    """Python's reader goes back by it, and reads the same header for ever."""
    archive = write_tar("s/0.tar", samples([0, 1, 0, 1]) | {"last.png": b""})
    start = negative(archive, "last.png")
    refused(archive, rf"0\.tar is damaged at byte {start}: the 8 members before it are complete")
    with pytest.warns(DataWarning, match="The rest is left out"):
        assert len(open_splits(config(archive, on_bad_image="skip")).train) == 2


def test_sparse_members(tmp_path: Path, write_folder: WriteFolder) -> None:
    root = write_folder({"cat": 2, "dog": 2})
    with (root / "cat" / "large.png").open("wb") as file:
        file.truncate(20 * 2**30)
    for form in ("gnu", "posix"):
        archive = tmp_path / f"{form}.tar"
        subprocess.run(["tar", "--sparse", f"--format={form}", "-cf", archive, "-C", root, "."], check=True)
        assert archive.stat().st_size < 10**6
        refused(archive, r"holds sparse files \('cat/large\.png'\), .* pack it again without tar's --sparse")


def test_what_an_archive_leaves_out_is_said(write_tar: WriteTar, samples: MakeSamples) -> None:
    image = samples([0])["000000.png"]
    members = {f"{name}/{index}.png": image for name in ("cat", "dog") for index in range(3)}
    members |= {"cat/x.heic": b"", "cat/noname": image, "dog/._0.png": image, "__MACOSX/dog/1.png": image}
    archive = write_tar("0.tar", members)
    says = r"left out 2 files \(1 \.heic, 1 no suffix\) and hidden files .* \('\._0\.png', '__MACOSX'\)\.$"
    with pytest.warns(DataWarning, match=says):
        splits = open_splits(config(archive))
    assert len(splits.train) + len(splits.val) == 6


@pytest.mark.parametrize("before", ["./", "././", "../", "data/../", "/data/"])
def test_dots_in_a_path_are_no_hidden_folders(write_tar: WriteTar, samples: MakeSamples, before: str) -> None:
    image = samples([0])["000000.png"]
    members = {f"{before}{name}/{index}.png": image for name in ("cat", "dog") for index in range(3)}
    splits = open_splits(config(write_tar("0.tar", members)))
    assert splits.classes == ("cat", "dog")
    assert len(splits.train) + len(splits.val) == 6


def test_an_archive_that_shrank_later(write_tar: WriteTar, samples: MakeSamples) -> None:
    archive = write_tar("0.tar", samples([0, 1]))
    pictures = unlabelled_tar(str(archive), 3)
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cannot read 0\.tar#000001\.png: the archive has become shorter\."):
        pictures.read(1)
    archive.unlink()
    with pytest.raises(DataError, match=r"cannot read 0\.tar#000000\.png: there is no such file\."):
        pictures.subset(np.arange(2)).read(0)
