"""Text: its files, its vocabulary, its windows, and all that may be wrong with it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lambdanets.data import (
    DataConfig,
    DataError,
    TextDataConfig,
    Vocabulary,
    open_splits,
    open_text,
    open_text_split,
    text_eval_loader,
    text_train_loader,
)
from lambdanets.data.randomness import permuted
from lambdanets.data.text import files, text_set
from lambdanets.data.text.text_set import IGNORED
from lambdanets.data.text.vocabulary import Decoder

TEXT = "".join(f"Line {number} of a text.\n" for number in range(60))


def config_of(path: Path, **changes: object) -> TextDataConfig:
    settings = {"context": 8, "batch_size": 4} | changes
    return TextDataConfig(source=f"text:{path}", **settings)  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text(TEXT)
    return tmp_path / "a.txt"


def whole(splits: text_set.TextSplits) -> str:
    return splits.val.vocabulary.decode([*splits.train.tokens.tolist(), *splits.val.tokens.tolist()])


def test_the_last_tenth_is_held_out(file: Path) -> None:
    splits = open_text(config_of(file))
    assert whole(splits) == TEXT
    assert len(splits.train.tokens) == int(0.9 * len(TEXT))
    assert splits.classes == tuple(sorted(set(TEXT)))
    assert splits.train.tokens.dtype == np.uint8


def test_line_ends_of_windows_and_a_byte_order_mark_add_no_token(file: Path, tmp_path: Path) -> None:
    plain = open_text(config_of(file))
    for number, ends in enumerate(("\r\n", "\r")):
        other = tmp_path / f"other{number}.txt"
        other.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", ends).encode())
        for tokens in ("characters", "bytes"):
            found = open_text(config_of(other, tokens=tokens))
            assert whole(found) == TEXT
            if tokens == "characters":
                assert found.classes == plain.classes


@pytest.mark.parametrize("size", [3, 4, 5, 7])
@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_blocks_may_end_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, tokens: str
) -> None:
    monkeypatch.setattr(files, "BLOCK", size)
    (tmp_path / "a.txt").write_bytes("\ufeffäh\r\n\r\r\n猫😀\n\r".encode())
    assert (
        whole(open_text(config_of(tmp_path / "a.txt", tokens=tokens, context=1, val_fraction=0.5)))
        == "äh\n\n\n猫😀\n\n"
    )


def test_a_folder_is_joined_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.TXT", ".git/c.txt", "c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>" * 4)
    text = "".join(f"<{name}>" * 4 for name in ("a/b.TXT", "a/z.md", "b.txt"))
    assert whole(open_text(config_of(tmp_path))) == text


def test_a_folder_with_train_and_val_is_split_already(tmp_path: Path) -> None:
    for side, text in (("train", "abc" * 20), ("valid", "abd" * 5)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "1.txt").write_text(text)
    splits = open_text(config_of(tmp_path))
    assert [side.vocabulary.decode(side.tokens) for side in (splits.train, splits.val)] == [
        "abc" * 20,
        "abd" * 5,
    ]
    assert splits.classes == ("a", "b", "c", "d")
    assert open_text_split(config_of(tmp_path), splits.val.vocabulary).tokens.tolist() == [0, 1, 3] * 5


def test_the_kind_of_token_follows_from_the_characters(tmp_path: Path) -> None:
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 2
    (tmp_path / "a.txt").write_text(many, encoding="utf-8")
    assert len(open_text(config_of(tmp_path / "a.txt")).classes) == 256
    chosen = open_text(config_of(tmp_path / "a.txt", tokens="characters"))
    assert len(chosen.classes) == 300
    assert chosen.train.tokens.dtype == np.uint16
    assert chosen.val.vocabulary.byte_lengths.tolist() == [3] * 300


def test_a_file_of_any_bytes_is_served_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(
        DataError, match=r"a\.bin is not UTF-8: byte 128 is 0x80 \(invalid start byte\); save"
    ):
        open_text(config_of(tmp_path / "a.bin"))
    splits = open_text(config_of(tmp_path / "a.bin", tokens="bytes"))
    # Carriage returns are line feeds.
    assert splits.train.tokens[:16].tolist() == [*range(13), 10, 14, 15]


@pytest.mark.parametrize("size", [5, 1 << 20])
def test_an_error_names_the_position_of_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(files, "BLOCK", size)
    (tmp_path / "a.txt").write_text("fine\n" * 9)
    (tmp_path / "b.txt").write_bytes("grün\r\n".encode() * 3 + b"Gr\xfcn" * 20)
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8: byte 23 is 0xfc"):
        open_text(config_of(tmp_path))
    (tmp_path / "b.txt").write_bytes(b"cut short \xe7\x8c")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8: byte 10 is 0xe7 \(unexpected end of data\)"):
        open_text(config_of(tmp_path))


def test_texts_that_are_too_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text, sentence in (
        ("", r"a\.txt is empty"),
        ("short", "has 4 characters to train on, and windows of data.context=8 need at least 9: use"),
        ("0123456789", "has 1 character to validate on, and at least 2 are needed: use more text or a"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=sentence):
            open_text(config_of(path))
    with pytest.raises(DataError, match=r"need at least 9: use more text, a smaller data\.val_fraction or a"):
        open_text(config_of(path, val_fraction=1.0))
    for side in ("train", "val"):
        (tmp_path / "split" / side).mkdir(parents=True)
        (tmp_path / "split" / side / "a.txt").write_text("0123456789" if side == "train" else "0")
    with pytest.raises(DataError, match=r"at least 2 are needed: use more text\.$"):
        open_text(config_of(tmp_path / "split"))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"has no \.txt or \.md file; a single file may have any name"):
        open_text(config_of(tmp_path / "none"))
    with pytest.raises(DataError, match=r"there is no file or folder .*gone"):
        open_text(config_of(tmp_path / "gone"))


def test_a_huge_line_is_a_text_as_any(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab" * 1_500_000)
    splits = open_text(config_of(tmp_path / "a.txt"))
    assert len(splits.train.tokens) == 2_700_000
    assert splits.classes == ("a", "b")


def test_a_large_text_is_a_mapped_file(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    held = open_text(config_of(file))
    monkeypatch.setattr(text_set, "IN_MEMORY", 100)
    mapped = open_text(config_of(file))
    assert isinstance(mapped.train.tokens, np.memmap)
    np.testing.assert_array_equal(mapped.train.tokens, held.train.tokens)
    (cached,) = (tmp_path / "cache").rglob("*.tokens")
    before = cached.stat().st_mtime_ns
    open_text(config_of(file, val_fraction=0.3))
    assert cached.stat().st_mtime_ns == before
    file.write_text(TEXT + "More.\n")
    changed = open_text(config_of(file))
    assert whole(changed) == TEXT + "More.\n"
    assert changed.fingerprint != mapped.fingerprint == held.fingerprint


def test_characters_outside_the_vocabulary_are_named(file: Path, tmp_path: Path) -> None:
    vocabulary = open_text(config_of(file)).val.vocabulary
    (tmp_path / "other.txt").write_text("a text of Łódź\n")
    with pytest.raises(DataError, match=r"other.txt cannot be used: 'Ł', 'ó', 'd', 'ź' are not among"):
        open_text_split(config_of(tmp_path / "other.txt", val_fraction=1.0), vocabulary)
    with pytest.raises(DataError, match=f"'é' is not among the {len(vocabulary)} characters"):
        vocabulary.encode("Liné")


def test_a_vocabulary_is_stored_as_its_names(file: Path) -> None:
    for tokens in ("characters", "bytes"):
        names = open_text(config_of(file, tokens=tokens)).classes
        again = Vocabulary(json.loads(json.dumps(names)))
        assert again.names == names
        assert again.of_bytes == (tokens == "bytes")
    with pytest.raises(DataError, match="one character for each token, or the 256 bytes"):
        Vocabulary(("cat", "dog"))


def test_bytes_are_decoded_when_a_character_is_complete() -> None:
    vocabulary = Vocabulary(tuple(f"{value:02x}" for value in range(256)))
    decoder = Decoder(vocabulary)
    assert [decoder.feed(value) for value in "aé".encode()] == ["a", "", "é"]
    assert decoder.feed(0xE7) == ""
    assert decoder.end() == "\ufffd"
    assert vocabulary.decode(vocabulary.encode("猫\n")) == "猫\n"
    assert vocabulary.encode("\udcff").tolist() == [255]


# Windows


def starts(
    splits: text_set.TextSplits, config: TextDataConfig, *, epoch: int = 0, done: int = 0, **ranks: int
):
    loader = text_train_loader(splits.train, config, seed=5, position=lambda: (epoch, done), **ranks)
    batches = list(loader)
    assert len(batches) == len(loader) - done
    return batches


def test_a_pass_has_each_window_once(file: Path) -> None:
    config = config_of(file, batch_size=1)
    splits = open_text(config)
    windows = torch.cat([tokens for tokens, _ in starts(splits, config)])
    length = len(splits.train.tokens)
    assert len(windows) == (length - 8) // 8
    text = splits.train.vocabulary.decode(splits.train.tokens.tolist())
    found = sorted(text.index(splits.train.vocabulary.decode(window.tolist())) for window in windows)
    assert len(found) == len(windows)
    # Disjoint windows at one distance, from a position by the seed.
    assert 0 <= found[0] < 16


def test_targets_are_the_next_tokens(file: Path) -> None:
    config = config_of(file)
    for tokens, targets in starts(open_text(config), config):
        assert tokens.shape == targets.shape == (4, 8)
        assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_batches_depend_on_seed_and_position_alone(file: Path) -> None:
    config = config_of(file, windows=24)
    splits = open_text(config)
    first, second = (starts(splits, config, epoch=epoch) for epoch in (0, 1))
    assert len(first) == 6
    assert not torch.equal(first[0][0], second[0][0])
    for batch, other in zip(starts(splits, config, epoch=1, done=2), second[2:], strict=True):
        assert torch.equal(batch[0], other[0])
    # An epoch goes on where the one before it ended: together they are one of twice the length.
    both = starts(splits, replace(config, windows=48))
    for batch, other in zip(both, [*first, *second], strict=True):
        assert torch.equal(batch[0], other[0])


def test_processes_share_the_windows_of_a_step(file: Path) -> None:
    config = config_of(file, windows=48)
    splits = open_text(config)
    alone = starts(splits, replace(config, batch_size=8))
    ranks = [starts(splits, config, rank=rank, world_size=2) for rank in range(2)]
    assert [len(each) for each in (alone, *ranks)] == [6, 6, 6]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(one[0], torch.cat([tokens for tokens, _ in parts]))


def test_a_short_text_fills_its_batches_from_several_passes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789abc")
    config = config_of(tmp_path / "a.txt", val_fraction=0.2)
    ((tokens, _),) = starts(open_text(config), config)
    assert tokens.shape == (4, 8)


def test_validation_predicts_each_token_but_the_first_once(file: Path) -> None:
    config = config_of(file, context=7)
    text = open_text(config).val
    for world_size in (1, 2):
        found = [
            targets[targets != IGNORED]
            for rank in range(world_size)
            for _, targets in text_eval_loader(text, 4, rank=rank, world_size=world_size)
        ]
        assert sorted(torch.cat(found).tolist()) == sorted(text.tokens[1:].tolist())
    _, targets = list(text_eval_loader(text, 4))[-1]
    assert (targets[-1] == IGNORED).sum() == -(len(text.tokens) - 1) % 7


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_a_random_order_visits_each_sample_once(size: int) -> None:
    orders = [permuted(seed, epoch, np.arange(size), size) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(size))
        np.testing.assert_array_equal(permuted(0, 0, np.arange(size)[::-1], size), orders[0][::-1])
    if size >= 16:
        assert len({tuple(order) for order in orders}) == 4
        assert abs(np.corrcoef(orders[0], np.arange(size))[0, 1]) < 0.6


# Configurations


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": "folder:x"}, "data.source must be text:FILE or text:FOLDER, got 'folder:x'"),
        ({"source": "text:"}, "data.source must be text:FILE"),
        ({"context": 0}, "data.context must be 1 or more"),
        ({"context": 2**30}, "data.context must be at most 16,777,216"),
        ({"windows": 0}, "data.windows must be 1 or more"),
        ({"tokens": "words"}, "data.tokens must be one of auto, characters, bytes"),
        ({"val_fraction": 0.0}, "data.val_fraction must be above 0"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TextDataConfig(**({"source": "text:a.txt"} | changes))  # type: ignore[arg-type]


def test_text_is_no_source_of_images(file: Path) -> None:
    with pytest.raises(DataError, match="is text, for a language model: train the recipe text"):
        open_splits(DataConfig(source=f"text:{file}"))
