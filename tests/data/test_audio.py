"""Recordings: every kind of file, resampling, features, augmentation, splits and batches."""

from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

from lambdanets.data import (
    AudioAugmentConfig,
    AudioDataConfig,
    DataConfig,
    DataError,
    DataWarning,
    audio_eval_loader,
    audio_train_loader,
    open_audio,
    open_audio_split,
)
from lambdanets.data.audio import recordings
from lambdanets.data.audio.features import Augmentation, Features, interpolate, normalised, pad
from lambdanets.data.audio.recordings import read_recording
from lambdanets.data.randomness import keys
from lambdanets.data.sources import get_source, open_source
from sound_sets import RATE, soundfile, tone, write_tones


def config(root: Path, **options) -> AudioDataConfig:
    augment = AudioAugmentConfig(**options.pop("augment", {}))
    return AudioDataConfig(source=f"audio:{root}", augment=augment, **options)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
@pytest.mark.parametrize(
    ("suffix", "subtype", "channels"),
    [
        (".wav", "PCM_16", 1),
        (".wav", "PCM_24", 2),
        (".wav", "FLOAT", 1),
        (".wav", "PCM_U8", 1),
        (".flac", "PCM_16", 2),
        (".ogg", "VORBIS", 1),
    ],
)
def test_files_of_every_kind(tmp_path: Path, rate: int, suffix: str, subtype: str, channels: int) -> None:
    samples = tone(440.0, 0.25, rate)
    path = tmp_path / f"a{suffix}"
    both = np.stack([samples, 0.5 * samples], 1)[:, :channels]
    soundfile.write(path, both, rate, subtype=subtype)
    read = read_recording(path, rate)
    assert read.dtype == torch.float32
    assert read.shape == samples.shape
    tolerance = {"PCM_U8": 1e-2, "VORBIS": 0.1}.get(subtype, 1e-4)
    np.testing.assert_allclose(read.numpy(), both.mean(1), atol=tolerance)


@pytest.mark.parametrize(("own", "rate"), [(44100, 16000), (8000, 16000), (11025, 8000), (48000, 8000)])
def test_resampling_agrees_with_scipy(tmp_path: Path, own: int, rate: int) -> None:
    samples = tone(300.0, 0.5, own)
    time = np.arange(len(samples)) / own
    clean = 0.3 * np.sin(2 * np.pi * 300.0 * time) * np.hanning(len(samples))
    soundfile.write(tmp_path / "a.wav", clean, own, subtype="FLOAT")
    read = read_recording(tmp_path / "a.wav", rate).numpy()
    expected = resample_poly(clean, rate, own)
    assert abs(len(read) - len(expected)) <= 1
    length = min(len(read), len(expected))
    np.testing.assert_allclose(read[:length], expected[:length], atol=2e-3)
    exact = 0.3 * np.sin(2 * np.pi * 300.0 * np.arange(length) / rate)
    exact *= np.interp(np.arange(length) / rate, time, np.hanning(len(samples)))
    np.testing.assert_allclose(read[:length], exact, atol=2e-3)


def cut(path: Path) -> None:
    soundfile.write(path, tone(300.0, 0.5), RATE)
    path.write_bytes(path.read_bytes()[:1500])


def cut_flac(path: Path) -> None:
    soundfile.write(path, tone(300.0, 2.0), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:5000])


def not_a_number(path: Path) -> None:
    soundfile.write(path, np.array([0.1, np.nan, 0.2]), RATE, subtype="FLOAT")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.wav": (lambda path: path.write_bytes(b""), "the file is empty"),
    "cut.wav": (cut, r"it is cut short, after 1,456 of 4,000 bytes of samples"),
    "cut.flac": (cut_flac, r"cut short|is no .flac file that can be read"),
    "text.wav": (lambda path: path.write_text("not audio"), r"is no .wav file that can be read \(.+\)"),
    "header.wav": (lambda path: soundfile.write(path, np.zeros(0), RATE), "it has no samples"),
    "nan.wav": (not_a_number, "it holds NaN or infinity"),
    "missing.wav": (lambda path: None, "no such file or directory"),
    "long.wav": (lambda path: soundfile.write(path, np.zeros(RATE), RATE), "more than data.max_seconds"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        read_recording(tmp_path / name, RATE, max_seconds=0.6 if name == "long.wav" else 3600)
    assert str(error.value).startswith(f"cannot read {tmp_path / name}: ")
    assert "\n" not in str(error.value)


def test_a_header_without_the_length_is_read(tmp_path: Path) -> None:
    """Programs that write to a pipe leave 0xFFFFFFFF, or 0, in the header."""
    soundfile.write(tmp_path / "a.wav", tone(300.0, 0.1), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(bytes(content))
    assert len(read_recording(tmp_path / "a.wav", RATE)) == 400


def test_without_the_packages_one_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = util.find_spec
    monkeypatch.setattr(recordings, "find_spec", lambda name: None if name == "soundfile" else found(name))
    with pytest.raises(DataError, match=r"recordings need soundfile: pip install 'lambdanets\[audio\]'"):
        open_audio(config(write_tones(tmp_path / "a", train=1, val=1)))


# Features


def test_log_mel_is_that_of_its_definition() -> None:
    """Windows, power, mel bands and logarithm, in NumPy, with torchaudio's table of the bands."""
    from torchaudio.functional import melscale_fbanks

    made = Features(AudioDataConfig(source="audio:x", sample_rate=8000, bands=20))
    samples = tone(500.0, 0.2, 8000).astype(np.float32)
    n_fft, window, hop = made.n_fft, made.window, made.hop
    assert (n_fft, window, hop) == (256, 200, 80)
    padded = np.pad(samples.astype(np.float64), n_fft // 2)
    taper = np.zeros(n_fft)
    taper[28:228] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = [padded[start : start + n_fft] * taper for start in range(0, len(samples) + 1, hop)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    bands = melscale_fbanks(n_fft // 2 + 1, 20.0, 4000.0, 20, 8000).numpy()
    level = 10 * np.log10(np.maximum(power @ bands, 1e-10)).T
    level = np.maximum(level, level.max() - 80)
    expected = (level - level.mean()) / level.std()
    np.testing.assert_allclose(made(torch.from_numpy(samples)).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("features", ["log-mel", "raw"])
def test_features_do_not_depend_on_the_gain(features: str) -> None:
    made = Features(AudioDataConfig(source="audio:x", sample_rate=RATE, features=features))
    samples = torch.from_numpy(tone(500.0, 0.2)).float()
    y = made(samples)
    torch.testing.assert_close(made(0.01 * samples), y, atol=1e-3, rtol=0)
    assert y.mean().abs() < 1e-5
    assert y.square().mean().sqrt() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("features", ["log-mel", "raw"])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_silence_gives_zeros(features: str, value: float) -> None:
    made = Features(AudioDataConfig(source="audio:x", sample_rate=RATE, features=features))
    y = made(torch.full((1000,), value))
    assert y.isfinite().all()
    if value == 0 or features == "raw":
        assert y.count_nonzero() == 0


@pytest.mark.parametrize("length", [1, 2, 39, 40, 41])
def test_the_shortest_recordings_have_features(length: int) -> None:
    made = Features(AudioDataConfig(source="audio:x", sample_rate=RATE))
    y = made(torch.randn(length))
    assert y.shape == (40, length // 40 + 1)
    assert y.isfinite().all()


def test_constant_features_are_no_noise() -> None:
    assert normalised(torch.full((3, 7), 0.1)).count_nonzero() == 0


# Augmentation


def features_of(*lengths: int, channels: int = 5) -> list[torch.Tensor]:
    return [torch.randn(channels, length) for length in lengths]


AUGMENTS = {
    "speed": {"speed": 0.3},
    "shift": {"shift": 0.05},
    "pitch": {"pitch": 2.0},
    "masks": {"masks": 2},
    "all": {"speed": 0.2, "shift": 0.02, "pitch": 1.0, "masks": 1},
}


@pytest.mark.parametrize("seconds", [None, 0.2])
@pytest.mark.parametrize("name", AUGMENTS)
def test_a_sample_does_not_depend_on_its_batch(name: str, seconds: float | None) -> None:
    """Its augmentation is a function of its key, and padding is zero."""
    made = config(Path("x"), sample_rate=RATE, augment=AUGMENTS[name], seconds=seconds, bands=5)
    augment, own = Augmentation(made), keys(3, 1, np.arange(6))
    lengths = (7, 31, 12, 1, 25, 44)
    features = features_of(*lengths)
    batch, mask = augment(features, own)
    assert batch.masked_fill(mask[:, None], 0).count_nonzero() == 0
    assert mask[:, 0].all()
    changed = 0
    for row in range(6):
        alone, whole = augment([features[row]], own[row : row + 1])
        assert whole.all()
        length = alone.shape[2]
        assert int(mask[row].sum()) == length
        torch.testing.assert_close(batch[row, :, :length], alone[0], rtol=0, atol=0)
        changed += not torch.equal(alone[0], features[row])
        if seconds:
            assert length <= 20
    assert changed >= 4
    again = augment(features, own)[0]
    assert torch.equal(batch, again)
    assert not torch.equal(batch, augment(features, keys(3, 2, np.arange(6)))[0])


def test_without_augmentation_a_batch_is_padded() -> None:
    features = features_of(4, 2)
    batch, mask = pad(features)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert torch.equal(batch[1, :, :2], features[1])
    assert batch[1, :, 2:].count_nonzero() == 0


def test_interpolation_at_whole_places_copies() -> None:
    x = torch.randn(1, 3, 6)
    places = torch.tensor([[0.0, 2.0, 5.0, 1.5]], dtype=torch.float64)
    y = interpolate(x, places)
    assert torch.equal(y[..., :3], x[..., [0, 2, 5]])
    torch.testing.assert_close(y[..., 3], (x[..., 1] + x[..., 2]) / 2)


def test_a_crop_in_training_is_random_and_in_evaluation_the_middle(tmp_path: Path) -> None:
    splits = open_audio(config(write_tones(tmp_path), seconds=0.1, features="raw"))
    whole = splits.val.whole(0)
    (features, mask), _ = splits.val.batch([0])
    start = (whole.shape[1] - 400) // 2
    assert torch.equal(features[0], whole[:, start : start + 400])
    assert mask.all()
    longest = int(np.argmax([each.shape[1] for each in splits.train.cached or []]))
    crops = {splits.train.batch([longest], epoch)[0][0].numpy().tobytes() for epoch in range(5)}
    assert len(crops) > 1


# Splits


def test_the_rate_of_most_files_is_taken_and_stored(tmp_path: Path) -> None:
    root = write_tones(tmp_path)
    soundfile.write(root / "train" / "low" / "other.wav", tone(200.0, 0.3, 16000), 16000)
    assert config(root).resolved().sample_rate == RATE
    assert config(root, sample_rate=8000).resolved().sample_rate == 8000
    splits = open_audio(config(root))
    assert splits.classes == ("high", "low", "middle")
    assert len(splits.train) == 19
    lengths = {
        path: each.shape[1] for path, each in zip(splits.train.paths, splits.train.cached, strict=True)
    }
    assert lengths[str(root / "train" / "low" / "other.wav")] == 31  # 0.3 seconds at 10 ms, and one


def test_a_folder_of_classes_is_split_by_names(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=10) / "train"
    splits = open_audio(config(root, val_fraction=0.2))
    assert (len(splits.train), len(splits.val)) == (24, 6)
    again = open_audio(config(root, val_fraction=0.2))
    assert splits.fingerprint == again.fingerprint
    (root / "low" / "0.wav").unlink()
    assert open_audio(config(root, val_fraction=0.2)).fingerprint != splits.fingerprint
    everything = open_audio_split(config(root, val_fraction=1.0))
    assert len(everything) == 29


def test_bad_recordings_are_refused_or_left_out(tmp_path: Path) -> None:
    root = write_tones(tmp_path)
    for name in ("empty.wav", "cut.wav", "text.wav"):
        BAD[name][0](root / "train" / "low" / name)
    with pytest.raises(DataError, match=r"3 of 30 recordings cannot be used:") as error:
        open_audio(config(root))
    assert "data.on_bad_recording=skip" in str(error.value)
    with pytest.warns(DataWarning, match="They are left out"):
        splits = open_audio(config(root, on_bad_recording="skip"))
    assert len(splits.train) == 18
    assert len(splits.skipped) == 3
    assert any("empty.wav: the file is empty" in reason for reason in splits.skipped)


def test_silence_is_served(tmp_path: Path) -> None:
    root = write_tones(tmp_path)
    soundfile.write(root / "train" / "low" / "silence.wav", np.zeros(800), RATE)
    splits = open_audio(config(root))
    index = splits.train.paths.index(str(root / "train" / "low" / "silence.wav"))
    assert splits.train.whole(index).count_nonzero() == 0
    assert splits.skipped == ()


REFUSED = {
    "one class": (lambda root: write_tones(root, classes=1), r"holds one class \('low'\)"),
    "nothing": (lambda root: root.mkdir(), "put the recordings of each class in a folder of its own"),
    "missing": (lambda root: None, "there is no folder"),
    "images": (lambda root: (root / "a").mkdir(parents=True), "holds no recordings; it is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    make(tmp_path / "r")
    with pytest.raises(DataError, match=message):
        open_audio(config(tmp_path / "r"))


def test_no_file_can_be_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.wav").write_text("nothing")
    with pytest.raises(DataError, match=r"not one recording of .* can be read; the first: cannot read"):
        open_audio(config(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {"source": "folder:x"},
        {"source": "audio:"},
        {"source": "audio:x", "features": "mfcc"},
        {"source": "audio:x", "sample_rate": 0},
        {"source": "audio:x", "window": 0.001},
        {"source": "audio:x", "seconds": 0},
        {"source": "audio:x", "batch_size": 0},
        {"source": "audio:x", "val_fraction": 0},
        {"source": "audio:x", "cache": "yes"},
    ],
)
def test_a_field_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"data\."):
        AudioDataConfig(**options)


@pytest.mark.parametrize("options", [{"speed": 0.6}, {"shift": -1}, {"masks": 1.5}, {"mask_time": 2}])
def test_an_augmentation_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"augment\."):
        AudioAugmentConfig(**options)


def test_a_classifier_of_images_is_told_the_recipe() -> None:
    source = DataConfig(source="audio:x")
    with pytest.raises(DataError, match="holds recordings, not images: train the recipe audio"):
        open_source(source, seed=0)
    assert get_source("audio:x").form == "audio:PATH"


# Loaders


@pytest.mark.parametrize("options", [{"cache": False}, {"cache": False, "workers": 2}])
def test_batches_do_not_depend_on_workers_or_the_cache(options: dict, tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=20)
    augment = AUGMENTS["all"]

    def batches(**other) -> list:
        made = config(root, augment=augment, batch_size=4, **other)
        splits = open_audio(made)
        position = (1, 3)
        return list(audio_train_loader(splits.train, made, seed=5, position=lambda: position))

    one, other = batches(), batches(**options)
    assert len(one) == len(other) == 12
    for ((x, mask), targets), ((x2, mask2), targets2) in zip(one, other, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(mask, mask2)
        assert torch.equal(targets, targets2)


def test_an_epoch_has_every_recording_once_and_groups_need_less_padding(tmp_path: Path) -> None:
    root = write_tones(tmp_path, train=40)
    padded = {}
    for grouped in (False, True):
        made = config(root, batch_size=4, group_by_length=grouped)
        splits = open_audio(made)
        loader = audio_train_loader(splits.train, made, seed=0, position=lambda: (0, 0))
        assert len(loader) == 30
        seen, places = [], 0
        for (x, mask), targets in loader:
            assert len(targets) == 4
            seen += [row[:, own].sum().item() for row, own in zip(x, mask, strict=True)]
            places += mask.numel()
        assert len(seen) == 120
        padded[grouped] = places
    assert padded[True] < 0.9 * padded[False]


def test_evaluation_has_each_recording_once_over_all_processes(tmp_path: Path) -> None:
    made = config(write_tones(tmp_path), batch_size=2)
    val = open_audio_split(made)
    targets = [
        target
        for rank in range(2)
        for _, batch in audio_eval_loader(val, made, rank=rank, world_size=2)
        for target in batch.tolist()
    ]
    assert sorted(targets) == sorted(val.targets.tolist())


def test_a_table_and_groups_of_speakers(tmp_path: Path) -> None:
    lines = ["path,label"]
    for word in ("yes", "no"):
        for number in range(12):
            name = f"{word}_{('ann', 'bob', 'cat', 'dan')[number % 4]}_{number}.wav"
            soundfile.write(tmp_path / name, np.full(900, 0.1 * (number % 3)), 8000)
            lines.append(f"{name},{word}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    config = AudioDataConfig(
        source=f"audio:{tmp_path / 'list.csv'}", batch_size=4, group="_([a-z]+)_", val_fraction=0.25
    )
    splits = open_audio(config)
    assert splits.classes == ("no", "yes")
    speakers = [{Path(path).name.split("_")[1] for path in side.paths} for side in (splits.train, splits.val)]
    assert [len(names) for names in speakers] == [3, 1]
    assert speakers[0].isdisjoint(speakers[1])
    balanced = replace(config, sampling="balanced", group_by_length=False)
    loader = audio_train_loader(splits.train, balanced, seed=0, position=lambda: (0, 0))
    assert np.bincount(np.concatenate([targets.numpy() for _, targets in loader])).tolist() in (
        [8, 8],
        [9, 7],
        [7, 9],
    )
